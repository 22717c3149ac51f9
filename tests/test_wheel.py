"""The wheel in an environment that has nothing but what it asks for."""

import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from slotmatch.paths import PACKAGE, REPOSITORY

OPTIONAL = ("accelerate", "joblib", "matplotlib", "pandas", "papermill", "pybullet", "sklearn")

pytestmark = pytest.mark.slow


def closure(names: list[str]) -> set[str]:
    """These distributions and all that they need, none of their extras."""
    found: set[str] = set()
    waiting = [(Requirement(name), "") for name in names]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        asked = [(name, ""), *((name, extra) for extra in wanted.extras)]
        for key, extra in asked:
            if (mark := f"{key}[{extra}]") not in found:
                found.add(mark)
                needed = metadata.requires(key) or []
                waiting += [(Requirement(line), extra) for line in needed]
    return {mark.partition("[")[0] for mark in found}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with the wheel and, by links, what its core requires."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = folder / "source"  # a copy, since building leaves files behind
    shutil.copytree(PACKAGE, source / "slotmatch")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    built = ["wheel", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *built], check=True)
    (wheel,) = folder.glob("slotmatch-*.whl")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    target = ["install", "--no-deps", "--no-compile", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *target], check=True)
    (about,) = metadata.distributions(name="slotmatch", path=[str(site)])
    core = [line for line in about.requires or [] if "extra ==" not in line]
    for name in closure(core):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder / "env" / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if "PYTHON" not in key}
    return subprocess.run(
        [str(python), *arguments],
        cwd=cwd,
        env=environment | {"SLOTMATCH_CACHE": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_prints_help_and_segments_a_video(python: Path, tmp_path: Path) -> None:
    for module in OPTIONAL:
        assert run(python, "-c", f"import {module}", cwd=tmp_path).returncode, module
    said = run(python, "-m", "slotmatch", "--help", cwd=tmp_path)
    assert (said.returncode, "segment" in said.stdout) == (0, True), said.stderr
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)
    (tmp_path / "video").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "video" / f"{number}.png")
    done = run(
        python, "-m", "slotmatch", "segment", "video", "--output", "out", "--overlay", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    masks = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("out/masks/*.png"))]
    assert [mask.shape for mask in masks] == [(40, 56)] * 3
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["data", "minimovi_a"], "data"),
        (["train", "student", "--dataset", "minimovi_a", "--output", "run"], "train"),
        (["export", "mini-student", "student.onnx"], "onnx"),
    ],
)
def test_what_is_missing_is_one_sentence(
    python: Path, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    said = run(python, "-m", "slotmatch", *arguments, cwd=tmp_path)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert f"pip install 'slotmatch[{extra}]'" in said.stderr
