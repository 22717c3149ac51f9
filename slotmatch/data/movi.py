"""MOVi-A to MOVi-E as published: TFDS files, read and written without TensorFlow.

The data of "Kubric: a scalable dataset generator" (Greff et al., CVPR 2022), 24 frames at 12 per
second, here at 128x128. A folder ``movi_e/128x128/1.0.0`` holds

* ``dataset_info.json``: how many videos there are in each file of each split,
* ``features.json``: what is known of a video, and in which form,
* ``movi_e-train.tfrecord-00000-of-01024`` and so on, the shards: the videos.

Two features of a video are read: ``video``, one RGB PNG file a frame, and ``segmentations``, one
grey PNG file a frame, 0 for the background and any other number one object. The rest (flow, depth,
normals, positions) makes up most of the bytes. All this follows ``challenges/movi/movi_a.py`` to
``movi_e.py`` of github.com/google-research/kubric, which tensorflow-datasets turned into files.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from slotmatch import paths
from slotmatch.data.catalogue import Report, not_here
from slotmatch.data.clips import LazyClips, LazyVideo
from slotmatch.data.files import first_videos
from slotmatch.data.tfrecord import Feature, decode_example, offsets, read_record
from slotmatch.progress import hidden

__all__ = [
    "FEATURES",
    "INFO",
    "NAMES",
    "PUBLISHED",
    "VERSION",
    "Movi",
    "Split",
    "check",
    "command",
    "data_folder",
    "listed_splits",
    "open_split",
    "read_splits",
]

VERSION = "1.0.0"
INFO, FEATURES = "dataset_info.json", "features.json"

PUBLISHED: Mapping[str, Mapping[str, int | None]] = MappingProxyType(
    {
        "movi_a": {"train": 9703, "validation": None},
        "movi_b": {"train": None, "validation": None},
        "movi_c": {"train": 9737, "validation": 250, "test": None},
        "movi_d": {"train": None, "validation": None, "test": None},
        "movi_e": {"train": 9749, "validation": 250, "test": 999},
    }
)
"""Videos of each split, as far as people who have the files say (google-research/kubric issue 286
and ayshrv/gmrw issue 9 for E); Kubric's own page rounds to 9,750 and 250. Only C, D and E have
``test``. What decides is ``dataset_info.json``; a difference is told by ``check``.
"""
NAMES = tuple(PUBLISHED)

_MODES = {"video": "RGB", "segmentations": "L"}  # feature -> Pillow's name of its kind of image


@dataclass(frozen=True)
class Split:
    """One split as ``dataset_info.json`` describes it: how many videos each of its files has."""

    name: str
    split: str
    shard_lengths: tuple[int, ...]

    @property
    def n_videos(self) -> int:
        """Videos in all shards."""
        return sum(self.shard_lengths)

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the files."""
        n = len(self.shard_lengths)
        return tuple(f"{self.name}-{self.split}.tfrecord-{i:05d}-of-{n:05d}" for i in range(n))

    def needed(self, n_videos: int | None) -> tuple[str, ...]:
        """The shards that hold the first ``n_videos`` videos; None means all."""
        if n_videos is None or n_videos >= self.n_videos:
            return self.shards
        before = accumulate(self.shard_lengths, initial=0)
        return tuple(shard for shard, n in zip(self.shards, before, strict=False) if n < n_videos)


class Movi(LazyClips):
    """Videos of one split, each read from its shard and decoded when asked for.

    Ids such as ``movi_e/validation/00012`` are positions in the split: the order of the shards and
    of the records in them, the same for everybody who has the published files.
    """

    def __init__(self, folder: Path, places: Sequence[tuple[str, int]], prefix: str) -> None:
        super().__init__(f"{prefix}/{i:05d}" for i in range(len(places)))
        self.folder, self.places = folder, tuple(places)

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Video uint8 (T,H,W,3) and labels int32 (T,H,W) of one clip."""
        record = self._record(position)
        with self._telling(position):
            features = decode_example(record, tuple(_MODES))
            video, labels = (_frames(_numbered(features[key], key), key) for key in _MODES)
            if video.shape[:3] != labels.shape:
                raise ValueError(f"the video is {video.shape} and its segmentations {labels.shape}")
        return video, labels.astype(np.int32)

    def video(self, position: int) -> LazyVideo:
        """The frames of one clip, each a PNG file in the record, of which no mask is decoded."""

        def decode(numbered: Sequence[tuple[int, bytes]]) -> np.ndarray:
            with self._telling(position):
                return _frames(numbered, "video")

        record = self._record(position)
        with self._telling(position):
            features = decode_example(record, ("video",))
            return LazyVideo(_numbered(features["video"], "video"), decode)

    def files(self, position: int) -> list[Path]:
        """The shard, of which a clip's id gives the place."""
        return [self.folder / self.places[position][0]]

    def _record(self, position: int) -> bytes:
        shard, start = self.places[position]
        return read_record(self.folder / shard, start)

    @contextmanager
    def _telling(self, position: int) -> Iterator[None]:
        """An error says in which record it is."""
        shard, start = self.places[position]
        try:
            yield
        except ValueError as error:
            where = f"{self.ids[position]}, the record at byte {start} of {self.folder / shard}"
            raise ValueError(f"{where}: {error}") from error


def data_folder(name: str, root: str | PathLike[str] | None = None) -> Path:
    """Where the files of a set are, or would be."""
    return Path(root or paths.data_dir()) / name / "128x128" / VERSION


def command(name: str, split: str | None = None, n_videos: int | None = None) -> str:
    """What to type to get the files."""
    options = [f"--split {split}"] if split else []
    options += [f"--max-videos {n_videos}"] if n_videos else []
    return " ".join(["python -m slotmatch data download", name, *options])


def read_splits(folder: Path, name: str) -> dict[str, Split]:
    """The splits that ``dataset_info.json`` in a folder lists.

    Raises:
        ValueError: as ``listed_splits``.
    """
    path = folder / INFO
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); delete it and {command(name)}") from error
    return listed_splits(info, name, str(path))


def listed_splits(info: Any, name: str, where: str) -> dict[str, Split]:
    """The splits by name, from the content of ``dataset_info.json``.

    Raises:
        ValueError: it is not one of tensorflow-datasets, or of another set; ``where`` is told.
    """
    try:
        found, form = info["name"], info.get("fileFormat", "tfrecord")
        lengths = {s["name"]: tuple(map(int, s["shardLengths"])) for s in info["splits"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{where} does not list the shards of a data set: {type(error).__name__} {error}"
        ) from error
    if (found, form) != (name, "tfrecord"):
        raise ValueError(f"{where} describes {found} as {form} files, not {name} as tfrecord files")
    return {split: Split(name, split, n) for split, n in lengths.items()}


def open_split(
    name: str,
    split: str,
    *,
    n_videos: int | None = None,
    root: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Movi:
    """The first ``n_videos`` videos of a split, or all; only their shards need to be there.

    The place of every record is looked up once and kept under ``paths.cache_dir()``.

    Raises:
        ValueError: no such split, more videos than it has, or a damaged shard.
        FileNotFoundError: files are missing.
    """
    folder = data_folder(name, root)
    splits = read_splits(folder, name) if (folder / INFO).is_file() else {}
    choices = tuple(splits or PUBLISHED[name])
    if split not in choices:
        raise ValueError(f"{name} has no split {split!r}; choose from {', '.join(choices)}")
    how = f"get them with {command(name, split, n_videos)}"
    if not splits:
        raise not_here(name, how)
    entry = splits[split]
    wanted = first_videos(range(entry.n_videos), n_videos, f"{name} {split}")
    shards = entry.needed(len(wanted))
    there = [(folder / shard).is_file() for shard in shards]
    if not any(there):
        raise not_here(name, how)
    if not all(there):
        whole = sum(entry.shard_lengths[: there.index(False)])
        raise FileNotFoundError(
            f"{folder} has {sum(there)} of the {len(shards)} shards needed of {name} {split} and "
            f"{shards[there.index(False)]} is the first one missing: "
            f"{how.replace('them', 'the rest')}, or ask for n_videos of {whole} or less"
        )
    starts, damaged = _starts(folder, entry, shards, progress)
    if damaged:
        raise ValueError(next(iter(damaged.values())))
    places = [(shard, start) for shard in shards for start in starts[shard]]
    return Movi(folder, places[: len(wanted)], f"{name}/{split}")


def check(name: str, root: str | PathLike[str] | None = None) -> Report:
    """What of a set is there. Lengths of records are checked, their contents when they are read.

    Raises:
        ValueError: ``dataset_info.json`` is damaged.
    """
    folder = data_folder(name, root)
    if not (folder / INFO).is_file():
        missing = [f"{split}: {n or 'all'} videos" for split, n in PUBLISHED[name].items()]
        return Report(name, folder, (), tuple(missing), command(name))
    present: list[str] = []
    missing, differs = [], []
    for entry in read_splits(folder, name).values():
        shards = [shard for shard in entry.shards if (folder / shard).is_file()]
        starts, damaged = _starts(folder, entry, shards)
        whole = sum(map(len, starts.values()))
        line = (
            f"{entry.split}: {whole} of {entry.n_videos} videos in {len(shards)} of "
            f"{len(entry.shards)} shards"
        )
        published = PUBLISHED[name].get(entry.split)
        if published not in (None, entry.n_videos):
            differs.append(f"{entry.split}: {entry.n_videos} videos, {published} are published")
        (present if whole == entry.n_videos else missing).append(line)
        missing += damaged.values()
    return Report(
        name, folder, tuple(present), tuple(missing), command(name), differs=tuple(differs)
    )


def _starts(
    folder: Path, entry: Split, shards: Sequence[str], progress: bool | None = None
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Where the records of each whole shard start, and what is wrong with each damaged one.

    Remembered for shards of the same size and time: to look it up takes a read for every record.
    """
    key = hashlib.sha256(f"{folder.resolve()}/{entry.split}".encode()).hexdigest()[:16]
    cache = paths.cache_dir() / "movi" / f"{entry.name}-{entry.split}-{key}.json"
    known = _remembered(cache)
    states = {shard: (folder / shard).stat() for shard in shards}
    marks = {shard: [state.st_size, state.st_mtime_ns] for shard, state in states.items()}
    expected = dict(zip(entry.shards, entry.shard_lengths, strict=True))
    unknown = [s for s in shards if known.get(s, {}).get("mark") != marks[s]]
    damaged = {}
    for shard in tqdm(
        unknown,
        desc=f"indexing {entry.name} {entry.split}",
        unit="shard",
        disable=hidden(progress),
    ):
        known.pop(shard, None)
        try:
            found = offsets(folder / shard)
        except ValueError as error:
            damaged[shard] = str(error)
            continue
        if len(found) != expected[shard]:
            damaged[shard] = (
                f"{folder / shard} holds {len(found)} videos and {INFO} lists {expected[shard]}: "
                "one of the two is not the published file; delete both and fetch them again"
            )
            continue
        known[shard] = {"mark": marks[shard], "starts": found}
    if unknown:
        try:
            with paths.atomic(cache) as temporary:
                temporary.write_text(json.dumps(known))
        except OSError as error:  # it only saves time
            warnings.warn(f"{cache} could not be kept ({error}): it is made anew", stacklevel=2)
    whole = [shard for shard in shards if shard not in damaged]
    return {shard: known[shard]["starts"] for shard in whole}, damaged


def _remembered(cache: Path) -> dict[str, Any]:
    if not cache.is_file():
        return {}
    try:
        return json.loads(cache.read_text())
    except ValueError:
        return {}  # it is looked up and written again


def _numbered(files: Feature, feature: str) -> list[tuple[int, bytes]]:
    """The PNG file of every frame, with its number."""
    if not isinstance(files, list) or not files:
        raise ValueError(f"feature {feature!r} does not hold a PNG file for every frame")
    return list(enumerate(files))


def _frames(numbered: Sequence[tuple[int, bytes]], feature: str) -> np.ndarray:
    """uint8 (T,H,W) or (T,H,W,3) from PNG files with the numbers of their frames."""
    frames: list[np.ndarray] = []
    for number, file in numbered:
        try:
            with Image.open(io.BytesIO(file), formats=("PNG",)) as image:
                mode, frame = image.mode, np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"frame {number} of {feature!r} is no PNG file: {error}") from error
        frames.append(frame)
        if (mode, frame.shape) != (_MODES[feature], frames[0].shape):
            raise ValueError(
                f"frame {number} of {feature!r} is {mode} {frame.shape}: all must be "
                f"{_MODES[feature]} and of one size"
            )
    return np.stack(frames)
