"""One video with its true instances, and sequences of such that are read when asked for."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

import numpy as np

__all__ = ["Clip", "HasVideo", "LazyClips", "content", "digest", "ids_of"]


@dataclass(frozen=True, eq=False)
class Clip:
    """One video with its true instances.

    Attributes:
        video: uint8 (T, H, W, 3), RGB.
        labels: int32 (T, H, W); 0 is background, every other number one object of the whole video.
        id: Unique in the data set, such as ``minimovi_a/train/00012``.
    """

    video: np.ndarray
    labels: np.ndarray
    id: str


class HasVideo(Protocol):
    """What is needed of a clip: uint8 frames (T,H,W,3) and a name."""

    @property
    def video(self) -> np.ndarray:
        """Frames."""
        ...

    @property
    def id(self) -> str:
        """Its name."""
        ...


class LazyClips(Sequence[Clip]):
    """Clips that a subclass reads one at a time, in ``read``, when they are asked for."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = tuple(ids)

    @abstractmethod
    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Video uint8 (T,H,W,3) and labels int32 (T,H,W) of one clip."""

    @abstractmethod
    def files(self, position: int) -> Sequence[Path]:
        """The files that the frames of one clip come from."""

    def content(self, position: int) -> str:
        """What tells the frames of one clip from any others that had its name: a digest.

        Of names, sizes and times of change of its files: reading them all would take too long.
        """
        found = [(file.name, file.stat()) for file in self.files(position)]
        return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in found])

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        video, labels = self.read(position)
        return Clip(video, labels, self.ids[position])


def ids_of(clips: Sequence[HasVideo]) -> tuple[str, ...]:
    """Names of clips, in order; no clip is read where the sequence knows them."""
    known = getattr(clips, "ids", None)
    return tuple(clip.id for clip in clips) if known is None else tuple(known)


def content(clips: Sequence[HasVideo], position: int) -> str:
    """What tells one clip's frames from any others: what the clips know, or the frames' digest.

    For whatever is kept beyond a run: names alone stay the same when a video is replaced.
    """
    told = getattr(clips, "content", None)
    if told is not None:
        return str(told(position))
    video = np.ascontiguousarray(clips[position].video)
    return hashlib.sha256(f"{video.dtype} {video.shape}".encode() + video.tobytes()).hexdigest()


def digest(what: object) -> str:
    """Of anything that is written the same whenever it is the same."""
    return hashlib.sha256(repr(what).encode()).hexdigest()
