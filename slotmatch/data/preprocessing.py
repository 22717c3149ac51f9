"""From a video as it is on disk to the frames a model sees and the labels its masks are held to.

The defaults follow SlotContrast's code; its other choices and better ones are fields of
``Preprocessing``. Mean and deviation are the backbone's business. Shapes: T frames of H x W pixels,
S the side of the square.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from slotmatch.data.catalogue import EMBEDDED
from slotmatch.data.clips import Clip
from slotmatch.settings import AT_LEAST_1, SHARE, Interpolation, Square, check

__all__ = [
    "AS_IS",
    "PREPROCESSING",
    "Cut",
    "Preprocessing",
    "centre_offset",
    "clip_starts",
    "float_frames",
    "unit_floats",
]


def clip_starts(n_frames: int, length: int, *, aligned: bool) -> range:
    """First frames of the clips of ``length`` frames that a video of ``n_frames`` gives.

    Args:
        n_frames: frames of the video.
        length: frames of a clip.
        aligned: only multiples of ``length``, as in SlotContrast, which cuts a video into clips
            that do not overlap and drops the rest; False: every frame that leaves room for a clip.

    Returns:
        The starts, ascending; none for a video shorter than a clip.

    Raises:
        ValueError: a number of frames below 0 or a length below 1.
    """
    if n_frames < 0 or length < 1:
        raise ValueError(
            f"n_frames must be 0 or more and length 1 or more, got {n_frames} and {length}"
        )
    return range(0, n_frames - length + 1, length if aligned else 1)


def unit_floats(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Frames of any shape as floats in [0, 1]: bytes are divided by 255, floats are in it."""
    return frames.to(dtype) if frames.is_floating_point() else frames.to(dtype) / 255


def float_frames(pixels: NDArray[np.uint8] | Tensor) -> Tensor:
    """Pixels uint8 (...,H,W,3) as frames (...,3,H,W), floats in [0, 1]."""
    return unit_floats(rearrange(torch.as_tensor(pixels), "... h w c -> ... c h w"))


def centre_offset(size: int, side: int) -> int:
    """First row or column of the middle ``side`` of ``size``; a half is rounded to even."""
    return round((size - side) / 2)


@dataclass(frozen=True)
class Cut:
    """What was decided for one training clip, and what is still to be done to its frames."""

    left_out: tuple[int, int, int, int]  # columns left and right, rows above and below
    corner: tuple[int, int]  # first row and column of the square in the resized frames
    mirrored: bool


@dataclass(frozen=True)
class Preprocessing:
    """How a data set's videos become squares, in training and in evaluation.

    Raises:
        ValueError: a field out of its range; the message has its name, value and choices.
    """

    size: int | None  # side S in pixels; None: frames stay as they are, each backbone resizes them
    square: Square = (
        "stretch"  # or "crop": drawn anew for a training clip, the middle in evaluation
    )
    flip_probability: float = 0.0  # of mirroring a training clip
    aligned_starts: bool = True  # training clips start at multiples of their length only
    interpolation: Interpolation = "bicubic"
    antialias: bool = False  # True smooths what shrinks, which is better and not SlotContrast's way
    shrink: int | None = None  # short side that frames and labels are first cut down to, by nearest
    label_size: int | None = None  # side of the labels that are scored; None: as the frames

    def __post_init__(self) -> None:
        check(
            self, [(AT_LEAST_1, ("size", "shrink", "label_size")), (SHARE, ("flip_probability",))]
        )
        if self.size is None and (self.square == "crop" or self.label_size is not None):
            raise ValueError('square "crop" and a label_size need a size: give one')

    def train(self, video: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
        """Frames of a training clip, floats in [0, 1]: uint8 (T,H,W,3) to float32 (T,3,S,S).

        One crop (its row, then its column) and then one mirroring are drawn from ``rng`` for the
        whole clip. "crop" first gives the short side S pixels. Without ``size`` frames keep theirs.
        This is ``cut`` and then ``finish``, of which only the first knows chance.

        Raises:
            ValueError: not uint8 (T,H,W,3) with one frame or more.
        """
        frames, cut = self.cut(video, rng)
        return self.finish(torch.from_numpy(np.ascontiguousarray(frames)), cut)

    def cut(
        self, video: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Cut]:
        """The pixels uint8 (T,h,w,3) that a training clip's square depends on, and what to do next.

        Cheap: nothing is resized. Pixels are a view or a copy.

        Raises:
            ValueError: see ``train``.
        """
        video = self._shrunk(_checked(video))
        left_out, top, left = (0, 0, 0, 0), 0, 0
        if self.size is not None and self.square == "crop":
            height, width = video.shape[1:3]
            rows, columns = _short_side_to(self.size, height, width)
            top, left = (int(rng.integers(n - self.size + 1)) for n in (rows, columns))
            above, below = _unused(height, rows, top, self.size)
            before, after = _unused(width, columns, left, self.size)
            video = video[:, above : height - below, before : width - after]
            left_out = before, after, above, below
        return video, Cut(left_out, (top, left), bool(rng.random() < self.flip_probability))

    def finish(self, frames: Tensor, cut: Cut) -> Tensor:
        """What ``cut`` gave, uint8 (T,h,w,3) on any device, as float32 (T,3,S,S) in [0, 1].

        Whole frames are resized, those pixels black that the square does not depend on, so that
        every pixel of it is computed as it would be without ``cut``, to the last bit.
        """
        floats = float_frames(frames)
        if self.size is not None and self.square == "crop":
            whole = F.pad(floats, cut.left_out)
            large = self._to(whole, _short_side_to(self.size, *whole.shape[-2:]))
            top, left = cut.corner
            floats = large[..., top : top + self.size, left : left + self.size]
        else:
            floats = self.resize(floats)
        return (floats.flip(-1) if cut.mirrored else floats).contiguous()

    def crop(self, clip: Clip) -> Clip:
        """A clip with its labels as they are scored and its frames cut, but not yet resized.

        "crop" takes the middle square of the full short side. Labels take the nearest pixel
        (torch's ``nearest-exact``); objects wholly outside the square are gone. Frames remain
        uint8, for ``resize`` to take a few at a time.

        Raises:
            ValueError: a video that is not uint8 (T,H,W,3), or labels of another size.
        """
        video, labels = _checked(clip.video), clip.labels
        if labels.shape != video.shape[:3]:
            raise ValueError(
                f"{clip.id} has labels {labels.shape} for a video {video.shape}: they must share "
                "(T,H,W)"
            )
        video, labels = self._shrunk(video), self._shrunk(labels)
        if self.square == "crop":
            video, labels = _centre_square(video), _centre_square(labels)
        if side := self.label_size or self.size:
            labels = _nearest(labels, (side, side))
        return replace(clip, video=video, labels=labels)

    def resize(self, frames: Tensor) -> Tensor:
        """Floats (N,3,H,W) in [0, 1] to (N,3,S,S), clamped; as they are without ``size``."""
        return frames if self.size is None else self._to(frames, (self.size, self.size))

    def _to(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(frames.shape[-2:]) == size:
            return frames
        large = F.interpolate(frames, size, mode=self.interpolation, antialias=self.antialias)
        return large.clamp(0, 1)

    def _shrunk(self, array: NDArray) -> NDArray:
        """Frames or labels (T,H,W,...) whose short side has at most ``shrink`` pixels."""
        if self.shrink is None or min(array.shape[1:3]) <= self.shrink:
            return array
        return _nearest(array, _short_side_to(self.shrink, *array.shape[1:3]))


_MOVI = Preprocessing(336, flip_probability=0.5)
_YTVIS = Preprocessing(518, "crop")
AS_IS = Preprocessing(None, aligned_starts=False)
"""Clips that start anywhere, of whole frames at their own size."""

PREPROCESSING: Mapping[str, Preprocessing] = MappingProxyType(
    {
        **dict.fromkeys(EMBEDDED, AS_IS),
        **{f"movi_{x}": _MOVI for x in "abcde"},
        **dict.fromkeys(("ytvis2021", "ovis", "davis2017", "davis2016"), _YTVIS),
    }
)
"""By name of the data set.

SlotContrast's for MOVi and YouTube-VIS 2021. Nothing is published for OVIS and DAVIS: they are
treated as YouTube-VIS is. The embedded sets are left to the backbones.
"""


def _checked(video: NDArray) -> NDArray[np.uint8]:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise ValueError(
            f"a video must be uint8 (T,H,W,3) with a frame or more, got {video.dtype} {video.shape}"
        )
    return video


def _unused(old: int, new: int, first: int, n: int) -> tuple[int, int]:
    """How many pixels at either end of a side do not matter to a part of it once it is resized.

    The side goes from ``old`` pixels to ``new``, and the part is ``n`` pixels from ``first`` on.
    What is kept is two pixels more than the widest kernel reaches, which is the bicubic one: two
    pixels, and with ``antialias`` two of the new pixels where the side shrinks.
    """
    scale = old / new
    reach = math.ceil(2 * max(scale, 1)) + 2
    start = math.floor((first + 0.5) * scale - 0.5) - reach
    end = math.ceil((first + n - 0.5) * scale - 0.5) + 1 + reach
    return max(start, 0), max(old - end, 0)


def _short_side_to(side: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of the same shape whose shorter is ``side``; the longer is rounded down."""
    long = int(max(height, width) / min(height, width) * side)
    return (long, side) if height > width else (side, long)


def _centre_square(array: NDArray) -> NDArray:
    """The middle square (T,S,S,...) of the full short side of (T,H,W,...)."""
    height, width = array.shape[1:3]
    side = min(height, width)
    top, left = centre_offset(height, side), centre_offset(width, side)
    return array[:, top : top + side, left : left + side]


def _nearest(array: NDArray, size: tuple[int, int]) -> NDArray:
    """Pixels of (T,H,W,...) at torch's nearest-exact places: (T,*size,...), of any type."""
    rows, columns = (
        F.interpolate(torch.arange(old).float()[None, None], new, mode="nearest-exact")[0, 0]
        .long()
        .numpy()
        for old, new in zip(array.shape[1:3], size, strict=True)
    )
    return array[:, rows[:, None], columns]
