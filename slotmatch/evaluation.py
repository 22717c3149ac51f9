"""Scores of a model on the videos of a data set, and the bound its patch grid puts on any score."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm.auto import tqdm

from slotmatch import metrics
from slotmatch.data import Clip
from slotmatch.model import MASKS, VideoSlotModel

__all__ = [
    "MASKS",
    "columns",
    "evaluate",
    "grid_oracle",
    "score_labels",
    "score_masks",
    "score_on",
]

VALIDATED = ("video_fg_ari", "image_fg_ari", "video_mbo")


def evaluate(
    model: VideoSlotModel,
    clips: Sequence[Clip],
    *,
    features: np.ndarray | None = None,
    batch_size: int = 4,
    masks: Literal["decoder", "attention"] = "decoder",
    progress: bool | None = None,
) -> dict[str, list[float]]:
    """Every metric of every video, in the order of the clips.

    A video passes as a whole, from the initial slots on. Its soft masks are enlarged to the size of
    its true labels before a pixel gets its slot (``metrics.label_maps``). Initial slots that are
    sampled are drawn from the video's number, one video at a time, so the batch does not matter.

    Args:
        model: runs where its weights are, and keeps its mode.
        clips: videos (T,H,W,3) with labels (T,H,W), of any lengths and sizes.
        features: their features (N,T,P,F) if these are at hand; None: computed from the frames.
        batch_size: neighbouring videos of one size that pass together.
        masks: ``"decoder"``, as the paper has it, or slot attention's, which need no decoder.
        progress: shows a bar; None: if the output is a terminal.

    Returns:
        Lists of one value a video: those of ``metrics.video_metrics``, ``slots_in_use``,
        ``identity_switches`` and ``mask_entropy``.

    Raises:
        ValueError: no clips, another number of features than clips, an unknown kind of masks, or a
            model without backbone and no features.
    """
    if masks not in MASKS:
        raise ValueError(f"masks must be one of {MASKS}, got {masks!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if features is not None and len(features) != len(clips):
        raise ValueError(f"got features of {len(features)} videos for {len(clips)} clips")
    if features is None and model.backbone is None:
        raise ValueError("this model has no backbone: give features of the clips")
    sampled = model.config.initial_slots == "sampled"
    was_training = model.training
    model.eval()
    hidden = None if progress is None else not progress
    bar = tqdm(total=len(clips), desc="evaluating", unit="video", disable=hidden)
    scores: list[dict[str, float]] = []
    with bar:
        for batch in _batches(clips, 1 if sampled else batch_size):
            seen = None if features is None else features[len(scores) : len(scores) + len(batch)]
            soft = _soft_masks(model, batch, seen, masks, seed=len(scores))
            scores += [score_masks(clip, own) for clip, own in zip(batch, soft, strict=True)]
            bar.update(len(batch))
    model.train(was_training)
    return columns(scores)


def score_on(
    clips: Iterable[Clip],
    features: np.ndarray | None = None,
    *,
    batch_size: int = 4,
    masks: Literal["decoder", "attention"] = "decoder",
) -> Callable[[VideoSlotModel], dict[str, float]]:
    """A model's mean scores on a few clips, as ``training.train`` wants them for ``validate``.

    The clips are kept in memory. The function returned gives ``video_fg_ari``, ``image_fg_ari`` and
    ``video_mbo``, joined as ``metrics.dataset_metrics`` does. Arguments are those of ``evaluate``.
    """
    clips = list(clips)

    def validate(model: VideoSlotModel) -> dict[str, float]:
        found = evaluate(
            model, clips, features=features, batch_size=batch_size, masks=masks, progress=False
        )
        videos = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        joined = metrics.dataset_metrics(videos)
        return {name: joined[name] for name in VALIDATED}

    return validate


def grid_oracle(clips: Iterable[Clip], grid: int) -> dict[str, list[float]]:
    """The metrics of the true labels, seen through a square grid of patches: a bound on any model.

    Each label's share of each patch (``grid`` of them a side) is enlarged as a model's masks are.
    So what is lost is what masks on such a grid cannot draw. Returns what ``evaluate`` returns.

    Raises:
        ValueError: no clips, or a grid without patches.
    """
    if grid < 1:
        raise ValueError(f"grid must be 1 patch a side or more, got {grid}")
    return columns(score_masks(clip, _shares(clip.labels, grid)) for clip in clips)


def score_masks(
    clip: Clip, masks: Tensor, *, grid: tuple[int, int] | None = None
) -> dict[str, float]:
    """All metrics of soft masks (T,K,P) against a clip's labels; ``grid`` as in ``label_maps``."""
    predicted = metrics.label_maps(masks, clip.labels.shape[1:], grid=grid)
    return score_labels(clip, predicted) | {"mask_entropy": metrics.mask_entropy(masks)}


def score_labels(clip: Clip, predicted: np.ndarray) -> dict[str, float]:
    """All metrics of label maps (T,H,W) against a clip's labels; their mask entropy is 0."""
    return {
        **metrics.video_metrics(clip.labels, predicted),
        "slots_in_use": metrics.slots_in_use(predicted),
        "identity_switches": metrics.identity_switches(clip.labels, predicted),
        "mask_entropy": 0.0,
    }


def columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """The metrics of many videos as one list a metric.

    Raises:
        ValueError: no videos.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("there are no clips to score: give one or more")
    return {name: [row[name] for row in rows] for name in rows[0]}


@torch.inference_mode()
def _soft_masks(
    model: VideoSlotModel,
    clips: Sequence[Clip],
    features: np.ndarray | None,
    masks: str,
    *,
    seed: int,
) -> Tensor:
    """Masks (B,T,K,P) of clips of one size."""
    device = model.decoder.positions.device
    decode = masks == "decoder"
    generator = torch.Generator().manual_seed(seed)
    if features is None:
        frames = torch.from_numpy(np.stack([clip.video for clip in clips])).to(device)
        video = rearrange(frames, "b t h w c -> b t c h w").float() / 255
        output = model(video, reconstruct=False, decode=decode, generator=generator)
    else:
        seen = torch.from_numpy(np.array(features)).to(device)
        output = model.forward_features(seen, reconstruct=False, decode=decode, generator=generator)
    return output.segmentation.float().cpu()


def _batches(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    """Neighbouring clips of one shape, up to ``size`` of them."""
    batch: list[Clip] = []
    for clip in clips:
        if batch and (len(batch) == size or batch[0].video.shape != clip.video.shape):
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


def _shares(labels: np.ndarray, grid: int) -> Tensor:
    """Share (T,K,P) of each of the K labels (T,H,W) in each patch."""
    values, index = np.unique(labels, return_inverse=True)
    own = F.one_hot(torch.from_numpy(index.reshape(labels.shape)), len(values))
    pooled = F.adaptive_avg_pool2d(rearrange(own, "t h w k -> t k h w").float(), grid)
    return rearrange(pooled, "t k h w -> t k (h w)")
