"""The page that scores the mini models on real video, on small files in DAVIS's own layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image
from test_davis import write_list, write_sequence

from slotmatch import data, evaluation
from slotmatch.model import load
from slotmatch.paths import RESULTS
from slotmatch.reporting.results import read_results

pytestmark = pytest.mark.slow


def test_sequences_that_are_there_are_scored(
    tmp_path: Path, run_notebook: Callable[..., Run]
) -> None:
    root = tmp_path / "davis2016"
    square = np.zeros((4, 6), np.uint8)
    square[1:3, 2:4] = 255
    for name in ("swan", "boat"):
        masks = [Image.fromarray(np.roll(square, t, axis=1)) for t in range(3)]
        write_sequence(root, name, masks, year=2016)
    write_list(root, "ImageSets/480p/val.txt", "swan", "boat")
    results = run_notebook("08_real_video", data=tmp_path).results()
    assert results["data"]["ids"] == ["davis2016/validation/boat", "davis2016/validation/swan"]
    clips = data.open("davis2016", "validation", root=tmp_path)
    expected = evaluation.evaluate(load("mini-student"), clips)["j"]
    assert results["models"]["student"]["metrics"]["j"] == pytest.approx(expected)
    assert len(results["models"]) == 8


def test_without_them_it_says_so_and_shows_what_is_committed(
    tmp_path: Path, run_notebook: Callable[..., Run]
) -> None:
    run = run_notebook("08_real_video", data=tmp_path)
    assert "committed results, since the files of davis2016 are not on this machine" in run.out
    committed = read_results(RESULTS / "davis2016" / "results.json")
    assert run.results() == committed, "what it was measured on included"
    names = [name.rpartition("/")[2] for name in committed["data"]["ids"]]
    assert names == ["blackswan", "camel", "car-shadow", "dog", "libby"]
