"""Tables that count the pixels of two label maps by frame, true label and predicted label.

Every score of `slotmatch.metrics` is read off such a table. The letters of the shapes are t frames,
h rows, w columns, n true labels, k predicted labels.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Array", "boundaries", "boundary_counts", "checked_maps", "joint_counts"]

Array: TypeAlias = NDArray[Any] | torch.Tensor

BOUNDARY_SHARE = 0.02  # boundary width as a share of the image diagonal
MAX_CELLS = 2**27  # of a table, 1 GiB
DENSE_LABELS = 256  # a range that fits a byte; counting its gaps costs less than sorting


def checked_maps(
    true: Array, pred: Array, *, axes: int | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both label maps as arrays, once they are known to be label maps of the same pixels.

    Args:
        true: True labels, any shape.
        pred: Predicted labels, same shape.
        axes: Number of axes that both must have; None: any.

    Raises:
        ValueError: Labels that are not integers, unequal shapes, another number of axes, no pixels.
    """
    maps = [
        labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
        for labels in (true, pred)
    ]
    for labels in maps:
        if labels.dtype.kind not in "iu":
            raise ValueError(
                f"label maps must hold integers, got {labels.dtype}: take the arg-max of soft "
                "masks (label_maps) and give a boolean mask an integer dtype"
            )
    if maps[0].shape != maps[1].shape:
        raise ValueError(
            f"label maps must have equal shapes, got {maps[0].shape} for the truth and "
            f"{maps[1].shape} for the prediction: resize the prediction (label_maps)"
        )
    if axes is not None and maps[0].ndim != axes:
        raise ValueError(
            f"a video's label maps must be (frames, rows, columns), got {maps[0].shape}: "
            "add a frame axis to a single image"
        )
    if maps[0].size == 0:
        raise ValueError(f"label maps of shape {maps[0].shape} have no pixels")
    return maps[0], maps[1]


def _codes(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ascending label values, and for each pixel the index of its value."""
    low, high = int(labels.min()), int(labels.max())
    if high - low < DENSE_LABELS:
        # Shifting may overflow the labels' own type, yet it is right in the 256 values of a byte.
        codes = labels.astype(np.uint8)
        codes -= np.uint8(low % 256)
        return np.array(range(low, high + 1), labels.dtype), codes
    values, positions = np.unique(labels, return_inverse=True)
    return values, positions.reshape(labels.shape)


def joint_counts(
    true: NDArray[Any], pred: NDArray[Any], flags: NDArray[np.uint8] | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """True labels (n,) and pixel counts (t, n, k) by frame and pair of labels.

    Labels without pixels are left out.

    Args:
        true: True labels (t, ...).
        pred: Predicted labels, same shape.
        flags: A flag for every pixel, 0 to 3, same shape; counts are then (t, n, k, 4).

    Raises:
        ValueError: So many labels that the table would not fit in memory.
    """
    true_values, true_codes = _codes(true)
    pred_values, pred_codes = _codes(pred)
    n_flags = 1 if flags is None else 4
    shape = (len(true_values), len(pred_values), n_flags)
    cells = math.prod(shape)
    if cells * len(true) > MAX_CELLS:
        raise ValueError(
            f"{shape[0]} true by {shape[1]} predicted labels in {len(true)} frames make a table of "
            f"more than {MAX_CELLS} cells: are these label maps?"
        )
    dtype = np.min_scalar_type(cells)
    counts: NDArray[np.int64] = np.empty((len(true), cells), np.int64)
    for t, (true_frame, pred_frame) in enumerate(zip(true_codes, pred_codes, strict=True)):
        pairs = true_frame.astype(dtype)
        pairs *= dtype.type(shape[1])
        pairs += pred_frame.astype(dtype, copy=False)
        if flags is not None:
            pairs <<= dtype.type(2)
            pairs += flags[t]
        counts[t] = np.bincount(pairs.ravel(), minlength=cells)
    counts = counts.reshape(len(true), *shape)
    pooled = counts.sum((0, 3))
    rows, columns = pooled.any(1), pooled.any(0)
    counts = counts[:, rows][:, :, columns]
    return true_values[rows], counts[..., 0] if flags is None else counts


def boundary_counts(
    true: NDArray[Any], pred: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """True labels (n,) and pixel counts (t, n, k, 4) of label maps (t, h, w).

    The last axis is 2 for a pixel on a true boundary, plus 1 on a predicted one.
    """
    true_values, true_codes = _codes(true)
    _, pred_codes = _codes(pred)
    flags = boundaries(true_codes).view(np.uint8) * np.uint8(2)
    flags += boundaries(pred_codes)
    present, counts = joint_counts(true_codes, pred_codes, flags)
    return true_values[present], counts


def boundaries(labels: Array) -> NDArray[np.bool_]:
    """Pixels on the boundary of their own region, for all regions of the label maps at once.

    A region's boundary is the region minus its erosion by a square of side 2 r + 1, with r = 0.02
    image diagonals, rounded, at least 1 pixel. So a pixel is off the boundary exactly if the square
    around it lies inside the image and holds one label; the image's border is a boundary.

    Args:
        labels: Label maps (..., h, w).

    Raises:
        ValueError: Fewer than two axes, no pixels, or labels that are not integers.
    """
    labels, _ = checked_maps(labels, labels)
    if labels.ndim < 2:
        raise ValueError(f"labels must be (..., rows, columns), got {labels.shape}")
    h, w = labels.shape[-2:]
    radius = max(1, round(BOUNDARY_SHARE * math.hypot(h, w)))
    side = 2 * radius + 1
    boundary = np.ones(labels.shape, bool)
    if min(h, w) >= side:
        inner = np.s_[radius : h - radius, radius : w - radius]
        # Frame by frame and on flat arrays, so that every step runs over a few contiguous pages.
        for frame, found in zip(labels.reshape(-1, h * w), boundary.reshape(-1, h, w), strict=True):
            across = _runs(frame[1:] == frame[:-1], side - 1, stride=1)
            down = _runs(frame[w:] == frame[:-w], side - 1, stride=w)
            uniform = _runs(across, side, stride=w)
            uniform &= down[radius:][: len(uniform)]
            mixed = np.ones(h * w, bool)
            np.logical_not(uniform, out=mixed[radius * (w + 1) :][: len(uniform)])
            found[inner] = mixed.reshape(h, w)[inner]
    return boundary


def _runs(flags: NDArray[np.bool_], length: int, *, stride: int) -> NDArray[np.bool_]:
    """Whether ``length`` flags, every ``stride``-th from here on, are set; starts with room for it.

    Runs along the rows of a flattened picture go on in the next row: the caller drops those.
    """
    covered = 1
    while covered < length:
        step = min(covered, length - covered)
        flags = flags[: -step * stride] & flags[step * stride :]
        covered += step
    return flags
