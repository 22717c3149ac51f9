"""YouTube-VIS 2021 and OVIS as published: one JSON file of masks and a folder of JPEG frames.

The layout is that of YouTube-VIS (Yang, Fan and Xu, "Video Instance Segmentation", ICCV 2019),
which OVIS (Qi et al., "Occluded Video Instance Segmentation", IJCV 2022) took over::

    ytvis2021/train/instances.json                  ovis/annotations_train.json
    ytvis2021/train/JPEGImages/<folder>/00000.jpg   ovis/train/<folder>/img_0000001.jpg

``videos`` list frames and sizes; each of ``annotations`` is one object of one video with a mask or
null for every frame: runs as a list, runs as COCO's string, or polygons.

**Splits.** Neither set has public masks for its own validation and test videos, so both splits come
out of the train file, in the order of the file:

* ``ytvis2021``: the last 300 videos are ``validation``, the rest is ``train``, as in VideoSAUR and
  SlotContrast. SlotContrast's released evaluation scores the first 210 of the 300, because its
  loader stops there; so does the protocol of its name (`slotmatch.evaluation.protocols`).
* ``ovis``: there is no custom to follow. The last 60 of the 607 videos are ``validation``, the
  same tenth as above. A model that was not trained on OVIS may be scored on both splits.

Ids of clips end in the id of the video in the file, such as ``ytvis2021/validation/2686``, and
result files store them.

**Labels.** The objects of a video are numbered from 1 in the order of the file; crowds are left out
and a pixel of no object is 0. Where masks of one frame overlap, the object that comes first in the
file has the pixel; SlotContrast's metrics refuse overlaps, or drop these pixels. Categories are not
used: the task is to find the objects.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pycocotools import mask as coco
from pydantic import BaseModel, PositiveInt, ValidationError

from slotmatch import paths
from slotmatch.data.catalogue import Report, not_here
from slotmatch.data.clips import LazyClips, LazyVideo
from slotmatch.data.files import first_existing, first_videos, read_frames, some

__all__ = [
    "HOLD_OUT",
    "PUBLISHED",
    "Rle",
    "Video",
    "YouTubeVis",
    "check",
    "label_map",
    "open_split",
    "read_annotations",
]

HOLD_OUT = {"ytvis2021": 300, "ovis": 60}
"""How many videos at the end of the train file are the validation split."""

PUBLISHED = {"ytvis2021": 2985, "ovis": 607}
"""Videos in the published train file."""

_SPLITS = ("train", "validation")
T = TypeVar("T")
Entry = TypeVar("Entry", bound=BaseModel)


@dataclass(frozen=True)
class _Layout:
    """Where the files of a set are, the published place first, below the folder of the set."""

    annotations: tuple[str, ...]
    frames: tuple[str, ...]
    how: str


_LAYOUTS = {
    "ytvis2021": _Layout(
        ("train/instances.json", "train.json"),
        ("train/JPEGImages",),
        "register at youtube-vos.org, download train.zip of the 2021 video instance segmentation "
        "track and unpack it in {folder}, which gives train/instances.json and train/JPEGImages",
    ),
    "ovis": _Layout(
        ("annotations_train.json", "annotations/annotations_train.json", "annotations/train.json"),
        ("train/JPEGImages", "train"),
        "register at songbai.site/ovis, download the train frames and annotations_train.json and "
        "unpack them in {folder}, which gives train/ and annotations_train.json",
    ),
}


class Rle(NamedTuple):
    """A mask as COCO's run lengths: ``size`` is height and width, ``counts`` COCO's string."""

    size: tuple[int, ...]
    counts: bytes


@dataclass(frozen=True)
class Video:
    """One video of an annotation file.

    Attributes:
        id: Number in the file.
        size: Height and width.
        file_names: T frames, relative to the folder of frames.
        objects: K objects without crowds, each T masks: None, ``Rle`` or a list of polygons, which
            are lists x, y, x, y, ...
    """

    id: int
    size: tuple[int, int]
    file_names: tuple[str, ...]
    objects: tuple[tuple[Rle | list[list[float]] | None, ...], ...]


class YouTubeVis(LazyClips):
    """Videos of one split. Frames and masks are decoded when a clip is asked for.

    Args:
        prefix: Start of the ids, such as ``ovis/train``.
        videos: What ``read_annotations`` gives.
        frames: Folder of the frames.
    """

    def __init__(self, prefix: str, videos: Iterable[Video], frames: Path) -> None:
        self.videos, self.frames = tuple(videos), frames
        super().__init__(f"{prefix}/{video.id}" for video in self.videos)

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Video uint8 (T,H,W,3) and labels int32 (T,H,W) of one clip."""
        video = self.videos[position]
        frames = self.video(position)[:]
        labels = [label_map(video, t) for t in range(len(video.file_names))]
        return frames, np.stack(labels)

    def video(self, position: int) -> LazyVideo:
        """The frames of one clip, each of them a file."""
        size = self.videos[position].size
        return LazyVideo(self.files(position), lambda files: read_frames(files, size))

    def files(self, position: int) -> list[Path]:
        """The frames in order."""
        return [self.frames / name for name in self.videos[position].file_names]


def open_split(
    name: str,
    split: str,
    *,
    n_videos: int | None = None,
    root: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> YouTubeVis:
    """The first ``n_videos`` videos of a split, or all, in the order of the annotation file.

    That file is read whole, which takes some seconds; ``progress`` has nothing else to show.

    Raises:
        ValueError: no such split, more videos than it has, or a damaged annotation file.
        FileNotFoundError: the set, or frames of these videos, are not on this machine.
    """
    if split not in _SPLITS:
        raise ValueError(
            f"{name} has no split {split!r}; choose from {', '.join(_SPLITS)}: no other video of "
            "it has public masks"
        )
    annotations, frames = _find(name, root)
    if annotations is None and frames is None:
        raise not_here(name, _how(name, root))
    if annotations is None or frames is None:
        lacking = _LAYOUTS[name].frames if annotations else _LAYOUTS[name].annotations
        raise FileNotFoundError(f"{_folder(name, root)} lacks {lacking[0]}: {_how(name, root)}")
    videos = _held_out(name, read_annotations(annotations))[split]
    if not videos:
        raise ValueError(
            f"{annotations} has no video for {split}: the last {HOLD_OUT[name]} are validation"
        )
    videos = first_videos(videos, n_videos, f"{name} {split}")
    absent = _absent(frames, [file for video in videos for file in video.file_names])
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} frames of {name} {split} are missing in {frames}: {some(absent)}; "
            "unpack its archive again"
        )
    return YouTubeVis(f"{name}/{split}", videos, frames)


def check(name: str, root: str | PathLike[str] | None = None) -> Report:
    """What of a set is there. Looks for every frame and reads none."""
    layout, folder = _LAYOUTS[name], _folder(name, root)
    annotations, frames = _find(name, root)
    present, missing, differs = [], [], []
    listed: list[str] = []
    if annotations is None:
        missing.append(f"{layout.annotations[0]}, the videos and their masks")
    else:
        try:
            ids, listed, n_objects = _glance(annotations)
        except ValueError as error:
            missing.append(str(error))
        else:
            counts = {split: len(part) for split, part in _held_out(name, ids).items()}
            here = annotations.relative_to(folder)
            line = f"{here}: {len(ids)} videos ({_phrase(counts)}), {n_objects} objects"
            if len(ids) != PUBLISHED[name]:
                differs.append(f"{here}: {len(ids)} videos, {PUBLISHED[name]} are published")
            present.append(line)
            if not n_objects:
                missing.append(f"masks in {here}: this is not the file of the train videos")
    if frames is None:
        missing.append(f"{layout.frames[0]}, the frames")
    elif listed:
        absent = _absent(frames, listed)
        present.append(
            f"{frames.relative_to(folder)}: {len(listed) - len(absent)} of {len(listed)} frames"
        )
        if absent:
            missing.append(f"{len(absent)} frames: {some(absent)}")
    return Report(
        name, folder, tuple(present), tuple(missing), _how(name, root), differs=tuple(differs)
    )


def read_annotations(path: str | PathLike[str]) -> tuple[Video, ...]:
    """The videos of an annotation file with their objects, in the order of the file.

    Masks stay run lengths. A file with ``annotations: null``, as OVIS has for its validation
    videos, gives videos without objects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON file, or an annotation does not fit its video.
    """
    path = Path(path)
    state = path.stat()
    return _read_annotations(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1)  # the two splits are one file
def _read_annotations(path: Path, *_: int) -> tuple[Video, ...]:
    content = _parse(path)
    if not isinstance(content, dict) or not isinstance(content.get("videos"), list):
        raise ValueError(f"{path} is not laid out as YouTube-VIS is: it lists no videos")
    listed = [_checked(_Listed, entry, path, "video") for entry in content["videos"]]
    videos = {video.id: video for video in listed}
    if len(videos) != len(listed):
        raise ValueError(f"{path} has {len(listed) - len(videos)} video ids twice")
    for video in listed:
        if video.length not in (None, len(video.file_names)):
            raise ValueError(
                f"{path}: video {video.id} has {len(video.file_names)} frames and its length is "
                f"{video.length}"
            )
    objects = defaultdict(list)
    for entry in content.get("annotations") or ():
        annotation = _checked(_Annotated, entry, path, "annotation")
        where, masks = f"{path}: annotation {annotation.id}", annotation.segmentations
        if annotation.video_id not in videos:
            raise ValueError(f"{where} is of video {annotation.video_id}, which is not in the file")
        n_frames = len(videos[annotation.video_id].file_names)
        if len(masks) != n_frames:
            raise ValueError(
                f"{where} has {len(masks)} segmentations for the {n_frames} frames of video "
                f"{annotation.video_id}"
            )
        if not annotation.iscrowd:
            objects[annotation.video_id].append(tuple(mask or None for mask in masks))
    return tuple(
        Video(video.id, (video.height, video.width), video.file_names, tuple(objects[video.id]))
        for video in listed
    )


class _Listed(BaseModel):
    """A video of the file. A whole number may be written as 720.0."""

    id: int
    height: PositiveInt
    width: PositiveInt
    file_names: tuple[str, ...]
    length: int | None = None


class _Annotated(BaseModel):
    """An object of the file, with a mask or null for every frame."""

    id: int
    video_id: int
    segmentations: list[Any]
    iscrowd: bool = False


def _checked(kind: type[Entry], entry: Any, path: Path, what: str) -> Entry:
    """An entry of the file as it ought to be, or a ValueError that names it and what is wrong."""
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        number = entry.get("id") if isinstance(entry, dict) else None
        place = " ".join(map(str, first["loc"])) or "all of it"
        raise ValueError(
            f"{path} is not laid out as YouTube-VIS is: {what} {number}: {place}: {first['msg']}"
        ) from error


def label_map(video: Video, t: int) -> np.ndarray:
    """Which object each pixel of frame ``t`` belongs to, int32 (H,W); 0 is none.

    Raises:
        ValueError: a damaged mask.
    """
    labels = np.zeros(video.size, np.int32)
    for number in range(1, len(video.objects) + 1):
        rle = _mask(video, number, t)
        if rle is not None:
            labels[coco.decode(rle).astype(bool) & (labels == 0)] = number
    return labels


def _folder(name: str, root: str | PathLike[str] | None) -> Path:
    return Path(root or paths.data_dir()) / name


def _find(name: str, root: str | PathLike[str] | None) -> tuple[Path | None, Path | None]:
    """The annotation file and the folder of frames, where they are there."""
    layout, folder = _LAYOUTS[name], _folder(name, root)
    annotations = first_existing(folder / place for place in layout.annotations)
    return annotations, first_existing(folder / place for place in layout.frames)


def _how(name: str, root: str | PathLike[str] | None) -> str:
    return _LAYOUTS[name].how.format(folder=_folder(name, root))


def _held_out(name: str, videos: Sequence[T]) -> dict[str, Sequence[T]]:
    n = HOLD_OUT[name]
    return {"train": videos[:-n], "validation": videos[-n:]}


def _absent(frames: Path, file_names: Iterable[str]) -> list[str]:
    """Those of the files that are not there: one look at each folder, not at each file."""
    folders: dict[str, set[str]] = {}
    absent = []
    for name in file_names:
        folder, file = os.path.split(name)
        if folder not in folders:
            place = frames / folder
            folders[folder] = set(os.listdir(place)) if place.is_dir() else set()
        if file not in folders[folder]:
            absent.append(name)
    return absent


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no JSON file ({error}); download it again") from error


def _parse(path: Path) -> Any:
    try:
        return json.loads(_text(path), object_hook=_compact)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); download it again") from error


def _glance(path: Path) -> tuple[list[int], list[str], int]:
    """Ids of the videos, all frames, and the number of annotations of a file, without its masks.

    The masks are nearly all of the file and take many seconds to parse.
    """
    text = _text(path)
    start = re.search(r'"videos"\s*:\s*', text)
    if start is None or text.count("{") != text.count("}"):
        raise ValueError(f"{path} is cut off or no annotation file; download it again")
    try:
        videos, _ = json.JSONDecoder().raw_decode(text, start.end())
        frames = [name for video in videos for name in video["file_names"]]
        return [video["id"] for video in videos], frames, text.count('"segmentations"')
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no annotation file ({error}); download it again") from error


def _compact(node: dict[str, Any]) -> Any:
    """A mask of the JSON file as ``Rle``: a list of runs would take twenty times the memory."""
    if not node.keys() >= {"size", "counts"}:
        return node
    size, counts = tuple(node["size"]), node["counts"]
    if isinstance(counts, str):
        return Rle(size, counts.encode())
    try:
        runs = {"size": [1, 1], "counts": list(counts)}
        return Rle(size, coco.frPyObjects(runs, 1, 1)["counts"])
    except (OverflowError, TypeError, ValueError):
        return Rle(size, b"")  # found out, with the name of its video, when it is decoded


def _mask(video: Video, number: int, t: int) -> dict[str, Any] | None:
    """The mask of object ``number``, from 1, in frame ``t`` as pycocotools takes it.

    It is checked first: pycocotools fills what the runs leave out with whatever is in memory.
    """
    found = video.objects[number - 1][t]
    if found is None:
        return None
    where = f"object {number} of video {video.id} in {video.file_names[t]}"
    h, w = video.size
    if isinstance(found, Rle):
        if found.size != video.size:
            raise ValueError(
                f"{where} has a mask of size {list(found.size)}, the video is {list(video.size)}"
            )
        runs = run_lengths(found.counts)
        if runs.sum() != h * w or runs.min(initial=0) < 0:
            raise ValueError(f"{where} has runs of {runs.sum()} pixels, the frame has {h * w}")
        return {"size": [h, w], "counts": found.counts}
    if not isinstance(found, list) or not all(map(_is_polygon, found)):
        raise ValueError(f"{where} is neither run lengths nor polygons of three points or more")
    return coco.merge(coco.frPyObjects(found, h, w))


def _is_polygon(points: object) -> bool:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in points)


def run_lengths(counts: bytes) -> np.ndarray:
    """The run lengths int64 (R,) that COCO's string holds; empty if it is no such string.

    Five bits a character, low ones first, the sixth says that more follow; from the fourth on a
    number is the difference to the one two places before (``rleToString`` of COCO's ``maskApi.c``).
    """
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - ord("0")
    last = (characters & 32) == 0
    if not last.size or not last[-1] or characters.min() < 0 or characters.max() > 63:
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = 5 * (np.arange(len(characters)) - np.repeat(starts, ends - starts + 1))
    if place.max() > 50:
        return np.zeros(0, np.int64)
    runs = np.add.reduceat((characters & 31) << place, starts)
    runs -= np.where(characters[ends] & 16, 1 << (place[ends] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _phrase(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {split}" for split, n in counts.items())
