"""One video with its true instances, and sequences of such that are read when asked for."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, overload

import numpy as np

__all__ = ["Clip", "HasVideo", "LazyClips", "LazyVideo", "content", "digest", "ids_of", "video_of"]

T = TypeVar("T")


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


@dataclass(frozen=True, eq=False)
class LazyVideo(Generic[T]):
    """Frames of one video, decoded when they are asked for and not kept.

    A slice is uint8 (T,H,W,3), equal to that of the whole video, and its frames alone are read: a
    damaged one elsewhere does no harm.

    Attributes:
        coded: What each frame is decoded from, such as a file's path.
        decode: Makes frames of one or more of them.
    """

    coded: Sequence[T]
    decode: Callable[[Sequence[T]], np.ndarray]

    def __len__(self) -> int:
        return len(self.coded)

    def __getitem__(self, frames: slice) -> np.ndarray:
        return self.decode(self.coded[frames])


class LazyClips(Sequence[Clip]):
    """Clips that a subclass reads one at a time, in ``read``, when they are asked for."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = tuple(ids)

    @abstractmethod
    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Video uint8 (T,H,W,3) and labels int32 (T,H,W) of one clip."""

    def video(self, position: int) -> np.ndarray | LazyVideo:
        """The frames of one clip without its labels; here they are read with the whole clip."""
        return self[position].video

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


def video_of(clips: Sequence[HasVideo], position: int) -> np.ndarray | LazyVideo:
    """The frames of one clip, to be sliced: what is not asked for is not read, where that can be.

    The frames of `LazyClips` may be a `LazyVideo`.
    """
    return clips.video(position) if isinstance(clips, LazyClips) else clips[position].video


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
