"""The metrics of `slotmatch.metrics.video_metrics`, written straight from their definitions.

Every label becomes a mask of its own, (T,N,H,W), and all counts are sums of products of masks.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["video_metrics"]


def video_metrics(true: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """Scores of label maps (T,H,W), where true label 0 is no object and an empty frame is perfect.

    The entries of `slotmatch.metrics.video_metrics` but for the numbers of frames.
    """
    objects, slots = one_hot(true)[:, 1:], one_hot(pred)
    shared = torch.einsum("tnhw,tkhw->tnk", objects, slots).double()
    n_true, n_pred = (masks.sum((2, 3)).double() for masks in (objects, slots))
    overlap = iou(shared, n_true, n_pred)
    pooled = iou(*(counts.sum(0, keepdim=True) for counts in (shared, n_true, n_pred)))[0]
    visible = n_true > 0
    best = [frame[seen].amax(1).mean() for frame, seen in zip(overlap, visible, strict=True)]
    edges_true, edges_pred = boundary(objects), boundary(slots)
    hits = torch.einsum("tnhw,tkhw->tnk", edges_true, edges_pred).double()
    sizes = edges_true.sum((2, 3))[:, :, None] + edges_pred.sum((2, 3))[:, None]
    j, f = overlap.mean(0), (2 * hits / sizes.clamp(min=1)).mean(0)
    rows, columns = linear_sum_assignment(j + f, maximize=True)
    j_mean, f_mean = (float(score[rows, columns].sum() / len(score)) for score in (j, f))
    return {
        "video_fg_ari": rand_index(shared.sum(0)),
        "image_fg_ari": float(np.mean([rand_index(frame) for frame in shared])),
        "video_mbo": float(pooled.amax(1).mean()),
        "image_mbo": float(torch.stack(best).nanmean()),
        "j": j_mean,
        "f": f_mean,
        "j_and_f": (j_mean + f_mean) / 2,
    }


def one_hot(labels: np.ndarray) -> Tensor:
    """A mask for each label from 0 to the largest: (T,H,W) -> (T,N,H,W)."""
    return F.one_hot(torch.from_numpy(labels).long()).permute(0, 3, 1, 2).float()


def iou(shared: Tensor, n_true: Tensor, n_pred: Tensor) -> Tensor:
    """Intersection over union (T,N,K)."""
    union = n_true[:, :, None] + n_pred[:, None] - shared
    return shared / union.clamp(min=1)


def boundary(masks: Tensor) -> Tensor:
    """Each mask minus its erosion by a square of 0.02 image diagonals to each side."""
    radius = max(1, round(0.02 * math.hypot(*masks.shape[-2:])))
    outside = F.pad(1 - masks, (radius,) * 4, value=1.0)
    return masks * F.max_pool2d(outside, 2 * radius + 1, stride=1)


def rand_index(table: Tensor) -> float:
    """Adjusted Rand index of a table of counts (N,K)."""

    def pairs(counts: Tensor) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, true, pred = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = true * pred / max(pairs(table.sum()), 1.0)
    largest = (true + pred) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)
