import json
import math
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slotmatch import paths
from slotmatch.data import minimovi
from slotmatch.reporting import results, stats


@dataclass(frozen=True)
class Config:
    steps: int
    size: tuple[int, int]


def content() -> dict[str, Any]:
    """Three models on three videos; the second video is skipped by FG-ARI."""
    nan = math.nan
    return {
        "config": Config(steps=10, size=(2, 3)),
        "seeds": [0],
        "wall_seconds": 90.0,
        "environment": {"python": "3.11"},
        "data": {
            "name": "minimovi_a",
            "version": 1,
            "split": "test",
            "ids": ["minimovi_a/test/00000", "minimovi_a/test/00001", "minimovi_a/test/00002"],
        },
        "models": {
            "blocks": {"metrics": {"video_fg_ari": [0.1, nan, 0.1]}},
            "student": {
                "metrics": {"video_fg_ari": [0.5, nan, 0.9], "video_mbo": [0.25, 0.25, 0.25]},
                "parameters": 1_250_000,
                "ms_per_frame": 2.0,
                "ms_per_frame_turns": [2.0, 4.0, 1.0],
                "checkpoint": "0123",
            },
            "teacher": {
                "metrics": {
                    "video_fg_ari": np.array([0.8, nan, 0.8], np.float32),
                    "video_mbo": [0.5, 0.5, 0.5],
                    "identity_switches": [0.04, 0.04, 0.04],
                    "f": [nan, nan, nan],
                },
                "parameters": np.int64(5_000_000),
                "ms_per_frame": 5.5,
                "ms_per_frame_turns": [5.0, 8.0, 6.0],
            },
        },
    }


def test_a_file_gives_back_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.json"
    written = results.write_results(path, content())
    text = path.read_text()
    assert "NaN" not in text
    assert json.loads(text) == written
    read = results.read_results(path)
    assert read["config"] == {"steps": 10, "size": [2, 3]}
    assert read["models"]["teacher"]["parameters"] == 5_000_000
    scores = read["models"]["teacher"]["metrics"]["video_fg_ari"]
    np.testing.assert_array_equal(scores, np.array([0.8, math.nan, 0.8], np.float32))
    assert list(read["models"]) == ["blocks", "student", "teacher"]
    assert results.numbers(read) == results.numbers(content())


def test_a_run_says_when_on_what_and_with_what(tmp_path: Path) -> None:
    asked = {key: content()[key] for key in ("config", "seeds", "models")}
    given = asked | {"split": "test", "ids": ["x", "y", "z"], "started": time.monotonic() - 90}
    found = results.run_results(dataset="minimovi_a", origin="here", **given)
    assert found["data"] == {
        **{"name": "minimovi_a", "version": minimovi.VERSION},
        **{"split": "test", "ids": ["x", "y", "z"]},
    }
    assert 90 <= found["wall_seconds"] < 100
    environment = found["environment"]
    assert environment["packages"]["torch"].startswith("2.")
    assert None not in environment["packages"].values()
    assert environment["hardware"]["cores"] >= 1
    assert environment["hardware"]["cpu"]
    assert 0.5 < environment["hardware"]["memory_gib"] < 16_384
    revision = environment["source"]
    assert revision is None or (len(revision["revision"]) == 40 and "changed" in revision)
    path = tmp_path / "results.json"
    assert results.write_results(path, found)["origin"] == "here"
    again = results.read_results(path) | {"added": 1}
    assert results.write_results(path, again)["environment"] == environment, "as it was then"
    noise = results.run_results(dataset="noise", version="1", **given)
    assert noise["data"]["version"] == "1"


def test_a_checkout_says_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    assert results.environment()["source"] is None
    who = ["-c", "user.name=a", "-c", "user.email=b"]
    for command in (["init"], [*who, "commit", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    assert results.environment()["source"]["changed"] is False
    (tmp_path / "file").touch()
    assert results.environment()["source"]["changed"] is True


@pytest.mark.parametrize("key", ["config", "models", "environment"])
def test_a_missing_key_is_named_and_nothing_is_written(tmp_path: Path, key: str) -> None:
    incomplete = content()
    del incomplete[key]
    with pytest.raises(ValueError, match=rf"lack \['{key}'\]"):
        results.write_results(tmp_path / "results.json", incomplete)
    assert list(tmp_path.iterdir()) == []


def test_data_need_ids_and_metrics_one_value_a_video(tmp_path: Path) -> None:
    without_ids = content()
    del without_ids["data"]["ids"]
    with pytest.raises(ValueError, match=r"lacks \['ids'\]"):
        results.write_results(tmp_path / "results.json", without_ids)
    short = content()
    short["models"]["student"]["metrics"]["video_mbo"] = [0.25, 0.25]
    with pytest.raises(ValueError, match="student has 2 values of video_mbo for 3 videos"):
        results.write_results(tmp_path / "results.json", short)


def test_what_cannot_be_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    whole = results.write_results(path, content())
    path.write_text(json.dumps(whole | {"data": {"name": "minimovi_a"}}))
    with pytest.raises(ValueError, match=r"results.json is damaged .* lacks \['version'"):
        results.read_results(path)
    whole["models"]["student"]["metrics"]["video_mbo"].pop()
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="student has 2 values of video_mbo for 3 videos"):
        results.read_results(path)


def test_a_missing_file_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the notebook"):
        results.read_results(tmp_path / "results.json")


def test_numbers_by_hand() -> None:
    quoted = results.numbers(content())
    assert quoted["n_videos"] == 3
    assert quoted["wall_minutes"] == 1.5
    # All counted videos alike, so the interval is the mean itself.
    assert quoted["teacher_video_fg_ari"] == "80.0 [80.0, 80.0]"
    assert quoted["teacher_video_mbo"] == "50.0 [50.0, 50.0]"
    assert quoted["teacher_identity_switches"] == "0.04 [0.04, 0.04]"
    assert "teacher_f" not in quoted
    assert quoted["student_video_fg_ari_mean"] == pytest.approx(70.0)
    interval = stats.mean_interval([0.5, 0.9])
    text = f"70.0 [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    assert quoted["student_video_fg_ari"] == text
    assert quoted["teacher_parameters"] == "5.00 M"
    assert quoted["student_parameters"] == "1.25 M"
    assert quoted["student_fewer_parameters"] == 4.0
    assert quoted["student_ms_per_frame"] == "2.0"
    # The ratios of the turns are 2.5, 2 and 6, and their median is not the medians' 6 / 2.
    assert quoted["student_speedup"] == "2.50 [2.25, 4.25]"
    assert "teacher_speedup" not in quoted
    assert "blocks_speedup" not in quoted
    assert all(type(value) in (str, int, float) for value in quoted.values())


def test_one_video_has_no_interval() -> None:
    single = content()
    single["models"] = {"teacher": {"metrics": {"video_fg_ari": [math.nan, 0.5, None]}}}
    quoted = results.numbers(single)
    assert quoted["teacher_video_fg_ari"] == "50.0"
    assert quoted["teacher_video_fg_ari_mean"] == 50.0


def test_intervals_are_of_the_models_that_have_the_metric() -> None:
    found = results.intervals(content(), "video_mbo")
    assert found == {"student": (25.0, 25.0, 25.0), "teacher": (50.0, 50.0, 50.0)}
    assert results.intervals(content(), "f") == {}


def test_table_by_hand() -> None:
    table = results.comparison_table(content())
    assert list(table.index) == ["Teacher", "Student (SlotMatch)", "blocks"]
    assert list(table.columns) == ["FG-ARI", "mBO", "parameters", "ms per frame"]
    assert list(table.loc["Teacher"]) == ["80.0 [80.0, 80.0]", "50.0 [50.0, 50.0]", "5.00 M", "5.5"]
    assert list(table.loc["blocks"]) == ["10.0 [10.0, 10.0]", "-", "-", "-"]
    followed = content()
    followed["models"]["student"]["metrics"]["slot_cosine"] = [0.5, 0.5, 0.5]
    found = results.comparison_table(followed)["slot cosine"]
    assert list(found) == ["-", "0.50 [0.50, 0.50]", "-"]


def test_differences_by_hand() -> None:
    found = content()
    found["models"]["blocks"]["metrics"] = {"video_fg_ari": [0.3, 0.9, None]}
    text = results.difference(found, "student", "teacher", "video_fg_ari")
    # -30 and +10 on the two videos that count: nothing beyond them can be a mean of draws.
    assert text == "-10.0 [-30.0, +10.0]"
    assert results.difference(found, "student", "teacher", "video_mbo") == "-25.0 [-25.0, -25.0]"
    single = results.difference(found, "blocks", "student", "video_fg_ari")
    assert single == "-20.0", "one video has no interval"


def test_differences_over_seeds_count_seeds_and_videos() -> None:
    def run(*scores: float) -> dict[str, Any]:
        pairs = {"student": scores, "no_term": [0.5, 0.5, None]}
        return {"models": {k: {"metrics": {"video_mbo": v}} for k, v in pairs.items()}}

    runs = [run(0.6, 0.8, 0.1), run(0.7, 0.9, 0.2)]
    expected = stats.crossed([[10, 30], [20, 40]]).interval()  # the third video is skipped
    text = results.seeds_difference(runs, "student", "no_term", "video_mbo")
    assert text == f"+25.0 [{expected.low:+.1f}, {expected.high:+.1f}]"
