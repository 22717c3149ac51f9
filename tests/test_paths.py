import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slotmatch import paths


def test_atomic_writes_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "weights.npz"
    with paths.atomic(target) as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_text("first")
        assert not target.exists()
    assert target.read_text() == "first"

    with pytest.raises(KeyError, match="half-way"):
        fail_half_way(target)
    assert target.read_text() == "first"

    with paths.atomic(target) as temporary:
        temporary.write_text("third")
    assert target.read_text() == "third"
    assert list(target.parent.iterdir()) == [target]


def fail_half_way(target: Path) -> None:
    with paths.atomic(target) as temporary:
        temporary.write_text("seco")
        raise KeyError("half-way")


def test_atomic_names_a_writer_that_wrote_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), paths.atomic(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


KILLED_WRITER = """
import sys, time
from slotmatch.paths import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_text("half a fi")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_folders_made_for_what_failed_vanish_with_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), paths.atomic(tmp_path / "a" / "b" / "file"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    paths.check_output(tmp_path / "a" / "b" / "file")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError), paths.atomic(tmp_path / "a" / "b" / "c" / "file"):
        (tmp_path / "a" / "b" / "another").touch()  # and nothing at the temporary path
    assert [left.name for left in (tmp_path / "a" / "b").iterdir()] == ["another"]


def test_a_killed_writer_leaves_the_old_file_and_does_not_stop_the_next(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(target)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"
    assert list(tmp_path.glob("*.json")) == [target]
    with paths.atomic(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_two_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with paths.atomic(target) as slow:
        slow.write_text("slow")
        with paths.atomic(target) as quick:
            quick.write_text("quick")
        assert target.read_text() == "quick"
    assert target.read_text() == "slow"


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SLOTMATCH_DATA", raising=False)
    assert paths.cache_dir() == tmp_path / "cache"
    assert paths.data_dir() == tmp_path / "cache" / "data"
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path / "data"))
    assert paths.data_dir() == tmp_path / "data"
    monkeypatch.delenv("SLOTMATCH_CACHE")
    assert paths.cache_dir() == Path.home() / ".cache" / "slotmatch"
    assert not any((tmp_path / name).exists() for name in ("cache", "data"))


def test_locations_belong_together() -> None:
    assert (paths.REPOSITORY / "pyproject.toml").is_file()
    assert paths.WEIGHTS.is_dir()
    for folder in (paths.NOTEBOOKS, paths.RESULTS, paths.BUILD):
        assert folder.is_relative_to(paths.REPOSITORY)


def test_checksum_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"slots")
    assert paths.checksum(path) == hashlib.sha256(b"slots").hexdigest()
