"""The benchmarks count what they say; no test asks how fast anything is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import onehot, scoring
from benchmarks.__main__ import MEASUREMENTS, main
from benchmarks.comparison import Comparison
from slotmatch import metrics, paths
from slotmatch.profiling import PeakMemory
from slotmatch.reporting.results import read_results


def turns(*totals: float) -> list[dict[str, float]]:
    return [{"decoder": total / 2, "total": total} for total in totals]


def test_ratios_are_those_of_each_turn() -> None:
    # The second turn met a busy machine: it doubles both times and leaves their ratio.
    comparison = Comparison(
        title="decoding",
        unit="ms per frame",
        baseline="plain",
        turns={"plain": turns(30, 60, 32), "fast": turns(10, 20, 16), "onnx": [{"total": 8}] * 3},
        memory={"fast": PeakMemory(3 * 2**20, 5 * 2**20)},
        facts={"fast": {"GFLOP": 2.5}},
    )
    row = comparison.summary().loc["fast"]
    assert row["total"] == 16
    assert row["decoder"] == 8
    assert (row["fastest"], row["slowest"]) == (10, 20)
    assert (row["from"], row["times faster"], row["to"]) == (2.5, 3, 3)
    assert (row["MiB before"], row["MiB added"]) == (3, 2)
    assert comparison.summary().loc["plain", "times faster"] == 1
    assert np.isnan(comparison.summary().loc["onnx", "decoder"])
    assert "ms per frame" in str(comparison)
    assert comparison.record()["turns"] == comparison.turns


@pytest.mark.parametrize("seed", range(3))
def test_one_mask_per_label_gives_the_same_scores(seed: int) -> None:
    true = scoring.regions(4, 40, 5, seed=seed)
    true[1] = 0  # a frame without objects
    pred = scoring.regions(4, 40, 6, seed=seed + 10)
    expected = onehot.video_metrics(true, pred)
    found = metrics.video_metrics(true, pred)
    assert set(found) - set(expected) == {"image_fg_ari_frames", "image_mbo_frames"}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_the_command_names_the_measurements_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "a,z"])
    assert "z is not among a, b, c, d, e" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"({letter}) " in shown for letter in MEASUREMENTS)


@pytest.mark.slow
def test_everything_is_measured_and_stored_in_one_command(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--repeats", "2", "--device", "cpu"]
    run = subprocess.run(
        [*command, "--output", str(output)], cwd=paths.REPOSITORY, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    results = read_results(output)
    assert list(results["measurements"]) == list(MEASUREMENTS)
    assert results["environment"]["packages"]["torch"]
    assert results["environment"]["hardware"]["threads"] >= 1
    for letter, comparisons in results["measurements"].items():
        for found in comparisons:
            assert found["title"].startswith(f"({letter}) ")
            assert found["title"] in run.stdout
            assert all(len(turns) == 2 for turns in found["turns"].values())
            assert all(turn["total"] > 0 for turns in found["turns"].values() for turn in turns)
    (inference,) = results["measurements"]["a"]
    assert {"plain teacher", "fast student", "student, attention masks"} <= set(inference["turns"])
    fast, light = (
        inference["summary"][name] for name in ("fast student", "student, attention masks")
    )
    assert light["GFLOP"] < fast["GFLOP"]
    assert light["parameters"] < fast["parameters"]
    if sys.platform == "linux":
        (streaming,) = results["measurements"]["e"]
        assert all(memory["peak"] > memory["before"] for memory in streaming["memory"].values())
