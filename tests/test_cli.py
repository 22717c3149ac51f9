import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny

from slotmatch import data, model
from slotmatch.__main__ import main
from slotmatch.data import minimovi
from slotmatch.evaluation import PROTOCOLS, evaluate, protocol_for
from slotmatch.model.slotcontrast import released_name
from slotmatch.segmentation import segment
from slotmatch.settings import Masks, ProtocolName, choices
from slotmatch.sharing.onnx import OnnxModel

N_FRAMES, SIDE = 3, 24


@pytest.fixture
def data_set(tmp_path, monkeypatch) -> Path:
    """Two tiny test videos of minimovi_a where the real ones would be, in their file format."""
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "minimovi" / f"v{minimovi.VERSION}" / "minimovi_a" / "test"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, n_objects in enumerate((1, 3)):
        labels = np.zeros((N_FRAMES, SIDE, SIDE), np.uint8)
        for k in range(n_objects):
            labels[:, 8 * k : 8 * k + 6, 3:20] = k + 1
        steps = rng.integers(0, 256, (*labels.shape, 3), np.uint8)
        np.savez_compressed(folder / f"{index:05d}.npz", steps=steps, labels=labels)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small untrained model in a file."""
    config = tiny("embedded", 32, n_heads=4)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    model.save(model.VideoSlotModel(config), path)
    return path


@pytest.fixture
def frames(tmp_path) -> Path:
    """A video as a folder of images."""
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for t in range(N_FRAMES):
        image = rng.integers(0, 256, (SIDE, 2 * SIDE, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{t}.png")
    return folder


def test_evaluate_prints_scores_and_writes_them(data_set, checkpoint, tmp_path, capsys):
    path = tmp_path / "scores" / "results.json"
    arguments = ["evaluate", str(checkpoint), "minimovi_a", "--videos", "2", "--output", str(path)]
    assert main(arguments) == 0
    results = json.loads(path.read_text())
    clips = data.open("minimovi_a", "test", n_videos=2)
    expected = evaluate(model.load(checkpoint), clips)
    entry = results["models"]["model"]
    assert entry["metrics"].keys() == expected.keys()
    np.testing.assert_allclose(entry["metrics"]["video_mbo"], expected["video_mbo"])
    assert results["data"]["ids"] == ["minimovi_a/test/00000", "minimovi_a/test/00001"]
    assert results["config"]["n_slots"] == 4
    assert results["config"]["precision"] == "no"
    assert len(entry["checkpoint"]) == 64
    shown = capsys.readouterr().out
    assert f"{100 * np.mean(expected['video_mbo']):.1f} [" in shown
    assert str(path) in shown


def test_evaluate_says_which_precision(data_set, checkpoint, tmp_path, capsys):
    path = tmp_path / "results.json"
    arguments = ["evaluate", str(checkpoint), "minimovi_a", "--videos", "2", "--output", str(path)]
    assert main([*arguments, "--precision", "bf16"]) == 0
    results = json.loads(path.read_text())
    clips = data.open("minimovi_a", "test", n_videos=2)
    expected = evaluate(model.load(checkpoint), clips, precision="bf16")
    np.testing.assert_allclose(
        results["models"]["model"]["metrics"]["mask_entropy"], expected["mask_entropy"]
    )
    assert results["config"]["precision"] == "bf16"
    assert "on 2 of 2 videos of minimovi_a test, computed in bf16\n" in capsys.readouterr().out


def test_a_precision_without_a_device_is_refused_before_videos_are_rendered(
    checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path / "data"))
    arguments = ["evaluate", str(checkpoint), "minimovi_a", "--output", str(tmp_path / "r.json")]
    assert main([*arguments, "--precision", "fp16"]) == 1
    assert capsys.readouterr().err == (
        'slotmatch evaluate: precision "fp16" needs a GPU: choose "bf16" or "no"\n'
    )
    assert not any(tmp_path.iterdir())


@pytest.fixture
def real_data(monkeypatch):
    """Stands for the reader of a real data set: two videos that are no squares, one unlabelled."""
    rng = np.random.default_rng(2)
    clips = []
    for index, (height, width) in enumerate([(20, 31), (26, 18)]):
        labels = np.zeros((3, height, width), np.int32)
        labels[:, 4:12, 5:11] = 1 - index
        labels[:, 8:15, 9:16] = 2 * (1 - index)
        video = rng.integers(0, 256, (*labels.shape, 3), np.uint8)
        clips.append(data.Clip(video, labels, f"ytvis2021/{index}"))
    monkeypatch.setattr(data, "open", lambda name, split, *, n_videos: clips[:n_videos])
    return clips


def test_evaluate_says_which_protocol(real_data, checkpoint, tmp_path, capsys):
    path = tmp_path / "results.json"
    arguments = ["evaluate", str(checkpoint), "ytvis2021", "--output", str(path)]
    assert main([*arguments, "--masks", "attention"]) == 0
    results = json.loads(path.read_text())
    rules = protocol_for("slotcontrast", "ytvis2021")
    expected = evaluate(model.load(checkpoint), real_data, masks="attention", protocol=rules)
    entry = results["models"]["model"]
    assert entry["metrics"]["video_mbo"] == [pytest.approx(expected["video_mbo"][0]), None]
    assert entry["dataset_metrics"]["video_fg_ari_videos"] == 1
    assert entry["dataset_metrics"]["image_mbo_frames"] == 3
    assert results["protocol"] == asdict(replace(rules, masks="attention"))
    assert results["config"]["masks"] == "attention"
    found = results["data"]
    assert (found["split"], found["videos"]) == ("validation", 2)
    assert found["ids"] == ["ytvis2021/0", "ytvis2021/1"]
    shown = capsys.readouterr().out
    assert "on 2 of 2 videos of ytvis2021 validation\nprotocol slotcontrast: " in shown
    assert "over 2 videos; FG-ARI counts 1 of them and 3 frames, mBO 1 and 3" in shown


def test_evaluate_takes_another_protocol(real_data, checkpoint, tmp_path, capsys):
    path = tmp_path / "results.json"
    arguments = ["evaluate", str(checkpoint), "davis2017", "--split", "train", "--videos", "1"]
    assert main([*arguments, "--protocol", "original", "--output", str(path)]) == 0
    results = json.loads(path.read_text())
    assert results["protocol"]["preprocessing"]["size"] is None
    assert results["data"]["ids"] == ["ytvis2021/0"]
    assert "protocol original" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_takes_a_released_checkpoint(real_data, tmp_path, capsys):
    config = tiny("dinov2_vits14", 56, decoder_layers=3, n_heads=4, n_slots=3)
    tensors = model.VideoSlotModel(config, pretrained=False).state_dict()
    released = {
        released_name(name): tensor
        for name, tensor in tensors.items()
        if not name.startswith("backbone.network.norm.")
    }
    checkpoint, path = tmp_path / "ytvis.ckpt", tmp_path / "results.json"
    torch.save({"state_dict": released}, checkpoint)
    assert main(["evaluate", str(checkpoint), "ytvis2021", "--output", str(path)]) == 0
    results = json.loads(path.read_text())
    expected = evaluate(
        model.from_slotcontrast(checkpoint),
        real_data,
        protocol=protocol_for("slotcontrast", "ytvis2021"),
    )
    found = results["models"]["model"]
    assert found["metrics"]["video_mbo"][0] == pytest.approx(expected["video_mbo"][0])
    assert found["parameters"] > 22_000_000
    assert results["config"]["backbone"] == "dinov2_vits14"


def test_evaluate_knows_the_protocols():
    assert choices(ProtocolName) == tuple(PROTOCOLS)


def test_data_says_what_there_is(data_set, capsys):
    assert main(["data", "minimovi_a", "--split", "test", "--videos", "2"]) == 0
    assert capsys.readouterr().out == (
        "minimovi_a test: 2 videos of 3x24x24 (frames x rows x columns) with 1 to 3 objects\n"
    )


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", choices(Masks))
def test_segment_writes_masks_and_overlay(kind, precision, frames, checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["segment", str(frames), "--model", str(checkpoint), "--output", str(output)]
    arguments += ["--masks", kind, "--precision", precision]
    assert main([*arguments, "--overlay"]) == 0
    written = sorted((output / "masks").iterdir())
    masks = np.stack([np.asarray(Image.open(path)) for path in written])
    expected = segment(str(frames), str(checkpoint), masks=kind, precision=precision)
    np.testing.assert_array_equal(masks, expected)
    assert (output / "overlay.mp4").stat().st_size > 0
    assert str(output / "overlay.mp4") in capsys.readouterr().out


@pytest.mark.slow
def test_export_writes_a_file_and_says_what_it_takes(checkpoint, tmp_path, capsys):
    path = tmp_path / "tiny.onnx"
    assert main(["export", str(checkpoint), str(path)]) == 0
    assert OnnxModel(path).image_size == 32
    shown = capsys.readouterr().out
    assert f"{path}: {path.stat().st_size / 1e6:.1f} MB" in shown
    assert "frames of 32 x 32 pixels, 4 slots" in shown
    assert "int8" not in shown


@pytest.mark.slow
def test_export_calibrates_int8_on_training_videos(checkpoint, tmp_path, monkeypatch, capsys):
    video = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
    clip = data.Clip(video, np.zeros((4, 40, 40), np.int32), "one")
    splits = []
    monkeypatch.setattr(
        data, "open", lambda name, split, n_videos: splits.append((name, split)) or [clip]
    )
    path = tmp_path / "tiny.onnx"
    arguments = ["export", str(checkpoint), str(path), "--int8", "minimovi_a", "minimovi_d"]
    assert main(arguments) == 0
    assert splits == [("minimovi_a", "train"), ("minimovi_d", "train")]
    assert OnnxModel(path).precision == "int8"
    assert "in int8, calibrated on 4 training frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "movi_d"], "the files of movi_d are not on this machine.*minimovi_d"),
        (["evaluate", "no-such-model", "minimovi_a"], "'no-such-model' is neither a file nor"),
        (["evaluate", "no-such-model", "ytvis2021"], "the files of ytvis2021 are not on this mach"),
        (["evaluate", "x", "minimovi_a", "--protocol", "videosaur"], "rules for ytvis2021 only"),
        (["export", "no-such-model", "OUT"], "'no-such-model' is neither a file nor"),
        (["segment", "no.mp4", "--model", "MODEL", "--output", "OUT"], "no.mp4"),
        (["segment", "EMPTY", "--model", "MODEL", "--output", "OUT"], "EMPTY"),
        (["data", "minimovi_a", "--videos", "9" * 30], "a split of minimovi_a has 100000"),
        (["share", "MODEL", "--folder", "OUT", "--entry", "x"], "entry 'x' is one of results"),
        (["share", "MODEL", "--folder", "TAKEN"], "README.md is there and no model.safetensors"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(
    arguments, message, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path / "data"))
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "TAKEN").mkdir()
    (tmp_path / "TAKEN" / "README.md").write_text("of a project")
    places = {"MODEL": checkpoint, "OUT": tmp_path / "out"}
    places |= {name: tmp_path / name for name in ("EMPTY", "TAKEN")}
    assert main([str(places.get(argument, argument)) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith(f"slotmatch {arguments[0]}: ")
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["data", "minimovi_z"], "invalid choice: 'minimovi_z'.*minimovi_a"),
        (
            ["segment", "v.mp4", "--output", "o", "--precision", "fp8"],
            "argument --precision: invalid choice: 'fp8'.*no.*bf16.*fp16",
        ),
        (["data", "minimovi_a", "--videos", "0"], "'0' is not a whole number of 1 or more"),
        (["evaluate", "m", "minimovi_a", "--protocol", "x"], "invalid choice: 'x'.*slotcontrast"),
        (["segment", "video.mp4"], "required: --output"),
        (["segment", "video.mp4", "--output", ""], "is a variable of the shell not set"),
        (["segment", "v.mp4", "--output", "o", "--masks", "x"], "choose from '?decoder'?, '?atten"),
    ],
)
def test_wrong_command_line_is_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_module_runs_and_explains_itself():
    command = [sys.executable, "-m", "slotmatch", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in ("segment", "data", "evaluate", "export"))
