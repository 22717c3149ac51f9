"""The page that scores the mini models on real video, on small files in DAVIS's own layout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_davis import write_list, write_sequence

from slotmatch import data, evaluation
from slotmatch.model import load
from slotmatch.paths import NOTEBOOKS, RESULTS
from slotmatch.reporting.results import read_results

NOTEBOOK = NOTEBOOKS / "08_real_video.ipynb"


def papermill(
    folder: Path, *arguments: str, root: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), "-", "-p", "output", "run"]
    environment = {"SLOTMATCH_DATA": str(root or folder / "nothing")}
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_sequences_that_are_there_are_scored(tmp_path: Path) -> None:
    root = tmp_path / "davis2016"
    square = np.zeros((4, 6), np.uint8)
    square[1:3, 2:4] = 255
    for name in ("swan", "boat"):
        masks = [Image.fromarray(np.roll(square, t, axis=1)) for t in range(3)]
        write_sequence(root, name, masks, year=2016)
    write_list(root, "ImageSets/480p/val.txt", "swan", "boat")
    run = papermill(tmp_path, root=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    results = read_results(tmp_path / "run" / "results.json")
    assert results["data"]["ids"] == ["davis2016/validation/boat", "davis2016/validation/swan"]
    clips = data.open("davis2016", "validation", root=tmp_path)
    expected = evaluation.evaluate(load("mini-student"), clips)["j"]
    assert results["models"]["student"]["metrics"]["j"] == pytest.approx(expected)
    assert len(results["models"]) == 8


@pytest.mark.slow
def test_without_them_it_says_so_and_shows_what_is_committed(tmp_path: Path) -> None:
    run = papermill(tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "committed results, since the files of davis2016 are not on this machine" in run.stdout
    found, committed = (
        read_results(folder / "results.json")
        for folder in (tmp_path / "run", RESULTS / "davis2016")
    )
    assert found["models"] == committed["models"]
    names = [name.rpartition("/")[2] for name in committed["data"]["ids"]]
    assert names == ["blackswan", "camel", "car-shadow", "dog", "libby"]


@pytest.mark.slow
def test_simulated_videos_are_refused(tmp_path: Path) -> None:
    run = papermill(tmp_path, "-p", "dataset", "minimovi_a")
    assert run.returncode == 1
    assert "'minimovi_a' is not real video; choose davis2016 or davis2017" in run.stderr
