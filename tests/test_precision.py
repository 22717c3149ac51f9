"""Half precision by name: what runs in it, what does not, and what is refused or warned of."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import normal, tiny
from torch import Tensor, nn

from slotmatch import data, evaluation, precision
from slotmatch.data import Clip
from slotmatch.experiments import precision as measured
from slotmatch.model import SlotOutput, VideoSlotModel
from slotmatch.precision import autocast, check_precision
from slotmatch.reporting import results
from slotmatch.segmentation import segment
from slotmatch.settings import Precision, choices

CPU, GPU = torch.device("cpu"), torch.device("cuda")
N_FRAMES = 5
CONFIG = tiny("timm:test_vit", 64, n_heads=4, decoder_hidden=16, position_init="sincos")


@pytest.fixture(scope="module")
def model() -> VideoSlotModel:
    """Untrained, with masks that differ from place to place."""
    model = VideoSlotModel(CONFIG, pretrained=False, seed=1).eval()
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.weight.mul_(3)
    return model


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    """Smooth frames, uint8 (T,H,W,3), in which a square moves."""
    rows, columns = np.mgrid[:64, :64]
    frames = np.stack([np.stack([3 * rows, 3 * columns, 0 * rows + 90], -1)] * N_FRAMES)
    for t, frame in enumerate(frames):
        frame[8:30, 6 * t : 6 * t + 20] = (230, 40, 40)
    return frames.astype(np.uint8)


@pytest.fixture
def clips(video: np.ndarray) -> list[Clip]:
    labels = np.zeros((N_FRAMES, 64, 64), np.int32)
    labels[:, 8:30, 10:30], labels[:, 40:, 20:50] = 1, 2
    turned = np.ascontiguousarray(video[:, ::-1])
    return [Clip(video, labels, "one"), Clip(turned, labels, "two")]


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes this CPU one that has what is named; nothing was warned of yet."""

    def have(**told: object) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)

    precision._warn_of_emulation.cache_clear()
    yield have
    precision._warn_of_emulation.cache_clear()


def frames_of(video: np.ndarray) -> list[Tensor]:
    return [*torch.from_numpy(video).permute(0, 3, 1, 2)[:, None]]


def streamed(model: VideoSlotModel, video: np.ndarray, kind: Precision) -> SlotOutput:
    (output,) = model.stream(frames_of(video), precision=kind)
    return output


# What is computed


def test_single_precision_is_the_model_as_it_is_whatever_surrounds_it(
    model: VideoSlotModel, video: np.ndarray
) -> None:
    with torch.inference_mode():
        plain = model(torch.stack(frames_of(video), 1) / 255)
    with torch.autocast("cpu", torch.bfloat16):
        surrounded = streamed(model, video, "no")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    for found in (streamed(model, video, "no"), surrounded):
        for name in ("slots", "attention", "masks"):
            assert torch.equal(getattr(found, name), getattr(plain, name)), name
        assert torch.equal(found.state.predicted, plain.state.predicted)


def test_half_precision_is_near_and_comes_out_single(
    model: VideoSlotModel, video: np.ndarray
) -> None:
    single, half = (streamed(model, video, kind) for kind in ("no", "bf16"))
    for name in ("slots", "attention", "masks"):
        own, other = getattr(half, name), getattr(single, name)
        assert own.dtype == torch.float32
        assert not torch.equal(own, other)
        assert (own - other).abs().max() < 0.05 * other.abs().max()
    for soft in (half.masks, half.attention):
        torch.testing.assert_close(soft.sum(2), torch.ones_like(soft[:, :, 0]))
    same = segment(video, model, precision="bf16") == segment(video, model)
    assert same.mean() > 0.8  # untrained masks hardly decide: 0.86 where a processor has bf16


def test_products_are_half_and_slots_are_not(model: VideoSlotModel, video: np.ndarray) -> None:
    assert model.backbone is not None
    watched: dict[str, nn.Module] = {
        "backbone": model.backbone.network.blocks[0].mlp.fc1,
        "projection": model.transform[1],
        "keys": model.slot_attention.to_k,
        "slot mlp": model.slot_attention.mlp[1],
        "predictor": model.predictor.to_out,
        "decoder": model.decoder.layers[0],
        "gru": model.slot_attention.gru,
        "corrected by the predictor": model.predictor,
    }
    found: dict[str, set[torch.dtype]] = {name: set() for name in watched}
    handles = [
        module.register_forward_hook(
            lambda _module, given, out, name=name: found[name].add(out.dtype)
        )
        for name, module in watched.items()
    ]
    inputs: set[torch.dtype] = set()
    handles.append(
        model.slot_attention.gru.register_forward_pre_hook(
            lambda _module, given: inputs.update(tensor.dtype for tensor in given)
        )
    )
    streamed(model, video, "bf16")
    for handle in handles:
        handle.remove()
    *halves, _, _ = watched
    assert {name: found[name] for name in halves} == {name: {torch.bfloat16} for name in halves}
    assert found["gru"] == found["corrected by the predictor"] == inputs == {torch.float32}


def test_the_gru_rounds_no_slot(model: VideoSlotModel, video: np.ndarray) -> None:
    """On a GPU autocast would give it half the digits of the slots it corrects."""
    seen = []
    handles = [
        part.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        for part in (model.slot_attention.gru, model.slot_attention.mlp)
    ]
    streamed(model, video[:1], "bf16")
    for handle in handles:
        handle.remove()
    assert seen == [False, True] * CONFIG.first_iterations


def test_the_state_of_a_long_clip_stays_single(model: VideoSlotModel, video: np.ndarray) -> None:
    frames = 12 * frames_of(video)
    outputs = [*model.stream(frames, chunk=1, precision="bf16")]
    assert len(outputs) == 12 * N_FRAMES
    assert {output.state.predicted.dtype for output in outputs} == {torch.float32}
    (whole,) = model.stream(frames, chunk=len(frames), precision="bf16")
    slots = torch.cat([output.slots for output in outputs], 1)
    assert (slots - whole.slots).abs().max() < 0.05 * whole.slots.abs().max()


def test_the_caller_of_a_stream_is_not_in_half_precision(
    model: VideoSlotModel, video: np.ndarray
) -> None:
    for _ in model.stream(frames_of(video), chunk=2, precision="bf16"):
        assert not torch.is_autocast_enabled("cpu")


def test_tensors_without_numbers_know_no_precision() -> None:
    for kind in choices(Precision):
        with autocast(torch.empty(1, device="meta"), kind):
            assert not torch.is_autocast_enabled("cpu")


def test_a_model_in_half_precision_itself_still_runs(video: np.ndarray) -> None:
    own = VideoSlotModel(CONFIG, pretrained=False, seed=1).bfloat16().eval()
    output = streamed(own, video, "no")
    assert (output.slots.dtype, output.segmentation.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output.segmentation.sum(2), torch.ones(1, N_FRAMES, 16))


# What is refused, and what is warned of


def test_a_precision_that_is_not_there_is_refused(
    model: VideoSlotModel, video: np.ndarray, clips: list[Clip]
) -> None:
    with pytest.raises(ValueError, match=r"precision must be one of .*'bf16'.*, got 'fp8'"):
        segment(video, model, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='precision "fp16" needs a GPU: choose "bf16" or "no"'):
        segment(video, model, precision="fp16")
    with pytest.raises(ValueError, match='precision "fp16" needs a GPU'):
        evaluation.evaluate(model, clips, precision="fp16")
    check_precision("fp16", GPU)


@pytest.mark.parametrize("told", [{"avx2": True}, {"avx512_bf16": False, "amx_bf16": False}])
def test_a_cpu_that_emulates_bf16_is_told_once(cpu: Callable[..., None], told: dict) -> None:
    cpu(**told)
    with pytest.warns(UserWarning, match="emulates them, which is slower than single") as caught:
        check_precision("bf16", CPU)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_precision("bf16", CPU)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("told", [{"amx_bf16": True}, {"avx512_bf16": True}, {"bf16": True}, {}])
def test_others_are_not_warned(cpu: Callable[..., None], told: dict) -> None:
    cpu(**told)  # {}: a torch that does not tell
    check_precision("bf16", CPU)
    cpu(avx2=True)
    check_precision("no", CPU)
    check_precision("bf16", GPU)


@pytest.mark.filterwarnings("error")
def test_a_torch_that_cannot_be_asked_is_not_warned_of(
    cpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    check_precision("bf16", CPU)


# Scores


def test_scores_are_those_of_the_masks_in_half_precision(
    model: VideoSlotModel, clips: list[Clip]
) -> None:
    found = evaluation.evaluate(model, clips, precision="bf16", batch_size=1)
    followed = evaluation.follow(model, clips, precision="bf16")
    maps = [segment(clip.video, model, precision="bf16") for clip in clips]
    expected = evaluation.columns(map(evaluation.score_labels, clips, maps))
    assert found["video_mbo"] == pytest.approx(expected["video_mbo"], abs=0.02)
    assert all((own.labels == one).mean() > 0.98 for own, one in zip(followed, maps, strict=True))
    assert followed[0].slots.dtype == torch.float32


def test_features_in_single_precision_do_not_pass_for_half(
    model: VideoSlotModel, clips: list[Clip]
) -> None:
    features = normal(2, N_FRAMES, 16, CONFIG.feature_dim).float().numpy()
    with pytest.raises(ValueError, match=r"'bf16' is the backbone's too.*leave them out"):
        evaluation.evaluate(model, clips, features=features, precision="bf16")
    with pytest.raises(ValueError, match="leave them out"):
        evaluation.follow(model, clips, features, precision="bf16")
    blind = VideoSlotModel(tiny(feature_shape=(16, CONFIG.feature_dim)))
    found = evaluation.follow(blind, clips, features, precision="bf16")  # all that it can see
    assert found[0].slots.dtype == torch.float32


# The measurement


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measured.paths, "RESULTS", tmp_path)
    return tmp_path


def test_a_data_set_is_measured_in_both(
    model: VideoSlotModel, clips: list[Clip], committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "load", lambda name: model)
    monkeypatch.setattr(data, "open", lambda name, split, n_videos: clips[:n_videos])
    measured.main(["minimovi_c", "--videos", "2", "--precision", "bf16"])
    written = [path for path in committed.rglob("*") if path.is_file()]
    assert written == [committed / "precision" / "minimovi_c.json"]
    found = measured.read_precision()
    content = found["bf16"]["minimovi_c"]
    entries = content["models"]
    assert {name: entry["precision"] for name, entry in entries.items()} == {
        "teacher": "no",
        "teacher, bf16": "bf16",
        "student": "no",
        "student, bf16": "bf16",
    }
    assert content["data"]["ids"] == ["one", "two"]
    assert content["environment"]["packages"]["torch"]
    single = evaluation.evaluate(model, clips)
    assert entries["teacher"]["metrics"]["video_mbo"] == pytest.approx(
        single["video_mbo"], abs=1e-4
    )
    half = evaluation.follow(model, clips, precision="bf16")
    agreement = evaluation.fidelity(half, evaluation.follow(model, clips), clips)
    assert entries["student, bf16"]["metrics"]["same_slot"] == pytest.approx(
        agreement["same_slot"], abs=1e-4
    )
    table = measured.precision_table(found)
    row = table.loc[("minimovi_c", "student", "bf16")]
    assert row["videos"] == "2"
    assert row["mBO, minus single"] == results.difference(
        content, "student, bf16", "student", "video_mbo"
    )
    others = table.drop(index=[("minimovi_c", role, "bf16") for role in ("teacher", "student")])
    assert set(others.to_numpy().ravel()) == {"not measured"}


@pytest.mark.slow
def test_int8_is_measured_of_files_with_frames_of_training_videos(
    clips: list[Clip], committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("timm:test_efficientnet", 64, decoder_hidden=16, position_init="sincos")
    model = VideoSlotModel(config, pretrained=False, seed=1)
    opened: list[tuple[str, str]] = []

    def open_clips(name: str, split: str, n_videos: int) -> list[Clip]:
        opened.append((name, split))
        return clips[:n_videos]

    monkeypatch.setattr(measured, "load", lambda name: model)
    monkeypatch.setattr(measured, "choices", lambda _: ("student",))
    monkeypatch.setattr(data, "open", open_clips)
    measured.main(["minimovi_c", "--videos", "2", "--precision", "int8"])
    assert opened == [("minimovi_c", "test"), *((name, "train") for name in data.EMBEDDED)]
    content = measured.read_precision()["int8"]["minimovi_c"]
    single, int8 = content["models"]["student"], content["models"]["student, int8"]
    assert (single["precision"], int8["precision"]) == ("no", "int8")
    assert int8["bytes"] != single["bytes"]
    assert len(int8["ms_per_frame_turns"]) == len(single["ms_per_frame_turns"]) > 1
    expected = evaluation.score_followed(evaluation.follow(model, clips), clips)
    assert single["metrics"]["video_mbo"] == pytest.approx(expected["video_mbo"], abs=1e-3)
    assert min(int8["metrics"]["same_slot"]) > 0
    assert min(int8["metrics"]["slot_cosine"]) > 0.9


def test_the_table_by_hand() -> None:
    scores = {"teacher": [0.5, 0.5], "student": [0.25, 0.75]}
    agreement = {"same_slot": [0.75, 0.75], "same_slot_objects": [0.5, 0.5]}
    entries = {
        role: {"metrics": {"video_fg_ari": own, "video_mbo": own}} for role, own in scores.items()
    }
    for role, own in scores.items():
        better = [value + 0.125 for value in own]
        metrics = {"video_fg_ari": better, "video_mbo": own, **agreement}
        entries[f"{role}, int8"] = {"metrics": metrics}
    content = {"models": entries, "data": {"ids": ["one", "two"]}, "wall_seconds": 60}
    table = measured.precision_table({"int8": {"minimovi_a": content}})
    assert [*table.index[:4]] == [
        ("minimovi_a", role, precision)
        for precision in ("bf16", "int8")
        for role in ("teacher", "student")
    ]
    for role in ("teacher", "student"):
        assert set(table.loc[("minimovi_a", role, "bf16")]) == {"not measured"}
        assert list(table.loc[("minimovi_a", role, "int8")]) == [
            "2",
            "75.0 [75.0, 75.0]",
            "50.0 [50.0, 50.0]",
            "+12.5 [+12.5, +12.5]",
            "+0.0 [+0.0, +0.0]",
        ]


def test_calibration_takes_equally_many_videos_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "open", lambda name, split, n_videos: [(name, split)] * n_videos)
    found = measured.calibration_clips(["minimovi_a", "minimovi_c", "movi_e"])
    assert found == [
        (name, "train") for name in ("minimovi_a", "minimovi_c", "movi_e") for _ in range(16)
    ]


def test_only_embedded_data_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        measured.main(["movi_e"])
    assert "movi_e is not among minimovi_a" in capsys.readouterr().err
