"""ONNX files: a model's masks over a whole video, from onnxruntime and numpy alone."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny import tiny as tiny_config
from torch import Tensor

from slotmatch import data, extras, paths
from slotmatch.data import Clip
from slotmatch.model import VideoSlotModel, load
from slotmatch.sharing import onnx as export
from slotmatch.sharing.onnx import OnnxModel, calibration_frames, export_onnx, frames_of

TINY = tiny_config("timm:test_vit", 64, n_heads=4, n_slots=3, decoder_hidden=16)


def video(side: int, n_frames: int) -> Tensor:
    """Smooth frames (T,3,S,S) in [0, 1] in which a square moves."""
    colours = torch.rand(n_frames, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, side)
    frames = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])
    frames = torch.cat([frames, 1 - frames[:1]]).repeat(n_frames, 1, 1, 1)
    for t, (frame, colour) in enumerate(zip(frames, colours, strict=True)):
        start = side * t // (2 * n_frames)
        frame[:, side // 4 : side // 2, start : start + side // 4] = colour
    return frames


def expect_equal_outputs(model: VideoSlotModel, path: Path, frames: Tensor) -> None:
    """Masks, attention, slots and state of every frame, in torch all frames at once."""
    with torch.inference_mode():
        whole = model(frames[None], reconstruct=False)
    onnx, state, stepped = OnnxModel(path), None, []
    for t, frame in enumerate(frames.numpy()):
        output = onnx.step(frame, state)
        state = output["next_state"]
        stepped.append(output["masks"])
        for name in ("masks", "attention", "slots"):
            expected = getattr(whole, name)[:, t].numpy()
            np.testing.assert_allclose(output[name], expected, rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(state, whole.state.predicted.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(onnx(iter(frames.numpy())), np.concatenate(stepped))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoSlotModel, Path]:
    """An untrained model with a ViT that resamples its position embedding, and its file."""
    model = VideoSlotModel(TINY, pretrained=False, seed=1)
    path = tmp_path_factory.mktemp("onnx") / "new" / "tiny.onnx"
    assert export_onnx(model, path) == path
    assert list(path.parent.iterdir()) == [path]
    return model, path


def test_a_vit_gives_equal_outputs_frame_by_frame(tiny: tuple[VideoSlotModel, Path]) -> None:
    model, path = tiny
    assert model.backbone.network.dynamic_img_size
    expect_equal_outputs(model, path, video(64, 5))


@pytest.mark.slow
def test_the_packaged_student_gives_equal_masks_over_a_whole_video(tmp_path: Path) -> None:
    model = load("mini-student")
    path = export_onnx(model, tmp_path / "student.onnx")
    # Of the kind it knows: where nothing is to be found, rounding grows from frame to frame.
    (clip,) = data.open("minimovi_a", "test", n_videos=1)
    frames = torch.from_numpy(clip.video).permute(0, 3, 1, 2).float() / 255
    expect_equal_outputs(model, path, frames)


@pytest.mark.slow
def test_a_dinov2_student_gives_equal_outputs(tmp_path: Path) -> None:
    config = tiny_config(
        "dinov2_vits14",
        70,
        decoder_layers=3,
        n_heads=4,
        n_slots=3,
        slot_dim=64,
        decoder_hidden=1024,
    )
    model = VideoSlotModel(config, pretrained=False, seed=2)
    expect_equal_outputs(model, export_onnx(model, tmp_path / "vit.onnx"), video(70, 6))


def test_more_iterations_for_later_frames_are_kept(tmp_path: Path) -> None:
    config = replace(TINY, first_iterations=1, later_iterations=3)
    model = VideoSlotModel(config, pretrained=False, seed=3)
    double = copy.deepcopy(model).double()
    expect_equal_outputs(model, export_onnx(double, tmp_path / "m.onnx"), video(64, 3))


def test_onnxruntime_and_numpy_are_enough(tiny: tuple[VideoSlotModel, Path]) -> None:
    """The loop in the module's docstring."""
    _, path = tiny
    frames = video(64, 3).numpy()
    session = onnxruntime.InferenceSession(path)
    state = np.full(session.get_inputs()[1].shape, 7, np.float32)  # not looked at: first
    own = []
    for t, frame in enumerate(frames):
        feed = {"frame": frame[None], "state": state, "first": np.array(t == 0)}
        masks, attention, slots, state = session.run(None, feed)
        own.append(masks)
        for soft in (masks, attention):
            np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)
        assert slots.shape == state.shape == (1, 3, 8)
    np.testing.assert_array_equal(np.concatenate(own), OnnxModel(path)(frames))
    header = session.get_modelmeta().custom_metadata_map
    assert json.loads(header["config"]) == asdict(TINY)
    named = {name: int(header[name]) for name in ("image_size", "grid", "n_slots", "slot_dim")}
    assert named == {"image_size": 64, "grid": 4, "n_slots": 3, "slot_dim": 8}


def test_a_file_does_not_tell_where_it_was_made(tiny: tuple[VideoSlotModel, Path]) -> None:
    content = tiny[1].read_bytes()
    assert str(paths.PACKAGE).encode() not in content
    assert b"modules.py" not in content


def test_exporting_leaves_the_model_as_it_was(tiny: tuple[VideoSlotModel, Path]) -> None:
    model, fresh = tiny[0], VideoSlotModel(TINY, pretrained=False, seed=1)
    expected = fresh.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(own, expected[name]) for name, own in model.state_dict().items())
    assert model.training == fresh.training
    assert model.backbone.network.dynamic_img_size


def test_models_that_cannot_be_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    blind = VideoSlotModel(tiny_config(decoder_layers=3, n_heads=4))
    with pytest.raises(ValueError, match="no backbone, so it cannot see a frame"):
        export_onnx(blind, path)
    sampled = VideoSlotModel(replace(TINY, initial_slots="sampled"), pretrained=False)
    with pytest.raises(ValueError, match='"sampled" are drawn anew for every video'):
        export_onnx(sampled, path)
    assert not path.exists()


def test_a_failure_leaves_no_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    content = SimpleNamespace(graph=SimpleNamespace(all_nodes=list), metadata_props={})
    written = SimpleNamespace(model=content, save=save)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: written)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(VideoSlotModel(TINY, pretrained=False), tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with a small EfficientNet, in single precision and with int8."""
    config = tiny_config("timm:test_efficientnet", 64, n_slots=3, decoder_hidden=16)
    model = VideoSlotModel(config, pretrained=False, seed=1)
    folder = tmp_path_factory.mktemp("int8")
    single = export_onnx(model, folder / "single.onnx")
    quantised = export_onnx(model, folder / "int8.onnx", calibration=video(64, 4).numpy())
    assert set(folder.iterdir()) == {single, quantised}
    return single, quantised


def test_the_backbones_convolutions_alone_are_int8(convolutions: tuple[Path, Path]) -> None:
    single, quantised = (onnx.load(path).graph for path in convolutions)
    names = [
        node.input[1]
        for node in single.node
        if node.op_type == "Conv" and node.input[1].startswith("model.backbone.network.")
    ]
    assert "conv_stem" in names[0]
    kept_float, names = names[:6], names[6:]
    assert names
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in single.initializer}
    own = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantised.initializer}
    int8 = {name.removesuffix("_quantized") for name in own if own[name].dtype == np.int8}
    assert {name for name in int8 if not name.endswith("_zero_point")} == set(names)
    for name in names:
        weight, scale, found = stored[name], own[f"{name}_scale"], own[f"{name}_quantized"]
        assert scale.shape == weight.shape[:1]  # one for each output channel
        restored = found * scale[:, None, None, None]
        assert (np.abs(restored - weight) <= 0.51 * scale[:, None, None, None]).all()
        assert np.abs(found.astype(int)).max() == (127 if weight.shape[1] == 1 else 64)
    kept = stored.keys() - set(names)
    assert kept >= set(kept_float)
    biases = {name for name in kept if f"{name}_quantized" in own}
    assert all(own[f"{name}_quantized"].dtype == np.int32 for name in biases)
    assert all(np.array_equal(own[name], stored[name]) for name in kept - biases)


def test_int8_masks_are_near_and_the_file_says_what_it_is(
    convolutions: tuple[Path, Path],
) -> None:
    single, quantised = map(OnnxModel, convolutions)
    frames = video(64, 5).numpy()
    masks = quantised(frames)
    np.testing.assert_allclose(masks.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(masks, single(frames), rtol=0, atol=0.02)
    assert not np.array_equal(masks, single(frames))
    assert (single.precision, quantised.precision) == ("no", "int8")
    assert (quantised.config, quantised.image_size) == (single.config, 64)


def test_frames_are_squares_of_a_videos_quarters() -> None:
    values = np.arange(0, 240, 30, np.uint8)
    video = np.broadcast_to(values[:, None, None, None], (8, 20, 30, 3))
    clip = Clip(video, np.zeros(video.shape[:3], np.int32), "a")
    assert frames_of(video, 16).shape == (8, 3, 16, 16)
    found = calibration_frames([clip, clip], 16)
    assert (found.shape, found.dtype) == ((4, 3, 16, 16), np.float32)
    np.testing.assert_allclose(found[:, 0, 0, 0], np.array([60, 180, 60, 180]) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 3, 64, 64)),
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((3, 64, 64), np.float32),
        np.zeros((0, 3, 64, 64), np.float32),
        np.full((1, 3, 64, 64), 255, np.float32),
        np.full((1, 3, 64, 64), np.nan, np.float32),
    ],
)
def test_other_calibration_frames_are_refused(frames: np.ndarray, tmp_path: Path) -> None:
    model = VideoSlotModel(TINY, pretrained=False)
    shape = str(frames.shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"float32 \(N,3,64,64\).*got {frames.dtype} {shape}"):
        export_onnx(model, tmp_path / "m.onnx", calibration=frames)
    assert not any(tmp_path.iterdir())


def test_a_vit_has_no_convolutions_for_int8(tmp_path: Path) -> None:
    model = VideoSlotModel(TINY, pretrained=False)
    with pytest.raises(ValueError, match=r"no convolutions after its first 6.*without calibration"):
        export_onnx(model, tmp_path / "m.onnx", calibration=video(64, 1).numpy())
    assert not any(tmp_path.iterdir())


def test_missing_packages_name_the_command(
    tiny: tuple[VideoSlotModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = tiny
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"onnx and onnxscript: pip install 'slotmatch\[onnx\]'"):
        export_onnx(model, tmp_path / "m.onnx")
    with pytest.raises(RuntimeError, match=r"needs onnxruntime: pip install 'slotmatch\[onnx\]'"):
        OnnxModel(path)


def test_other_onnx_files_are_refused(
    tiny: tuple[VideoSlotModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "FILE_FORMAT", "slotmatch onnx 9")
    with pytest.raises(ValueError, match="format is 'slotmatch onnx 1', not 'slotmatch onnx 9'"):
        OnnxModel(tiny[1])


def test_files_that_are_no_onnx_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*m\.onnx"):
        OnnxModel(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"m\.onnx is damaged or no ONNX file: "):
        OnnxModel(path)
