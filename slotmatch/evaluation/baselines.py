"""What any teacher has to beat: a fixed grid of blocks, and k-means on the very features it reads.

Each returns what ``evaluation.evaluate`` does: a list of one value a video for every metric.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from einops import reduce
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from tqdm.auto import tqdm

from slotmatch.backbones import Features
from slotmatch.data import Clip
from slotmatch.evaluation.scoring import columns, score_labels, score_masks

__all__ = ["block_grid", "chain", "colours_and_places", "kmeans_per_frame", "kmeans_per_video"]

N_STARTS = 4
"""Runs of each k-means, of which the best counts."""

Scores = dict[str, list[float]]


def block_grid(clips: Iterable[Clip], rows: int, cols: int) -> Scores:
    """Scores of slots that are equal blocks of the image, the same in every frame of every video.

    Raises:
        ValueError: no clips, or fewer than one row or column.
    """
    if min(rows, cols) < 1:
        raise ValueError(f"rows and cols must be 1 or more, got {rows} and {cols}")
    return columns(score_labels(clip, _blocks(clip.labels.shape, rows, cols)) for clip in clips)


def kmeans_per_frame(
    clips: Sequence[Clip],
    features: Features | Sequence[np.ndarray],
    n_clusters: int | Literal["true"],
    *,
    seed: int = 0,
) -> Scores:
    """Scores of each frame's patches clustered by their features (scikit-learn's k-means).

    Frames are clustered on their own, then ``chain`` names clusters alike that have the nearest
    centres in neighbouring frames, for the video scores; image scores do not depend on names.

    Args:
        clips: videos with labels.
        features: of each video (T,P,F) on a square grid, P of a frame row by row.
        n_clusters: of a frame; ``"true"``: as many as its true labels, background included, which
            no method without labels knows.
        seed: of the first centres.

    Raises:
        ValueError: no clips, other than one (T,P,F) of features for each, or no clusters.
    """

    def cluster(clip: Clip, own: np.ndarray) -> np.ndarray:
        frames = zip(own, clip.labels, strict=True)
        fits = [_fit(frame, _count(n_clusters, labels), seed) for frame, labels in frames]
        names = chain([fit.cluster_centers_ for fit in fits])
        return np.stack([name[fit.labels_] for name, fit in zip(names, fits, strict=True)])

    return _clustered(clips, features, n_clusters, cluster)


def kmeans_per_video(
    clips: Sequence[Clip],
    features: Features | Sequence[np.ndarray],
    n_clusters: int | Literal["true"],
    *,
    seed: int = 0,
) -> Scores:
    """Scores of all patches of a video clustered together: ``kmeans_per_frame`` without chaining.

    ``"true"`` counts the labels of the whole video.
    """

    def cluster(clip: Clip, own: np.ndarray) -> np.ndarray:
        count = _count(n_clusters, clip.labels)
        return _fit(own.reshape(-1, own.shape[-1]), count, seed).labels_.reshape(own.shape[:2])

    return _clustered(clips, features, n_clusters, cluster)


def colours_and_places(clips: Sequence[Clip], grid: int) -> list[np.ndarray]:
    """Mean colour and place of each patch, (T,P,5) a clip: features of one that knows nothing else.

    Each of the five has unit variance over all patches of all clips.

    Raises:
        ValueError: frames that do not divide into ``grid`` rows and columns.
    """
    found = []
    for clip in clips:
        if any(side % grid for side in clip.video.shape[1:3]):
            raise ValueError(
                f"{clip.id}: frames {clip.video.shape[1:3]} do not divide into {grid} x {grid}"
            )
        colours = reduce(
            clip.video / 255, "t (gh h) (gw w) c -> t (gh gw) c", "mean", gh=grid, gw=grid
        )
        places = np.indices((grid, grid)).reshape(2, -1).T / grid
        places = np.broadcast_to(places, (len(colours), *places.shape))
        found.append(np.concatenate([colours, places], axis=-1))
    spread = np.concatenate([own.reshape(-1, own.shape[-1]) for own in found]).std(0)
    return [own / np.maximum(spread, np.finfo(float).eps) for own in found]


def chain(centres: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Names of the clusters of each frame of a video, from their centres (K,F), K of each frame.

    Clusters of neighbouring frames share a name under the one-to-one assignment with the smallest
    sum of squared distances between their centres; one left over gets a name not used before.
    """
    names = [np.arange(len(centres[0]))]
    n_names = len(centres[0])
    for before, now in pairwise(centres):
        old, new = linear_sum_assignment(cdist(before, now, "sqeuclidean"))
        own = np.full(len(now), -1)
        own[new] = names[-1][old]
        fresh = own < 0
        own[fresh] = n_names + np.arange(fresh.sum())
        n_names += int(fresh.sum())
        names.append(own)
    return names


def _clustered(
    clips: Sequence[Clip],
    features: Features | Sequence[np.ndarray],
    n_clusters: int | str,
    cluster: Callable[[Clip, np.ndarray], np.ndarray],
) -> Scores:
    """Scores of the patches' clusters (T,P), enlarged as a model's masks are."""
    if n_clusters != "true" and (not isinstance(n_clusters, int) or n_clusters < 1):
        raise ValueError(f'n_clusters must be 1 or more, or "true", got {n_clusters!r}')
    if len(features) != len(clips):
        raise ValueError(f"got features of {len(features)} videos for {len(clips)} clips")
    pairs = tqdm(
        zip(clips, features.array if isinstance(features, Features) else features, strict=True),
        desc="k-means",
        total=len(clips),
        disable=None,
    )
    # Fits are so small that handing them to threads costs more than it gains.
    with threadpool_limits(1):
        return columns(
            score_masks(clip, _one_hot(cluster(clip, np.asarray(own, np.float32))))
            for clip, own in pairs
        )


def _fit(points: np.ndarray, n_clusters: int, seed: int) -> KMeans:
    n_clusters = min(n_clusters, len(points))
    return KMeans(n_clusters, n_init=N_STARTS, random_state=seed, copy_x=False).fit(points)


def _count(n_clusters: int | str, labels: np.ndarray) -> int:
    return len(np.unique(labels)) if n_clusters == "true" else int(n_clusters)


def _one_hot(assignment: np.ndarray) -> Tensor:
    """Masks (T,K,P) of clusters (T,P)."""
    index = torch.from_numpy(np.asarray(assignment, np.int64))
    return torch.nn.functional.one_hot(index).mT.float()


def _blocks(shape: tuple[int, ...], rows: int, cols: int) -> np.ndarray:
    n_frames, height, width = shape
    row = np.arange(height) * rows // height
    column = np.arange(width) * cols // width
    return np.broadcast_to(row[:, None] * cols + column, (n_frames, height, width))
