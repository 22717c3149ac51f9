"""Clips for training from real files: only their frames are read, and no pixel is another one."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from movi_files import encode_example, write_movi, write_records
from PIL import Image
from torch import Tensor

from slotmatch import data
from slotmatch.data.clips import Clip, LazyClips, LazyVideo
from slotmatch.data.davis import Davis
from slotmatch.data.movi import data_folder
from slotmatch.data.preprocessing import Preprocessing
from slotmatch.data.ytvis import Video, YouTubeVis
from slotmatch.training import Frames, TrainConfig
from slotmatch.training.loading import Chance, batches, draw

CPU = torch.device("cpu")
CONFIG = TrainConfig(steps=6, warmup_steps=1, batch_size=3, clip_length=2, flip_probability=0.5)
N_VIDEOS, N_FRAMES = 4, 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))


def noise(number: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def write_pictures(folder: Path, video: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{t:05d}.jpg" for t in range(len(video))]
    for path, frame in zip(paths, video, strict=True):
        Image.fromarray(frame).save(path, quality=95)
    return paths


def movi(root: Path, videos: list[np.ndarray]) -> LazyClips:
    clips = [Clip(video, np.zeros(video.shape[:3], np.int32), "") for video in videos]
    write_movi(clips, root, "movi_e", "train", 2)
    return data.open("movi_e", "train", root=root)


def ytvis(root: Path, videos: list[np.ndarray]) -> LazyClips:
    entries = []
    for i, video in enumerate(videos):
        paths = write_pictures(root / str(i), video)
        names = tuple(str(path.relative_to(root)) for path in paths)
        entries.append(Video(i, video.shape[1:3], names, ()))
    return YouTubeVis("ytvis2021/train", entries, root)


def davis(root: Path, videos: list[np.ndarray]) -> LazyClips:
    for i, video in enumerate(videos):
        write_pictures(root / "JPEGImages/480p" / str(i), video)
        masks = root / "Annotations_unsupervised/480p" / str(i)
        masks.mkdir(parents=True)
        for t in range(len(video)):
            Image.new("L", (video.shape[2], video.shape[1])).save(masks / f"{t:05d}.png")
    return Davis("davis2017", "train", root, [str(i) for i in range(len(videos))])


WRITERS = {"movi_e": movi, "ytvis2021": ytvis, "davis2017": davis}
PREPARE = {
    "movi_e": Preprocessing(21),
    "ytvis2021": Preprocessing(14, "crop"),
    "davis2017": Preprocessing(30, "crop", aligned_starts=False),
}


@pytest.fixture(params=WRITERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def clips(name, tmp_path) -> LazyClips:
    """Four videos as published; those of pictures differ in size."""
    sizes = [(18, 18)] * 4 if name == "movi_e" else [(18, 32), (32, 18), (20, 60), (18, 18)]
    videos = [noise(i, (N_FRAMES, *size, 3)) for i, size in enumerate(sizes)]
    return WRITERS[name](tmp_path / "files", videos)


@pytest.fixture
def opened(monkeypatch) -> list[object]:
    """What Pillow opened."""
    seen: list[object] = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, *a, **k: seen.append(file) or real(file, *a, **k)
    )
    return seen


def from_whole_videos(clips: LazyClips, prepare: Preprocessing, chance: Chance) -> Tensor:
    """A batch (B,T,3,S,S) from whole videos, whose frames are resized as floats, then cut."""
    found, length, side = [], CONFIG.clip_length, prepare.size
    for place, index in enumerate(chance.videos):
        video = clips[int(index)].video
        starts = range(0, N_FRAMES - length + 1, length if prepare.aligned_starts else 1)
        start = starts[int(chance.places[place] * len(starts))]
        frames = torch.from_numpy(video[start : start + length]).permute(0, 3, 1, 2).float() / 255
        height, width = frames.shape[-2:]
        if prepare.square == "crop":
            short = min(height, width)
            rows, columns = side * height // short, side * width // short
        else:
            rows, columns = side, side
        large = F.interpolate(frames, (rows, columns), mode="bicubic").clamp(0, 1)
        rng = np.random.default_rng(chance.crops[place])
        top, left = (rng.integers(n - side + 1) for n in (rows, columns))
        square = large[..., top : top + side, left : left + side]
        found.append(square.flip(-1) if chance.flipped[place] else square)
    return torch.stack(found)


def read(clips: LazyClips, prepare: Preprocessing | None, workers: int = 0) -> list[Tensor]:
    loader = batches(
        [Frames(clips, prepare)], CONFIG, first=0, n_patches=9, device=CPU, workers=workers
    )
    return [reading.to(CPU).clips for reading in loader]


def test_a_slice_is_that_of_the_whole_video(clips):
    for i in range(N_VIDEOS):
        whole, lazy = clips[i].video, clips.video(i)
        assert isinstance(lazy, LazyVideo)
        assert len(lazy) == N_FRAMES
        for frames in (slice(None), slice(2, 5), slice(-1, None), slice(1, None, 3)):
            np.testing.assert_array_equal(lazy[frames], whole[frames])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_whole_videos_to_the_last_bit(clips, name, workers):
    prepare = PREPARE[name]
    for step, found in enumerate(read(clips, prepare, workers)):
        expected = from_whole_videos(clips, prepare, draw(CONFIG, step, N_VIDEOS, 9))
        assert torch.equal(found, expected)


def test_only_the_frames_of_a_clip_are_opened(clips, name, opened):
    source = Frames(clips, PREPARE[name])
    assert source.n_frames == N_FRAMES
    assert not opened
    source.cut(draw(CONFIG, 0, N_VIDEOS, 9), slice(0, 3), 2)
    assert len(opened) == 3 * 2


def test_what_leaves_a_worker_are_the_bytes_that_squares_depend_on(clips, name):
    prepare = PREPARE[name]
    cut = Frames(clips, prepare).cut(draw(CONFIG, 0, N_VIDEOS, 9), slice(0, 3), 2)
    assert cut.pixels.dtype == torch.uint8
    assert cut.pixels.shape == (sum(np.prod(shape) for shape in cut.shapes),)
    changed = replace(cut, pixels=255 - cut.pixels)
    torch.testing.assert_close(changed.float(), 1 - cut.float(), atol=1e-5, rtol=0)


def test_frames_are_resized_where_the_batch_goes(clips, name):
    source = Frames(clips, PREPARE[name])
    (reading,) = batches([source], CONFIG, first=5, n_patches=9, device=CPU)
    batch = reading.to(torch.device("meta"))
    side = PREPARE[name].size
    assert batch.clips.is_meta
    assert batch.clips.shape == (3, 2, 3, side, side)
    assert batch.clips.dtype == torch.float32


@pytest.mark.parametrize("name", WRITERS)
def test_memory_does_not_grow_with_the_length_of_videos(name, tmp_path):
    def peak(n_frames: int) -> int:
        video = np.full((n_frames, 120, 120, 3), 90, np.uint8)
        clips = WRITERS[name](tmp_path / str(n_frames), [video] * 2)
        source, chance = Frames(clips, Preprocessing(60, "crop")), draw(CONFIG, 0, 2, 9)
        source.cut(chance, slice(0, 3), 2)  # what is imported and cached at first does not count
        tracemalloc.start()
        source.cut(chance, slice(0, 3), 2)
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    frame = 120 * 120 * 3
    assert peak(60) < peak(6) + 2 * frame  # 54 frames longer


def spoil_picture(place: str) -> Callable[[Path, int], Path]:
    def spoil(root: Path, t: int) -> Path:
        path = root / place / f"0/{t:05d}.jpg"
        path.write_bytes(path.read_bytes()[:-40])
        return path

    return spoil


def spoil_record(root: Path, t: int) -> Path:
    """A whole record, with its checksum, in which one frame is no picture."""
    folder = data_folder("movi_e", root)
    (path,) = folder.glob("*.tfrecord-*")
    pictures = []
    for i in range(N_FRAMES):
        Image.fromarray(noise(i, (18, 18, 3))).save(root / "frame.png")
        pictures.append((root / "frame.png").read_bytes())
    pictures[t] = pictures[t][:-40]
    write_records(path, [encode_example({"video": pictures, "segmentations": pictures})])
    return path


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("movi_e", spoil_record),
        ("ytvis2021", spoil_picture("")),
        ("davis2017", spoil_picture("JPEGImages/480p")),
    ],
)
def test_a_damaged_frame_stops_the_clips_that_hold_it(name, spoil, tmp_path):
    root, video = tmp_path / "files", noise(0, (N_FRAMES, 18, 18, 3))
    if name == "movi_e":
        write_movi([Clip(video, np.zeros((N_FRAMES, 18, 18), np.int32), "")], root, name, "train")
        path = spoil(root, 5)
        clips = data.open(name, "train", root=root)
    else:
        clips = WRITERS[name](root, [video])
        path = spoil(root, 5)
    told = 0
    for step in range(20):
        chance = draw(replace(CONFIG, batch_size=1), step, 1, 9)
        holds = int(chance.places[0] * (N_FRAMES // 2)) == 2  # frames 4 and 5
        source = Frames(clips, Preprocessing(12))
        if holds:
            told += 1
            with pytest.raises((OSError, ValueError), match=r"cut off|frame 5 of 'video'") as error:
                source.cut(chance, slice(0, 1), 2)
            assert str(path) in str(error.value)
        else:
            assert source.cut(chance, slice(0, 1), 2).float().shape == (1, 2, 3, 12, 12)
    assert 0 < told < 20
    with pytest.raises((OSError, ValueError), match=path.name):
        clips[0]


def test_videos_of_one_batch_have_one_size_unless_they_are_resized(tmp_path):
    clips = ytvis(tmp_path, [noise(i, (4, 18, 20 + i, 3)) for i in range(3)])
    chance = draw(CONFIG, 0, 3, 9)
    with pytest.raises(ValueError, match=r"one batch must have one size, got \[\(2, 18, 20, 3\), "):
        Frames(clips).cut(chance, slice(0, 3), 2)
    resized = Frames(clips, Preprocessing(8)).cut(chance, slice(0, 3), 2).float()
    assert resized.shape == (3, 2, 3, 8, 8)
