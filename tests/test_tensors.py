"""Files of tensors, and where output goes: what is wrong is said in one sentence, early."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from slotmatch import paths, tensors
from slotmatch.__main__ import main
from slotmatch.backbones import build
from slotmatch.experiments.scores import evaluate_to_file
from slotmatch.model import load
from slotmatch.tensors import read_tensors, write_tensors

OWN = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)}


def test_tensors_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(OWN, path, {"made": "here"})
    found, header = read_tensors(path)
    assert header == {"made": "here"}
    assert all(torch.equal(found[name], tensor) for name, tensor in OWN.items())
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode  # others may read it, too


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 88\n")


def half(path):
    save_file(OWN, path)
    path.write_bytes(path.read_bytes()[:-9])


WRONG = {
    "a Git LFS pointer": pointer,
    "a file of torch.save, not": lambda path: torch.save(OWN, path),
    "cut short or not": half,
    "not a safetensors file": lambda path: path.write_bytes(b""),
    "a folder, not a file": Path.mkdir,
}


@pytest.mark.parametrize("said", WRONG)
def test_file_that_is_something_else_says_what(said, tmp_path):
    path = tmp_path / "model.safetensors"
    WRONG[said](path)
    with pytest.raises(ValueError, match=rf"model\.safetensors is .*{said}"):
        read_tensors(path)
    if not path.is_dir():
        with pytest.raises(ValueError, match=rf"{said}.* a model of ours ends in \.safetensors"):
            load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_tensors(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pointer, "is a Git LFS pointer"),
        (half, "is cut short"),
        (lambda path: torch.save(OWN, path), "is a file of torch.save"),
        (lambda path: save_file({"encoder.w": torch.zeros(3)}, path), r"1 tensors \(encoder\.w\)"),
    ],
)
def test_backbone_file_that_does_not_serve_is_named(content, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path))
    path = tmp_path / "weights" / "vit_small_patch14_dinov2.lvd142m.safetensors"
    path.parent.mkdir()
    content(path)
    with pytest.raises(RuntimeError, match=rf"lvd142m\.safetensors .*{said}") as error:
        build("dinov2_vits14", image_size=56)
    assert len(str(error.value)) < 700


def test_disk_that_is_full_is_one_sentence(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match=r"a\.safetensors could not be written: .* No space left"):
        write_tensors(OWN, tmp_path / "a.safetensors")
    assert main(["share", "mini-student", "--folder", str(tmp_path / "shared")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# Where output goes


def test_output_is_looked_at_before_the_work(tmp_path):
    paths.check_output(tmp_path / "new" / "results.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IsADirectoryError, match=r"is a folder: give the path of a file"):
        paths.check_output(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        paths.check_output(tmp_path / "file" / "results.json")
    with pytest.raises(IsADirectoryError):
        evaluate_to_file("no model", "movi_e", tmp_path)
    assert main(["export", "mini-student", str(tmp_path)]) == 1


def test_home_may_be_a_tilde(monkeypatch):
    monkeypatch.setenv("SLOTMATCH_CACHE", "~/kept")
    monkeypatch.setenv("SLOTMATCH_DATA", "~/data")
    assert (paths.cache_dir(), paths.data_dir()) == (Path.home() / "kept", Path.home() / "data")
    monkeypatch.delenv("SLOTMATCH_DATA")
    assert paths.data_dir() == Path.home() / "kept" / "data"


def test_letters_that_the_output_lacks_do_not_end_a_run(tmp_path):
    model = tmp_path / "\u00fc.safetensors"
    result = subprocess.run(
        [sys.executable, "-m", "slotmatch", "evaluate", str(model), "minimovi_a"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "\\xfc.safetensors' is neither a file nor a model" in result.stderr


@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["kill", "Ctrl-C"]
)
def test_a_stop_from_outside_leaves_nothing_half_written(stop, code, tmp_path):
    script = (
        "import sys, time\nfrom slotmatch import __main__ as m, paths\n"
        "def work(arguments):\n"
        f"    with paths.atomic({str(tmp_path / 'out')!r}) as temporary:\n"
        "        temporary.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
        "m.evaluate = work\nsys.exit(m.main(['evaluate', 'x', 'minimovi_a']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.1)
    process.send_signal(stop)
    assert process.wait(timeout=60) == code
    assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_of_the_output_may_leave(unbuffered, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "slotmatch", "data", "check", "movi_e", "--root", str(tmp_path)],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert b"Broken pipe" not in process.stderr.read()
