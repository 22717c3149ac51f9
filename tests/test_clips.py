"""What tells the frames of a clip from others that had its name."""

import os
import shutil

import numpy as np
import pytest
from movi_files import write_movi

from slotmatch import data
from slotmatch.data import Clip, minimovi
from slotmatch.data.clips import LazyClips, content


class Files(LazyClips):
    """A clip a file."""

    def __init__(self, folder):
        self.folder = folder
        super().__init__(sorted(path.name for path in folder.iterdir()))

    def read(self, position):
        raise AssertionError("reading takes too long")

    def files(self, position):
        return [self.folder / self.ids[position]]


def test_lazy_clips_are_told_apart_by_their_files(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"first")
    clips = Files(tmp_path)
    before = [content(clips, i) for i in range(2)]
    assert before[0] != before[1]
    assert [content(Files(tmp_path), i) for i in range(2)] == before
    stat = (tmp_path / "a").stat()
    os.utime(tmp_path / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))  # of equal size
    (tmp_path / "b").write_bytes(b"second one")
    assert all(content(clips, i) != before[i] for i in range(2))


def test_clips_in_memory_are_told_apart_by_their_frames():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    changed = frames.copy()
    changed[1, 3, 3, 2] = 1
    videos = [frames, frames[:, :2], frames.reshape(2, 2, 8, 3), changed, frames.astype(np.int16)]
    found = [content([Clip(video, frames[..., 0], "a")], 0) for video in videos]
    assert len(set(found)) == len(found)
    assert content([Clip(frames.copy(), frames[..., 0], "b")], 0) == found[0]


def test_simulated_videos_are_the_same_wherever_they_are_rendered(tmp_path):
    first, again = (
        minimovi.MiniMovi("minimovi_a", "validation", n_videos=2, root=tmp_path / place)
        for place in ("here", "there")
    )
    for i in range(2):
        assert content(first, i) == content(again, i)
    assert content(first, 0) != content(first, 1)


def test_shards_are_files_of_their_videos(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 64, 64, 3)).astype(np.uint8)
    clips = [
        Clip(video, np.zeros((24, 64, 64), np.int32), str(i)) for i, video in enumerate(frames)
    ]
    write_movi(clips, tmp_path, "movi_e", "validation", 2)
    opened = data.open("movi_e", "validation", root=tmp_path)
    before = [content(opened, i) for i in range(3)]
    assert before[0] == content(data.open("movi_e", "validation", n_videos=1, root=tmp_path), 0)
    shutil.rmtree(tmp_path / "movi_e")
    write_movi([*clips[:2], clips[0]], tmp_path, "movi_e", "validation", 2)
    opened = data.open("movi_e", "validation", root=tmp_path)
    assert content(opened, 2) != before[2]
    with pytest.raises(IndexError):
        content(opened, 3)
