"""(f) Training clips from files: whole videos as floats, or only their frames as bytes."""

import io
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.comparison import Comparison, Settings
from slotmatch.data.clips import LazyClips
from slotmatch.data.movi import Movi
from slotmatch.data.preprocessing import PREPROCESSING, clip_starts
from slotmatch.data.tfrecord import offsets
from slotmatch.data.ytvis import Video, YouTubeVis
from slotmatch.profiling import milliseconds, peak_memory, take_turns
from slotmatch.training import Frames, TrainConfig
from slotmatch.training.loading import Chance, Reading, batches
from tests.movi_files import encode_example, write_records

__all__ = ["measure"]

N_VIDEOS = 2
LENGTH = 4
BATCH, CORES = 64, 16


class Size(NamedTuple):
    """Of the videos of a data set and of the squares they become, and of a batch that is timed."""

    n_frames: int
    height: int
    width: int
    side: int
    n_clips: int


SIZES = {"ytvis2021": Size(36, 720, 1280, 518, 2), "movi_e": Size(24, 128, 128, 336, 8)}
QUICK = {"ytvis2021": Size(6, 36, 64, 28, 2), "movi_e": Size(6, 32, 32, 42, 2)}


class WholeVideos(Frames):
    """A worker decodes the whole video of a clip with its masks, resizes, and hands over floats."""

    def cut(self, chance: Chance, share: slice, length: int) -> Tensor:  # type: ignore[override]
        """The clips of a batch, floats (B,T,3,S,S)."""
        assert self.preprocessing is not None
        found = []
        for place in range(len(chance.videos))[share]:
            video = self.clips[int(chance.videos[place])].video
            starts = clip_starts(len(video), length, aligned=self.preprocessing.aligned_starts)
            start = starts[int(chance.places[place] * len(starts))]
            rng = np.random.default_rng(chance.crops[place])
            found.append(self.preprocessing.train(video[start : start + length], rng))
        return torch.stack(found)


WAYS = {"whole videos": WholeVideos, "frames of the clip": Frames}


def measure(settings: Settings) -> Iterator[Comparison]:
    """A comparison for each data set, of both ways with no worker, one and two.

    Times are of a batch's way to the process that trains. What is left to do there, which is to
    resize the bytes, is measured by itself ("finish").
    """
    sizes = QUICK if settings.quick else SIZES
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            write(name, size, Path(folder))
            arguments = (name, size, Path(folder))
            entries = {
                f"{way}, {workers} workers": (way, workers) for workers in (0, 1, 2) for way in WAYS
            }
            jobs = {
                entry: prepare(way, workers, *arguments)
                for entry, (way, workers) in entries.items()
            }
            jobs |= {
                f"{way}, finish on {settings.device}": prepare_finish(
                    way, settings.device, *arguments
                )
                for way in WAYS
            }
            turns = take_turns(jobs, repeats=settings.repeats)
            facts = {
                entry: {"s per batch, 16 cores": _extrapolated(turns[entry], workers)}
                for entry, (_, workers) in entries.items()
            }
            memory = {f"{way}, 0 workers": peak_memory(prepare, way, 0, *arguments) for way in WAYS}
        yield Comparison(
            title=f"(f) loading, {name}, {size.n_frames} frames of {size.width} x {size.height}",
            unit=f"ms per clip of {LENGTH} frames",
            baseline="whole videos, 0 workers",
            turns=turns,
            memory=memory,
            facts=facts,
        )


def _extrapolated(turns: Sequence[Mapping[str, float]], workers: int) -> float:
    """Seconds for a batch if sixteen workers were as fast as these, each on a core of its own."""
    milliseconds = float(np.median([turn["total"] for turn in turns]))
    return BATCH * milliseconds * max(workers, 1) / CORES / 1000


def prepare(
    way: str, workers: int, name: str, size: Size, folder: Path
) -> Callable[[], dict[str, float]]:
    """The job that reads batches and says how long it took, once every worker gave its first."""
    started = max(workers, 1)
    source = WAYS[way](opened(name, size, folder), replace(PREPROCESSING[name], size=size.side))

    def job() -> dict[str, float]:
        loader = loaded(source, size, 2 * started, workers)
        for _ in islice(loader, started):
            begin = time.perf_counter()
        n_clips = sum(reading.size for reading in islice(loader, started))
        seconds = time.perf_counter() - begin
        loader.close()  # which waits for the workers to end
        return {"total": 1000 * seconds / n_clips}

    return job


def prepare_finish(
    way: str, device: str, name: str, size: Size, folder: Path
) -> Callable[[], dict[str, float]]:
    """The job that moves a batch to where it trains and says how long it took."""
    source = WAYS[way](opened(name, size, folder), replace(PREPROCESSING[name], size=size.side))
    (reading,) = loaded(source, size, 1, 0)
    where = torch.device(device)
    return lambda: {"total": milliseconds(lambda: reading.to(where), where) / reading.size}


def loaded(source: Frames, size: Size, steps: int, workers: int) -> Generator[Reading, None, None]:
    """What is read for a few steps of training."""
    config = TrainConfig(steps=steps, warmup_steps=0, batch_size=size.n_clips, clip_length=LENGTH)
    device = torch.device("cpu")
    yield from batches([source], config, first=0, n_patches=1, device=device, workers=workers)


def write(name: str, size: Size, folder: Path) -> None:
    """Videos in the form of their data set, with the features beside the frames that cost time."""
    videos = [frames_of(i, size) for i in range(N_VIDEOS)]
    if name == "ytvis2021":
        for i, frames in enumerate(videos):
            for t, frame in enumerate(frames):
                path = folder / frame_name(i, t)
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(frame).save(path, quality=90)
        return
    rng = np.random.default_rng(0)
    flow = rng.integers(0, 2**16, (size.n_frames, size.height, size.width, 2))
    examples = []
    for frames in videos:
        masks = [np.zeros(frame.shape[:2], np.uint8) for frame in frames]
        features = {"video": png(frames), "segmentations": png(masks)}
        examples.append(encode_example({**features, "forward_flow": flow, "backward_flow": flow}))
    write_records(folder / "shard", examples)


def opened(name: str, size: Size, folder: Path) -> LazyClips:
    """The videos that ``write`` wrote."""
    if name == "movi_e":
        return Movi(folder, [("shard", start) for start in offsets(folder / "shard")], "movi_e")
    entries = []
    for i in range(N_VIDEOS):
        names = tuple(frame_name(i, t) for t in range(size.n_frames))
        square = [[0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0]]
        objects = ((square,) * size.n_frames,) * 2
        entries.append(Video(i, (size.height, size.width), names, objects))
    return YouTubeVis("ytvis2021", entries, folder)


def frame_name(video: int, t: int) -> str:
    """Where a frame of YouTube-VIS lies."""
    return f"{video}/{t:05d}.jpg"


def frames_of(number: int, size: Size) -> list[np.ndarray]:
    """Frames uint8 (H,W,3) with soft shapes and some noise, which pack about as photographs do."""
    rng = np.random.default_rng(number)
    shape = size.height, size.width, 3
    coarse = Image.fromarray(rng.integers(0, 256, (8, 14, 3), np.uint8))
    shapes = np.asarray(coarse.resize((size.width, size.height), Image.Resampling.BICUBIC), int)
    return [
        np.clip(shapes + rng.integers(-6, 7, shape), 0, 255).astype(np.uint8)
        for _ in range(size.n_frames)
    ]


def png(pictures: list[np.ndarray]) -> list[bytes]:
    """PNG files."""
    files = [io.BytesIO() for _ in pictures]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file, "PNG")
    return [file.getvalue() for file in files]
