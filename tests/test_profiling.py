"""What a model costs: arithmetic against the published table, turns, parts and memory."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import tiny

from slotmatch import profiling
from slotmatch.model import PRESETS, VideoSlotModel
from slotmatch.model.plain import as_written

EMBEDDED = tiny("embedded_small", 32, decoder_layers=3, n_heads=4, n_slots=3, decoder_hidden=16)
FROM_FEATURES = tiny(decoder_layers=3, n_heads=4, n_slots=5, decoder_hidden=16)
PARTS = ("backbone", "transform", "slot_attention", "predictor", "decoder")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def video(frames: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, 40, 24, 3), np.uint8)


# Arithmetic


@pytest.mark.parametrize(
    ("preset", "role", "gflops", "total"),
    [
        ("movi_c", "teacher", (110.8, 1.47, 0.015, 0.001, 37.4), 149.7),
        ("movi_c", "student", (30.9, 0.40, 0.015, 0.001, 32.4), 63.7),
        ("movi_e", "teacher", (110.8, 1.59, 0.061, 0.006, 52.1), 164.6),
        ("movi_e", "student", (30.9, 0.45, 0.061, 0.006, 45.3), 76.7),
        ("ytvis2021", "teacher", (303.1, 3.50, 0.029, 0.001, 56.5), 363.2),
        ("ytvis2021", "student", (93.4, 0.94, 0.029, 0.001, 49.0), 143.4),
    ],
)
def test_plain_models_have_the_published_flops(
    preset: str, role: str, gflops: tuple[float, ...], total: float
) -> None:
    with torch.device("meta"):
        model = VideoSlotModel(getattr(PRESETS[preset], role), pretrained=False)
    counts = profiling.count_flops(as_written(model))
    assert tuple(counts) == (*PARTS, "total")
    for part, published in zip(PARTS, gflops, strict=True):
        # The table has three digits; the smallest entries have fewer.
        assert counts[part] / 1e9 == pytest.approx(published, rel=0.01, abs=5e-4)
    assert counts["total"] / 1e9 == pytest.approx(total, rel=0.01)
    assert counts["total"] == sum(counts[part] for part in PARTS)


def test_the_fast_decoder_does_the_products_it_says_it_does() -> None:
    k, d, h, p, f = 5, 8, 16, 9, 6
    middle = 2 * k * p * h * h  # two hidden layers between the first and the last
    masks = k * d * h + p * d * h + middle + k * p * h
    mixed = k * p * h + p * h * f
    assert profiling.count_flops(FROM_FEATURES, reconstruct=False)["decoder"] == 2 * masks
    assert profiling.count_flops(FROM_FEATURES)["decoder"] == 2 * (masks + mixed)
    plain = as_written(VideoSlotModel(FROM_FEATURES))
    as_usual = k * p * (d * h + 2 * h * h + h * (f + 1))
    for reconstruct in (True, False):
        counts = profiling.count_flops(plain, reconstruct=reconstruct)
        assert counts["decoder"] == 2 * as_usual


def test_flops_of_a_model_are_those_of_its_config_and_leave_it_alone() -> None:
    model = VideoSlotModel(EMBEDDED, pretrained=False).double()
    counts = profiling.count_flops(model)
    assert counts == profiling.count_flops(EMBEDDED)
    assert counts["backbone"] > 0
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    heads = profiling.count_flops(FROM_FEATURES)
    assert "backbone" not in heads
    without = profiling.count_flops(FROM_FEATURES, decode=False)
    assert without == {part: n for part, n in heads.items() if part not in ("decoder", "total")} | {
        "total": heads["total"] - heads["decoder"]
    }


def test_masks_alone_need_no_reconstruction_and_may_need_no_decoder() -> None:
    model = VideoSlotModel(FROM_FEATURES)
    counts = profiling.count_flops(model, reconstruct=False)
    whole, without = profiling.segmenting(model), profiling.segmenting(model, decode=False)
    assert whole.gflop == counts["total"] / 1e9
    assert without.gflop == pytest.approx((counts["total"] - counts["decoder"]) / 1e9)
    decoder = sum(weight.numel() for weight in model.decoder.parameters())
    assert whole.parameters == sum(weight.numel() for weight in model.parameters())
    assert without.parameters == whole.parameters - decoder
    assert profiling.segmenting(FROM_FEATURES) == whole


def test_later_frames_are_counted_not_the_first() -> None:
    p, k, d = 9, 5, 8
    projected = 2 * 2 * p * d * d
    iteration = 2 * (k * d * d + 2 * k * p * d + 2 * k * d * 3 * d + 2 * k * d * 4 * d)
    counts = profiling.count_flops(FROM_FEATURES)
    assert counts["slot_attention"] == projected + 2 * iteration


# Time


def test_jobs_take_turns_after_one_that_does_not_count() -> None:
    turns: list[str] = []

    def job(name: str) -> Callable[[], int]:
        return lambda: turns.append(name) or len(turns)

    found = profiling.take_turns({"a": job("a"), "b": job("b")}, repeats=2)
    assert turns == ["a", "b"] * 3
    assert found == {"a": [3, 5], "b": [4, 6]}
    with pytest.raises(ValueError, match="nothing to measure"):
        profiling.take_turns({})
    with pytest.raises(ValueError, match="repeats must be 1 or more, got 0"):
        profiling.take_turns({"a": job("a")}, repeats=0)


def test_a_ratio_is_that_of_each_turn() -> None:
    # The second turn met a busy machine: it doubles both times and leaves their ratio.
    ratio = profiling.times_faster([10, 20, 16], [30, 60, 32])
    assert (ratio.low, ratio.median, ratio.high) == (2.5, 3, 3)
    assert str(ratio) == "3.00 [2.50, 3.00]"
    with pytest.raises(ValueError, match="times of the same turns, got 2 and 1"):
        profiling.times_faster([1, 2], [3])
    with pytest.raises(ValueError, match="got 0 and 0"):
        profiling.times_faster([], [])


def test_parts_make_the_whole_and_stop_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10, 12, 15, 21, 30, 31, 32])  # seconds
    monkeypatch.setattr(profiling, "now", lambda device: next(clock))
    model = VideoSlotModel(EMBEDDED, pretrained=False)
    assert profiling.time_parts(model, video(4)) == {
        "backbone": 500.0,
        "slots": 750.0,
        "decoder": 1500.0,
        "total": 2750.0,
    }
    assert profiling.time_parts(model, video(2), decode=False) == {
        "backbone": 500.0,
        "slots": 500.0,
        "total": 1000.0,
    }


def test_parts_run_what_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VideoSlotModel(EMBEDDED, pretrained=False)
    decoded = []
    decode = model.decoder.forward
    monkeypatch.setattr(
        model.decoder, "forward", lambda *a, **k: decoded.append((a, k)) or decode(*a, **k)
    )
    frames = torch.from_numpy(video()).permute(0, 3, 1, 2)[None] / 255
    with torch.inference_mode():
        expected = model(frames).slots
    decoded.clear()
    profiling.time_parts(model, video(), reconstruct=True)
    ((slots,), options) = decoded[0]
    torch.testing.assert_close(slots, expected[0])
    assert options["reconstruct"] is True


# Memory


def allocate(before: int, during: int) -> Callable[[], None]:
    np.ones(2 * before + during, np.uint8).sum()  # a peak while preparing, gone when the job runs
    kept = np.ones(before, np.uint8)

    def job() -> None:
        assert (kept + np.ones(during, np.uint8)[0]).all()
        np.ones(during, np.uint8).sum()

    return job


@LINUX
@pytest.mark.slow
def test_peak_memory_is_what_the_job_adds_to_what_was_there() -> None:
    mebi = 2**20
    small = profiling.peak_memory(allocate, 0, 32 * mebi)
    assert 31 * mebi < small.added < 48 * mebi  # the kernel counts in batches of pages
    large = profiling.peak_memory(allocate, 64 * mebi, 128 * mebi)
    assert 127 * mebi < large.added < 150 * mebi
    assert 56 * mebi < large.before - small.before < 72 * mebi


@LINUX
@pytest.mark.slow
def test_memory_of_the_process_that_asks_does_not_count() -> None:
    ballast = np.ones(2**30, np.uint8)
    found = profiling.peak_memory(allocate, 0, 2**25)
    assert found.before < ballast.nbytes
    assert found.added < 2 * 2**25
