"""A person's own video, whatever it comes as: read frame by frame, checked on the way."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

__all__ = ["IMAGES", "Video", "length_and_rate", "read_frames"]

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of the files that count as frames of a folder."""
FRAME_RATE = 12.0
"""Frames a second of an overlay when its video has no rate of its own."""

Video = np.ndarray | Tensor | str | os.PathLike[str]
"""A video: uint8 array (T,H,W,3); tensor (T,3,H,W), uint8 or float in [0, 1]; a folder; a file."""


def read_frames(video: Video) -> Iterator[Tensor]:
    """The frames of a video, one at a time: (3,H,W), uint8 or float in [0, 1], all of one size.

    Warns when a file yields fewer frames than it promises.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without images.
        ValueError: another shape or type, values outside [0, 1], or a damaged file or image.
    """
    if isinstance(video, np.ndarray):
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
            raise ValueError(
                f"an array must be uint8 (T,H,W,3), got {video.dtype} {video.shape}; floats and "
                "(T,3,H,W) go in as a tensor"
            )
        frames = (rearrange(torch.from_numpy(frame.copy()), "h w c -> c h w") for frame in video)
    elif isinstance(video, Tensor):
        floating = video.is_floating_point()
        if video.ndim != 4 or video.shape[1] != 3 or not (floating or video.dtype == torch.uint8):
            raise ValueError(
                "a tensor must be (T,3,H,W) of uint8 or of floats in [0, 1], "
                f"got {video.dtype} {tuple(video.shape)}"
            )
        frames = iter(video.detach())
    else:
        path = Path(video)
        if not path.exists():
            raise FileNotFoundError(f"there is no video file or folder of frames at {path}")
        arrays = _images(path) if path.is_dir() else _decoded(path)
        frames = (rearrange(torch.from_numpy(frame), "h w c -> c h w") for frame in arrays)
    shape = None
    for number, frame in enumerate(frames):
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
        yield frame


def _images(folder: Path) -> Iterator[np.ndarray]:
    for file in _image_files(folder):
        try:
            with Image.open(file) as image:
                yield np.array(ImageOps.exif_transpose(image).convert("RGB"))
        except OSError as error:
            raise ValueError(f"{file} is damaged or no image: {error}") from error


def _image_files(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGES]
    if not files:
        raise FileNotFoundError(f"{folder} holds no frames: no file ends in {', '.join(IMAGES)}")
    return sorted(files, key=_natural_order)


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """A key that puts frame 2 before frame 10."""
    parts = re.findall(r"\d+|\D+", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _decoded(path: Path) -> Iterator[np.ndarray]:
    """Frames (H,W,3) of a video file, turned upright as its metadata says."""
    read = 0
    with _opened(path) as container:
        promised = container.streams.video[0].frames
        for frame in container.decode(video=0):
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).copy()
            read += 1
    if read < promised:
        warnings.warn(
            f"{path} promises {promised} frames, {read} could be read: it may be cut short",
            stacklevel=2,
        )


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video")
            yield container
    except av.FFmpegError as error:
        raise ValueError(f"{path} is damaged, cut short or no video: {error}") from error


def length_and_rate(video: Video) -> tuple[int | None, float]:
    """Number of frames, None where only reading tells, and frames a second."""
    if isinstance(video, np.ndarray | Tensor):
        return (video.shape[0] if video.ndim else None), FRAME_RATE
    path = Path(video)
    if path.is_dir():
        return len(_image_files(path)), FRAME_RATE
    if not path.is_file():
        return None, FRAME_RATE  # reading it raises
    with _opened(path) as container:
        stream = container.streams.video[0]
        return stream.frames or None, float(stream.average_rate or FRAME_RATE)
