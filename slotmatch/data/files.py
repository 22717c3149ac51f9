"""What the readers of data sets share: pictures checked as they are read, and names in a line."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from slotmatch.data.pictures import UNREADABLE

__all__ = [
    "first_existing",
    "first_videos",
    "picture_size",
    "read_frames",
    "read_picture",
    "some",
]


T = TypeVar("T")


def read_picture(path: Path, mode: str | None = None) -> tuple[str, np.ndarray]:
    """The mode and the stored values of a picture: of a palette picture its indices, no colours.

    Args:
        path: A JPEG or PNG file.
        mode: Convert to this Pillow mode first; None keeps the values as they are stored.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file is cut off or no picture.
    """
    try:
        with Image.open(path) as image:
            picture = image if mode in (None, image.mode) else image.convert(mode)
            return picture.mode, np.asarray(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; unpack its archive again") from None
    except UNREADABLE as error:
        raise OSError(
            f"{path} is cut off or no picture ({error}); unpack its archive again"
        ) from error


def read_frames(paths: Sequence[Path], size: tuple[int, int] | None = None) -> np.ndarray:
    """Pictures as one video, uint8 (T,H,W,3), RGB.

    Args:
        paths: One file a frame.
        size: Height and width that every frame must have; None takes those of the first frame.

    Raises:
        FileNotFoundError: a frame is missing.
        OSError: a frame is damaged.
        ValueError: a frame has another size.
    """
    video = None
    for t, path in enumerate(paths):
        frame = read_picture(path, "RGB")[1]
        size = size or frame.shape[:2]
        if frame.shape[:2] != size:
            raise ValueError(
                f"{path} is {picture_size(frame.shape)} and should be {picture_size(size)}"
            )
        if video is None:
            video = np.empty((len(paths), *frame.shape), np.uint8)
        video[t] = frame
    if video is None:
        raise ValueError("a video needs at least one frame")
    return video


def first_videos(videos: Sequence[T], n_videos: int | None, where: str) -> Sequence[T]:
    """The first ``n_videos`` of them, or all.

    Raises:
        ValueError: there are fewer.
    """
    if n_videos is not None and n_videos > len(videos):
        raise ValueError(f"n_videos is {n_videos} and {where} has {len(videos)} videos")
    return videos[:n_videos]


def first_existing(candidates: Iterable[Path]) -> Path | None:
    """The first path that exists."""
    return next((path for path in candidates if path.exists()), None)


def some(names: Sequence[object], most: int = 3) -> str:
    """The names in one line, only the first few where there are many; line breaks are escaped."""
    texts = map(str, names[:most])
    shown = ", ".join(text if text.isprintable() else ascii(text) for text in texts)
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def picture_size(shape: Sequence[int]) -> str:
    """Rows and columns as one says it: (480, 854) is 854 x 480 pixels."""
    return f"{shape[1]} x {shape[0]} pixels"
