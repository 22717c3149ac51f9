"""A person's own video, whatever it comes as: read frame by frame, checked on the way."""

import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from einops import rearrange
from torch import Tensor

from slotmatch.data.pictures import ANIMATIONS, picture_files, pictures_of

__all__ = ["Show", "Video", "read_frames", "show_of", "timed_frames"]

FRAME_RATE = 12.0
"""Frames a second of an overlay when its video has no rate of its own."""
HIGH_DEFINITION = 720
"""Rows from which on a video that does not say so has the colours of BT.709, else of BT.601."""
LETTERS = "ansi"
"""The decoder with which FFmpeg draws any text file as a film of a terminal."""
UNSPECIFIED = 2
USUAL_TRANSFERS = (1, 2, 4, 5, 6, 7, 13, 14, 15)
"""Those of standard dynamic range, by their number in ITU-T H.273: all are shown like sRGB's."""
USUAL_PRIMARIES = (1, 2, 4, 5, 6, 7, 22)
"""Those of a gamut like sRGB's, likewise. Others (Display P3, BT.2020) are wide."""

Frame = np.ndarray | Tensor | str | os.PathLike[str]
Video = np.ndarray | Tensor | str | os.PathLike[str] | Iterable[Frame]
"""A video: uint8 array (T,H,W,3); tensor (T,3,H,W), uint8 or float in [0, 1]; a folder; a file; or
any iterable of frames: arrays (H,W,3), tensors (3,H,W), or files of one picture each."""


@dataclass(frozen=True)
class Show:
    """How a video is meant to be shown, as far as it can tell."""

    n_frames: int | None = None  # None: only reading tells
    rate: float = FRAME_RATE  # frames a second, on average
    pixel_aspect: Fraction = Fraction(1)  # width of a pixel by its height


def read_frames(video: Video) -> Iterator[Tensor]:
    """The frames of a video, one at a time: (3,H,W), uint8 or float in [0, 1], all of one size.

    Frames of files come as they are meant to be seen: upright, in sRGB, without cover pictures.
    Warns when a file ends before its time.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without images.
        ValueError: another shape or type, values outside [0, 1], a damaged file or image, or a
            folder of which it is not clear what its frames are.
        TypeError: something that is no video at all.
    """
    return (frame for frame, _ in timed_frames(video))


def timed_frames(video: Video) -> Iterator[tuple[Tensor, Fraction | None]]:
    """The frames of `read_frames`, each with its time in seconds; None where there is none."""
    shape = None
    for number, (frame, time) in enumerate(_frames(video)):
        shape = shape or frame.shape
        if frame.shape != shape or 0 in shape:
            raise ValueError(
                f"frame {number} is {frame.shape[2]} x {frame.shape[1]} pixels and the first "
                f"{shape[2]} x {shape[1]}: all must have one size, not empty"
            )
        if frame.is_floating_point() and not (frame.min() >= 0 and frame.max() <= 1):
            raise ValueError(
                f"frame {number} has values from {frame.min():g} to {frame.max():g}: they must be "
                "finite and in [0, 1]; divide by 255, and do not normalise"
            )
        yield frame, time


def _frames(video: Video) -> Iterator[tuple[Tensor, Fraction | None]]:
    """Frames (3,H,W) and their times; nothing but type and rank is checked."""
    if isinstance(video, np.ndarray):
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
            raise ValueError(
                f"an array must be uint8 (T,H,W,3), got {video.dtype} {video.shape}; floats and "
                "(T,3,H,W) go in as a tensor"
            )
        return ((_channels_first(frame.copy()), None) for frame in video)
    if isinstance(video, Tensor):
        floating = video.is_floating_point()
        if video.ndim != 4 or video.shape[1] != 3 or not (floating or video.dtype == torch.uint8):
            raise ValueError(
                "a tensor must be (T,3,H,W) of uint8 or of floats in [0, 1], "
                f"got {video.dtype} {tuple(video.shape)}"
            )
        return ((frame, None) for frame in video.detach())
    if isinstance(video, str | os.PathLike):
        arrays = _from_path(Path(video))
        return ((_channels_first(array), time) for array, time in arrays)
    if isinstance(video, Iterable):
        return ((_one_frame(frame), None) for frame in video)
    raise TypeError(
        "a video is an array, a tensor, a path, or an iterable of frames, "
        f"not {type(video).__name__}"
    )


def _channels_first(frame: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(frame), "h w c -> c h w")


def _one_frame(frame: Frame) -> Tensor:
    if isinstance(frame, str | os.PathLike):
        path = Path(frame)
        if not path.is_file():
            raise FileNotFoundError(f"there is no picture at {path}")
        return _channels_first(next(pictures_of(path))[0])
    if not isinstance(frame, np.ndarray | Tensor):
        raise TypeError(
            "a frame is an array, a tensor or the path of a picture, "
            f"not {type(frame).__name__}; a file goes in by its path"
        )
    (own, _), *_ = _frames(frame[None])
    return own


def _from_path(path: Path) -> Iterator[tuple[np.ndarray, Fraction | None]]:
    if not path.exists():
        raise FileNotFoundError(f"there is no video file or folder of frames at {path}")
    if path.is_dir():
        return ((next(pictures_of(file))[0], None) for file in picture_files(path))
    if path.suffix.lower() in ANIMATIONS:
        return _animated(path)
    return _decoded(path)


def _animated(path: Path) -> Iterator[tuple[np.ndarray, Fraction | None]]:
    """The pictures of one file, with times if it says how long each is shown."""
    start = Fraction(0)
    for picture, seconds in pictures_of(path):
        yield picture, start if seconds else None
        start += Fraction(seconds).limit_denominator(1000)


def _decoded(path: Path) -> Iterator[tuple[np.ndarray, Fraction | None]]:
    """Frames (H,W,3) of a video file as they are meant to be seen, and their times."""
    end = Fraction(0)
    last = None
    n = 0
    with _opened(path) as (container, stream):
        promised = _seconds(container, stream)
        for frame in container.decode(stream):
            time = None if frame.pts is None else frame.pts * frame.time_base
            yield _upright(_in_rgb(frame), frame), time
            n += 1
            if time is not None:
                step = time - last if last is not None else Fraction(0)
                last, end = time, max(end, time + step)
    if promised is not None and n and promised - end > max(Fraction(1, 2), end / n):
        warnings.warn(
            f"{path} promises {float(promised):.2f} s and its {n} frames end at "
            f"{float(end):.2f} s: it may be cut short",
            stacklevel=2,
        )


def _seconds(container: Any, stream: Any) -> Fraction | None:
    """How long the pictures of a file last, by its header; None: it does not tell."""
    told = []
    if stream.duration is not None:
        told.append(stream.duration * stream.time_base)
    elif tag := stream.metadata.get("DURATION"):  # Matroska: 00:00:04.000000000
        hours, minutes, seconds = tag.split(":")
        told.append(3600 * int(hours) + 60 * int(minutes) + Fraction(seconds))
    if container.duration is not None and (told or len(container.streams) == 1):
        told.append(Fraction(container.duration, av.time_base))
    return min(told, default=None)


def _in_rgb(frame: av.VideoFrame) -> np.ndarray:
    """RGB (H,W,3) as it is stored, not turned; high dynamic range and wide gamuts become sRGB."""
    known = int(frame.colorspace) != UNSPECIFIED
    usual = Colorspace.ITU709 if frame.height >= HIGH_DEFINITION else Colorspace.ITU601
    options: Any = {} if known else {"src_colorspace": usual}
    if int(frame.color_trc) not in USUAL_TRANSFERS:
        options["dst_color_trc"] = ColorTrc.IEC61966_2_1
        options["dst_color_primaries"] = ColorPrimaries.BT709
    elif int(frame.color_primaries) not in USUAL_PRIMARIES:
        options["dst_color_primaries"] = ColorPrimaries.BT709
    return frame.to_ndarray(format="rgb24", **options)


def _upright(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """A stored picture turned, and mirrored, as the display matrix of its frame says."""
    side_data: Any = frame.side_data
    matrix = side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return picture
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if a * d - b * c < 0:  # what is mirrored left to right before it is turned
        picture, a, b = picture[:, ::-1], -a, -b
    return np.rot90(picture, round(-np.arctan2(b, a) / (np.pi / 2))).copy()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and its video stream, which is never a cover's picture."""
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            streams = [
                stream
                for stream in container.streams.video
                if not stream.disposition & Disposition.attached_pic and stream.name != LETTERS
            ]
            if not streams:
                raise ValueError(f"{path} holds no video")
            best = container.streams.best("video")
            yield container, best if best in streams else streams[0]
    except av.FFmpegError as error:
        raise ValueError(f"{path} is damaged, cut short or no video: {error}") from error


def show_of(video: Video) -> Show:
    """How many frames a video has, how fast they follow each other, and how wide pixels are."""
    if isinstance(video, np.ndarray | Tensor):
        return Show(video.shape[0] if video.ndim else None)
    if not isinstance(video, str | os.PathLike):
        return Show(len(video) if isinstance(video, Sized) else None)
    path = Path(video)
    if path.is_dir():
        return Show(len(picture_files(path)))
    if not path.is_file():
        return Show()  # reading it raises
    if path.suffix.lower() in ANIMATIONS:
        shown = [seconds for _, seconds in pictures_of(path)]
        return Show(len(shown), len(shown) / sum(shown) if sum(shown) else FRAME_RATE)
    with _opened(path) as (_, stream):
        return Show(
            stream.frames or None,
            float(stream.average_rate or FRAME_RATE),
            stream.sample_aspect_ratio or Fraction(1),
        )
