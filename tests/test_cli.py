import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slotmatch import data, model
from slotmatch.__main__ import MASKS, main
from slotmatch.data import minimovi
from slotmatch.evaluation import evaluate
from slotmatch.export import OnnxModel
from slotmatch.segmentation import segment

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
    config = model.ModelConfig(
        backbone="embedded",
        image_size=32,
        n_slots=4,
        slot_dim=8,
        decoder_hidden=8,
        decoder_layers=1,
    )
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
    assert len(entry["checkpoint"]) == 64
    shown = capsys.readouterr().out
    assert f"{100 * np.mean(expected['video_mbo']):.1f} [" in shown
    assert str(path) in shown


def test_data_says_what_there_is(data_set, capsys):
    assert main(["data", "minimovi_a", "--split", "test", "--videos", "2"]) == 0
    assert capsys.readouterr().out == (
        "minimovi_a test: 2 videos of 3x24x24 (frames x rows x columns) with 1 to 3 objects\n"
    )


def test_segment_writes_masks_and_overlay(frames, checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["segment", str(frames), "--model", str(checkpoint), "--output", str(output)]
    assert main([*arguments, "--overlay"]) == 0
    written = sorted((output / "masks").iterdir())
    masks = np.stack([np.asarray(Image.open(path)) for path in written])
    np.testing.assert_array_equal(masks, segment(str(frames), str(checkpoint)))
    assert (output / "overlay.mp4").stat().st_size > 0
    assert str(output / "overlay.mp4") in capsys.readouterr().out


def test_segment_takes_either_kind_of_masks(frames, checkpoint, tmp_path):
    assert MASKS == model.MASKS
    output = tmp_path / "out"
    arguments = ["segment", str(frames), "--model", str(checkpoint), "--output", str(output)]
    assert main([*arguments, "--masks", "attention"]) == 0
    masks = np.stack([np.asarray(Image.open(path)) for path in sorted(output.rglob("*.png"))])
    expected = segment(str(frames), str(checkpoint), masks="attention")
    np.testing.assert_array_equal(masks, expected)


@pytest.mark.slow
def test_export_writes_a_file_and_says_what_it_takes(checkpoint, tmp_path, capsys):
    path = tmp_path / "tiny.onnx"
    assert main(["export", str(checkpoint), str(path)]) == 0
    assert OnnxModel(path).image_size == 32
    shown = capsys.readouterr().out
    assert f"{path}: {path.stat().st_size / 1e6:.1f} MB" in shown
    assert "frames of 32 x 32 pixels, 4 slots" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "movi_d"], "the files of movi_d are not on this machine.*minimovi_d"),
        (["evaluate", "no-such-model", "minimovi_a"], "'no-such-model' is neither a file nor"),
        (["evaluate", "MODEL", "ytvis2021"], "the files of ytvis2021 are not on this machine"),
        (["export", "no-such-model", "OUT"], "'no-such-model' is neither a file nor"),
        (["segment", "no.mp4", "--model", "MODEL", "--output", "OUT"], "no.mp4"),
        (["segment", "EMPTY", "--model", "MODEL", "--output", "OUT"], "EMPTY"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(
    arguments, message, checkpoint, tmp_path, capsys
):
    (tmp_path / "EMPTY").mkdir()
    places = {"MODEL": checkpoint, "OUT": tmp_path / "out", "EMPTY": tmp_path / "EMPTY"}
    assert main([str(places.get(argument, argument)) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith(f"slotmatch {arguments[0]}: ")
    assert re.search(message, error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["data", "minimovi_z"], "invalid choice: 'minimovi_z'.*minimovi_a"),
        (["data", "minimovi_a", "--videos", "0"], "'0' is not a whole number of 1 or more"),
        (["segment", "video.mp4"], "required: --output"),
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
