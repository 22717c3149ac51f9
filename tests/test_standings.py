"""Models and baselines on test videos: the file, what it says of videos, reported numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import result

from slotmatch import evaluation, paths
from slotmatch.data import Clip
from slotmatch.evaluation import baselines
from slotmatch.experiments import standings
from slotmatch.reporting import reported


def clip_of(labels: np.ndarray) -> Clip:
    return Clip(np.zeros((*labels.shape, 3), np.uint8), labels, "one")


def test_facts_by_hand() -> None:
    labels = np.zeros((4, 4, 4), int)
    labels[:, :2, :2] = 3  # 4 pixels in every frame
    labels[0, 2:] = 5  # 8 pixels, then 4 (half is in view), 3 and none
    labels[1, 2] = 5
    labels[2, 2, :3] = 5
    found = standings.facts([clip_of(labels)])
    assert found == {"objects": [2], "coverage": [round(31 / 64, 5)], "hidden": [2 / 8]}


def content_of(teacher: list[float], student: list[float], **facts: list[float]) -> dict:
    models = {"teacher": teacher, "student": student}
    return {
        "models": {name: {"metrics": {"video_fg_ari": own}} for name, own in models.items()},
        "facts": facts,
    }


def test_groups_of_videos_that_are_alike() -> None:
    content = content_of([0.9, 0.7, 0.5, 0.1], [0.8, 0.8, 0.2, 0.2], objects=[3, 3, 6, 8])
    found = standings.by_fact(content, "objects", 2)
    expected = {"objects": [3, 7], "teacher": [80, 30], "student": [80, 20]}
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected), check_dtype=False)


def test_where_the_student_is_behind_and_ahead() -> None:
    content = content_of([0.9, 0.7, 0.5, 0.1], [0.8, 0.75, 0.2, 0.2])
    assert standings.extremes(content, 1) == {"behind": [2], "ahead": [3]}
    content["models"]["student"]["metrics"]["video_fg_ari"] = [0.4, float("nan"), 0.1, 0.8]
    assert standings.worst(content) == 2


def test_colours_and_places_are_means_of_patches() -> None:
    video = np.zeros((2, 4, 4, 3), np.uint8)
    video[:, :2, :2, 0], video[1, 2:, 2:, 1] = 255, 51
    clip = Clip(video, np.ones((2, 4, 4), int), "one")
    (found,) = baselines.colours_and_places([clip], 2)
    assert found.shape == (2, 4, 5)
    np.testing.assert_allclose(found.reshape(-1, 5).std(0)[[0, 1, 3, 4]], 1)
    assert (found[:, :, 0] > 0).tolist() == [[True, False, False, False]] * 2
    assert (found[:, :, 1] > 0).tolist() == [[False] * 4, [False, False, False, True]]
    assert not found[..., 2].any()  # a channel that never changes stays as it is
    assert len(np.unique(found[0, :, 3:], axis=0)) == 4
    np.testing.assert_array_equal(found[0, :, 3:], found[1, :, 3:])
    with pytest.raises(ValueError, match=r"one: frames \(4, 4\) do not divide into 3 x 3"):
        baselines.colours_and_places([clip], 3)


@pytest.mark.slow
def test_the_file_has_what_evaluation_gives(tmp_path: Path) -> None:
    found = standings.measure("minimovi_a", tmp_path / "a.json", preset="smoke")
    assert json.loads((tmp_path / "a.json").read_text()) == found
    clips = standings.planned(standings.Condition(), "minimovi_a", preset="smoke").open("test")
    assert found["data"]["ids"] == [clip.id for clip in clips]
    own = evaluation.evaluate(standings.load("mini-student"), clips)
    assert found["models"]["student"]["metrics"]["video_fg_ari"] == pytest.approx(
        own["video_fg_ari"],
        abs=0.02,  # features are kept as half floats
    )
    scores = {name: entry["metrics"]["video_fg_ari"] for name, entry in found["models"].items()}
    assert scores["oracle of the patch grid"] > scores["grid of blocks"]
    assert {"teacher", "student, attention masks", "k-means, colours and places"} < set(scores)
    assert {"slot_cosine", "same_slot_objects"} <= set(found["models"]["student"]["metrics"])
    assert {len(own) for own in found["facts"].values()} == {len(clips)}


def test_reported_numbers_have_a_source_and_one_protocol() -> None:
    rows = pd.read_csv(paths.RESULTS / "reported" / "accuracy.csv", dtype=str)
    assert set(rows.protocol) == set(reported.PROTOCOLS)
    assert rows.source.str.len().min() > 10
    assert not rows.duplicated(["protocol", "method", "dataset", "metric"]).any()
    assert not rows.method.str.contains("SlotMatch").any()
    with pytest.raises(ValueError, match="no protocol is called 'mixed'"):
        reported.read_accuracy("mixed")


def test_the_papers_own_cells_are_said_not_to_be_known() -> None:
    table = reported.accuracy_table("slotcontrast")
    own = table.loc["SlotMatch", "reported"]
    assert set(own["MOVi-E"]) == set(own["OVIS"]) == {"not available to us"}
    assert set(own["MOVi-C"]) == {"-"}  # not a data set of the paper
    assert table.loc["SlotContrast", ("reported", "MOVi-E", "FG-ARI")] == "82.9"
    assert "run here" not in table.columns.get_level_values(0)  # nobody has run it
    told = reported.sources("slotcontrast")
    assert told.loc["arXiv 2606.15527 (SSync)", "methods"] == "SRL, SlotCurri, SSync"


def test_what_was_run_stands_in_its_own_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reported").mkdir()
    csv = (paths.RESULTS / "reported" / "accuracy.csv").read_bytes()
    (tmp_path / "reported" / "accuracy.csv").write_bytes(csv)
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    entry = {"metrics": {"video_fg_ari": [0.8, 0.9], "video_mbo": [0.3, None]}}
    rules = {"config": {"precision": "no"}, "protocol": {"name": "slotcontrast"}}
    content = result({"model": entry}, 2, "movi_e", **rules)
    path = tmp_path / "paper" / "movi_e.student.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    table = reported.accuracy_table("slotcontrast")
    assert list(table["run here"].columns) == [("MOVi-E", "FG-ARI"), ("MOVi-E", "mBO")]
    assert list(table.loc["SlotMatch", "run here"]) == ["85.0", "30.0"]
    assert set(table["run here"].drop(index="SlotMatch").to_numpy().ravel()) == {"-"}
    assert table.loc["SlotMatch", ("reported", "MOVi-E", "mBO")] == "not available to us"
    content["config"]["precision"] = "bf16"
    path.write_text(json.dumps(content))
    table = reported.accuracy_table("slotcontrast")
    assert list(table.loc["SlotMatch", "run here"]) == ["85.0 (bf16)", "30.0 (bf16)"]
    content["protocol"]["name"] = "original"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="score it again with --protocol slotcontrast"):
        reported.accuracy_table("slotcontrast")


def test_where_the_models_are_not_ahead_is_what_the_limits_say() -> None:
    models, others = (
        standings.read_standings()[name]["models"] for name in ("minimovi_c", "minimovi_d")
    )

    def mean(name: str, metric: str, of: dict[str, Any] = models) -> float:
        return float(np.nanmean(np.array(of[name]["metrics"][metric], float)))

    simple = "k-means, teacher's features"
    for role in ("teacher", "student"):
        assert mean(simple, "video_fg_ari") > mean(role, "video_fg_ari")
        assert mean(simple, "video_mbo") < mean(role, "video_mbo")
        for metric in ("video_fg_ari", "video_mbo"):
            assert mean(simple, metric) < mean(f"{role}, attention masks", metric)
    assert mean(simple, "video_fg_ari", others) < mean("student", "video_fg_ari", others)
    assert abs(mean(simple, "video_mbo", others) - mean("student", "video_mbo", others)) < 0.005
    oracle = "oracle of the patch grid"
    assert mean(oracle, "video_fg_ari", others) < mean(
        "teacher, attention masks", "video_fg_ari", others
    )
    assert mean(oracle, "video_fg_ari") > mean("teacher, attention masks", "video_fg_ari")
    for page in ("README.md", "book/limits.md"):
        assert "**Not everywhere ahead.** On `minimovi_c`" in (paths.REPOSITORY / page).read_text()
