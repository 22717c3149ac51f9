"""Segmentation scores and slot diagnostics on label maps, defined as in the SlotContrast code.

A label map gives every pixel one integer: ``true`` holds object ids, ``pred`` slot ids. Any
integers will do, in any order, with gaps, negative ones too, as arrays or tensors. Shapes: t
frames, h rows, w columns, n objects, k slots, p patches. A pixel whose true label is
``ignore_label`` (background of MOVi, unlabelled pixels of YouTube-VIS) belongs to no object: the
Rand index drops it together with whatever was predicted there, while a slot's area on it still
counts in that slot's unions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import entr

from slotmatch.contingency import Array, boundaries, boundary_counts, checked_maps, joint_counts
from slotmatch.settings import Empty, check_choice

__all__ = [
    "adjusted_rand_index",
    "boundaries",
    "dataset_metrics",
    "hungarian_iou",
    "identity_switches",
    "j_and_f",
    "label_maps",
    "mask_entropy",
    "mean_best_overlap",
    "slots_in_use",
    "video_metrics",
]


def adjusted_rand_index(
    true: Array, pred: Array, *, ignore_label: int | None = 0, empty: Empty = "perfect"
) -> float:
    """Adjusted Rand index (Hubert and Arabie) of two label maps over the pixels that carry a label.

    With the default ``ignore_label`` this is the foreground score, FG-ARI. A video (t, h, w) pooled
    into one index is the video score, which also asks that an object keeps its slot.

    Args:
        true: Object ids, any shape.
        pred: Slot ids, same shape.
        ignore_label: True label of the pixels that do not count; None counts all.
        empty: Score where no pixel counts: "perfect" gives 1.0, as the reference does for MOVi;
            "skip" gives nan, as it does for truth with unlabelled pixels (YouTube-VIS).

    Returns:
        The index, at most 1. It is 1.0 where its denominator is 0: both maps constant, or both
        different at every pixel.

    Raises:
        ValueError: Unequal shapes, no pixels, labels that are not integers, unknown ``empty``.
    """
    check_choice("empty", empty, Empty)
    true, pred = checked_maps(true, pred)
    labels, counts = joint_counts(true.reshape(1, -1), pred.reshape(1, -1))
    return _rand(counts[0, _is_object(labels, ignore_label)], empty)


def mean_best_overlap(true: Array, pred: Array, *, ignore_label: int | None = 0) -> float:
    """Mean over the objects of the largest IoU any slot has with the object (mBO).

    One slot may be the best of several objects, and slots without an object cost nothing.

    Args:
        true: Object ids, any shape; a video (t, h, w) gives the video score.
        pred: Slot ids, same shape.
        ignore_label: True label that is no object; its pixels still count in the unions. None:
            every label is an object.

    Returns:
        The mean, from 0 to 1; nan where there is no object.

    Raises:
        ValueError: Unequal shapes, no pixels, or labels that are not integers.
    """
    true, pred = checked_maps(true, pred)
    labels, counts = joint_counts(true.reshape(1, -1), pred.reshape(1, -1))
    return float(_best_overlap(counts, _is_object(labels, ignore_label))[0])


def hungarian_iou(true: Array, pred: Array, *, ignore_label: int | None = 0) -> float:
    """Mean IoU of the objects under the best one-to-one assignment of slots to objects.

    Objects left over when slots are too few score 0. Arguments, nan and errors are those of
    `mean_best_overlap`.
    """
    true, pred = checked_maps(true, pred)
    labels, counts = joint_counts(true.reshape(1, -1), pred.reshape(1, -1))
    objects = _is_object(labels, ignore_label)
    if not objects.any():
        return math.nan
    iou = _iou(counts, objects)[0]
    return float(iou[linear_sum_assignment(iou, maximize=True)].sum() / len(iou))


def j_and_f(true: Array, pred: Array, *, ignore_label: int | None = 0) -> dict[str, float]:
    """Region score J, boundary score F and their mean for one video.

    J is the IoU and F the F-measure of the boundary pixels (`boundaries`), both taken per frame and
    averaged over all t frames; a frame without the object gives 0. Slots are assigned to objects
    one to one, once for the video, so that J + F is largest. The scores are means over the objects,
    and objects left over score 0. This is SlotContrast's variant: boundary pixels must coincide,
    where the official DAVIS code also accepts those nearby.

    Args:
        true: Object ids (t, h, w).
        pred: Slot ids (t, h, w).
        ignore_label: True label that is no object; None: every label is one.

    Returns:
        Entries ``j``, ``f``, ``j_and_f``, from 0 to 1; nan where there is no object.

    Raises:
        ValueError: Unequal shapes, not three axes, no pixels, or labels that are not integers.
    """
    labels, counts = boundary_counts(*checked_maps(true, pred, axes=3))
    return _j_and_f(counts, _is_object(labels, ignore_label))


def video_metrics(
    true: Array, pred: Array, *, ignore_label: int | None = 0, empty: Empty = "perfect"
) -> dict[str, float]:
    """All scores of one video, from one pass over its pixels.

    Args:
        true: Object ids (t, h, w).
        pred: Slot ids (t, h, w).
        ignore_label: True label that is no object; None: every label is one.
        empty: What the Rand index gives where no pixel counts: "perfect" 1.0, "skip" nan (see
            `adjusted_rand_index`).

    Returns:
        * ``video_fg_ari``, ``video_mbo``: all frames pooled into one score;
        * ``image_fg_ari``, ``image_mbo``: mean score of the single frames that count;
        * ``image_fg_ari_frames``, ``image_mbo_frames``: how many frames those are. mBO counts
          frames with an object, so under "perfect" the first minus the second is how many frames
          scored 1.0 for being empty;
        * ``j``, ``f``, ``j_and_f``: see `j_and_f`.

        A score with nothing to count is nan. `dataset_metrics` joins the results of many videos.

    Raises:
        ValueError: Unequal shapes, not three axes, no pixels, labels that are not integers, unknown
            ``empty``.
    """
    check_choice("empty", empty, Empty)
    labels, by_boundary = boundary_counts(*checked_maps(true, pred, axes=3))
    objects = _is_object(labels, ignore_label)
    counts = by_boundary.sum(-1)
    pooled = counts.sum(0)

    frame_ari = np.array([_rand(frame[objects], empty) for frame in counts])
    frame_mbo = _best_overlap(counts, objects)
    scores = {
        "video_fg_ari": _rand(pooled[objects], empty),
        "image_fg_ari": _mean(frame_ari),
        "video_mbo": float(_best_overlap(pooled[None], objects)[0]),
        "image_mbo": _mean(frame_mbo),
        "image_fg_ari_frames": int(np.isfinite(frame_ari).sum()),
        "image_mbo_frames": int(np.isfinite(frame_mbo).sum()),
    }
    return scores | _j_and_f(by_boundary, objects)


def dataset_metrics(videos: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Scores of a data set from the `video_metrics` of its videos.

    Videos weigh equally in the video scores and in J&F; frames weigh equally in the image scores,
    so long videos weigh more there. A score that is nan is left out of its mean.

    Returns:
        The entries of `video_metrics`, frame counts summed, and the number of videos that counted:
        ``video_fg_ari_videos`` and ``video_mbo_videos`` (J&F counts the same videos as mBO).

    Raises:
        ValueError: No videos.
    """
    if not videos:
        raise ValueError("videos is empty: pass the video_metrics of at least one video")
    column = {key: np.array([video[key] for video in videos], float) for key in videos[0]}
    scores: dict[str, float] = {
        key: _mean(column[key]) for key in ("video_fg_ari", "video_mbo", "j", "f", "j_and_f")
    }
    for key in ("image_fg_ari", "image_mbo"):
        frames = column[f"{key}_frames"]
        counted = frames > 0
        total = int(frames.sum())
        summed = float((column[key][counted] * frames[counted]).sum())
        scores[key] = summed / total if total else math.nan
        scores[f"{key}_frames"] = total
    for key in ("video_fg_ari", "video_mbo"):
        scores[f"{key}_videos"] = int(np.isfinite(column[key]).sum())
    return scores


def label_maps(
    masks: Array, size: tuple[int, int], *, grid: tuple[int, int] | None = None
) -> NDArray[np.int32]:
    """Slot that owns each pixel: soft patch masks, enlarged bilinearly, then the largest.

    Enlarging comes before the maximum (corners not aligned, no antialiasing), so edges are smoother
    than the patches. The lowest slot wins a tie.

    Args:
        masks: Soft masks (t, k, p) or with other leading axes; the patches in row order.
        size: Rows and columns wanted, in pixels: those of the true label map.
        grid: Rows and columns of the patches; None: a square grid.

    Returns:
        Label maps (t, h, w), slots 0 to k - 1.

    Raises:
        ValueError: Fewer than two axes, no values or values that are not finite, a number of
            patches that does not fill the grid, or a size below one pixel.
    """
    soft = masks.detach() if isinstance(masks, torch.Tensor) else torch.as_tensor(masks)
    if soft.ndim < 2 or 0 in soft.shape:
        raise ValueError(f"masks must be (..., slots, patches), not empty; got {tuple(soft.shape)}")
    *leading, k, p = soft.shape
    rows, columns = grid or (math.isqrt(p), math.isqrt(p))
    if rows * columns != p:
        raise ValueError(
            f"{p} patches do not fill a grid of {rows} x {columns}: pass grid=(rows, columns)"
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (rows, columns) of at least one pixel, got {size}")
    if soft.dtype != torch.float64:
        soft = soft.float()
    if not soft.isfinite().all():
        raise ValueError("masks hold values that are not finite: check the model's output")
    # Frame by frame: all slots of a long video at full size would not fit in memory.
    frames = soft.reshape(-1, 1, k, rows, columns)
    owners = [
        torch.nn.functional.interpolate(frame, tuple(size), mode="bilinear").max(1).indices.int()
        for frame in frames
    ]
    return torch.cat(owners).reshape(*leading, *size).cpu().numpy()


def slots_in_use(pred: Array, *, min_share: float = 0.0) -> float:
    """Mean over the frames of the number of slots that own part of the frame.

    Args:
        pred: Slot ids (t, h, w).
        min_share: Smallest share of the frame, from 0 to 1, that counts as use; 0 means any pixel.

    Raises:
        ValueError: Not three axes, no pixels, labels that are not integers, share outside 0 to 1.
    """
    if not 0 <= min_share <= 1:
        raise ValueError(f"min_share must be between 0 and 1, got {min_share}")
    pred, _ = checked_maps(pred, pred, axes=3)
    _, counts = joint_counts(np.zeros(pred.shape, np.uint8), pred)
    share = counts[:, 0] / counts[:, 0].sum(-1, keepdims=True)
    return float(((share > 0) & (share >= min_share)).sum(-1).mean())


def identity_switches(true: Array, pred: Array, *, ignore_label: int | None = 0) -> float:
    """Share of the steps from one frame to the next at which an object changes its slot.

    An object's slot in a frame is the one of largest IoU, the lowest on a tie. A step joins two
    successive frames that show the object; frames that hide it are passed over, so coming back in
    another slot is a switch. All steps of all objects weigh equally.

    Args:
        true: Object ids (t, h, w).
        pred: Slot ids (t, h, w).
        ignore_label: True label that is no object; None: every label is one.

    Returns:
        The share, from 0 to 1; nan where no object is visible twice.

    Raises:
        ValueError: Unequal shapes, not three axes, no pixels, or labels that are not integers.
    """
    labels, counts = joint_counts(*checked_maps(true, pred, axes=3))
    objects = _is_object(labels, ignore_label)
    owners = _iou(counts, objects).argmax(-1)
    visible = counts[:, objects].sum(-1) > 0
    steps = [np.diff(owner[seen]) != 0 for owner, seen in zip(owners.T, visible.T, strict=True)]
    return _mean(np.concatenate(steps)) if steps else math.nan


def mask_entropy(masks: Array) -> float:
    """Mean entropy of the slots' shares of a patch, divided by its largest value, log k.

    Args:
        masks: Soft masks (t, k, p) or with other leading axes, summing to 1 over the slots.

    Returns:
        0 where each patch belongs to one slot, 1 where all share it equally; 0 for a single slot.

    Raises:
        ValueError: Fewer than two axes, no values, or values that are not shares summing to 1
            (within 0.01, which half precision needs).
    """
    tensor = masks.detach() if isinstance(masks, torch.Tensor) else torch.as_tensor(masks)
    shares = tensor.double().cpu().numpy()
    if shares.ndim < 2 or shares.size == 0:
        raise ValueError(f"masks must be (..., slots, patches), not empty; got {shares.shape}")
    if not ((shares >= 0).all() and np.allclose(shares.sum(-2), 1, rtol=0, atol=0.01)):
        raise ValueError(
            "masks must be shares that sum to 1 over the slots: pass them after soft-max"
        )
    n_slots = shares.shape[-2]
    return float(entr(shares).sum(-2).mean() / math.log(n_slots)) if n_slots > 1 else 0.0


def _is_object(labels: NDArray[Any], ignore_label: int | None) -> NDArray[np.bool_]:
    return np.ones(len(labels), bool) if ignore_label is None else labels != ignore_label


def _rand(table: NDArray[np.int64], empty: Empty) -> float:
    """Adjusted Rand index of a contingency table (n, k), in exact integer arithmetic."""

    def pairs(counts: NDArray[np.int64]) -> int:
        return int((counts * (counts - 1) // 2).sum())

    if not table.any():
        return 1.0 if empty == "perfect" else math.nan
    both, true, pred = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    all_pairs = pairs(table.sum())
    chance = 2 * true * pred
    spread = all_pairs * (true + pred) - chance
    return (2 * all_pairs * both - chance) / spread if spread else 1.0


def _iou(counts: NDArray[np.int64], objects: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU (t, n objects, k) of objects and slots, 0 where both are absent."""
    shared = counts[:, objects]
    union = shared.sum(2, keepdims=True) + counts.sum(1, keepdims=True) - shared
    return shared / np.maximum(union, 1)


def _best_overlap(counts: NDArray[np.int64], objects: NDArray[np.bool_]) -> NDArray[np.float64]:
    """mBO (t,) of each frame, nan where it has no object."""
    present = counts[:, objects].sum(2) > 0
    best = _iou(counts, objects).max(2)
    n_present = present.sum(1)
    return np.where(n_present > 0, (best * present).sum(1) / np.maximum(n_present, 1), math.nan)


def _j_and_f(counts: NDArray[np.int64], objects: NDArray[np.bool_]) -> dict[str, float]:
    """J, F and their mean from counts (t, n, k, 4) of `boundary_counts`."""
    if not objects.any():
        return {"j": math.nan, "f": math.nan, "j_and_f": math.nan}
    j = _iou(counts.sum(3), objects).mean(0)
    shared = counts[:, objects][..., 3]
    true = counts[:, objects][..., 2:].sum((2, 3))[:, :, None]
    pred = counts[..., 1::2].sum((1, 3))[:, None]
    f = (2 * shared / np.maximum(true + pred, 1)).mean(0)
    matched = linear_sum_assignment(j + f, maximize=True)
    j_mean, f_mean = float(j[matched].sum() / len(j)), float(f[matched].sum() / len(f))
    return {"j": j_mean, "f": f_mean, "j_and_f": (j_mean + f_mean) / 2}


def _mean(values: NDArray[Any]) -> float:
    """Mean of what is finite, nan where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan
