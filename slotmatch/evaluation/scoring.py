"""Scores of a model on the videos of a data set, and the bound its patch grid puts on any score.

What exactly is scored differs between papers: see `slotmatch.evaluation.protocols`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.data import Subset
from tqdm.auto import tqdm

from slotmatch import metrics
from slotmatch.backbones import Features
from slotmatch.data import Clip
from slotmatch.data.preprocessing import Preprocessing, float_frames
from slotmatch.evaluation.protocols import ORIGINAL, Protocol, samples
from slotmatch.model import VideoSlotModel
from slotmatch.progress import hidden
from slotmatch.settings import Masks, Precision, check_choice

__all__ = [
    "VALIDATED",
    "columns",
    "evaluate",
    "evaluate_samples",
    "grid_oracle",
    "joined",
    "outputs",
    "score_labels",
    "score_masks",
    "score_on",
]

VALIDATED = ("video_fg_ari", "image_fg_ari", "video_mbo")
"""Scores that are followed while a model trains."""


def evaluate(
    model: VideoSlotModel,
    clips: Sequence[Clip],
    *,
    features: Features | np.ndarray | None = None,
    batch_size: int = 4,
    masks: Masks | None = None,
    protocol: Protocol = ORIGINAL,
    precision: Precision = "no",
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
        masks: ``"decoder"``, as SlotContrast scores, or slot attention's, which need no decoder;
            None: the protocol's.
        protocol: what counts; ``protocols.protocol_for`` gives the published ones.
        precision: of backbone, slots and decoder (`slotmatch.precision`); scores are computed from
            single-precision masks always.
        progress: shows a bar; None: if the output is a terminal.

    Returns:
        Lists of one value a sample, which is a video but for protocols with windows: those of
        ``score_labels`` and ``mask_entropy``.

    Raises:
        ValueError: no clips, another number of features than clips or those of another backbone, an
            unknown kind of masks, a model without backbone and no features, features with a
            protocol of windows, a precision that the device does not have, or half precision with
            features that a backbone made in single.
    """
    return evaluate_samples(
        model,
        clips,
        features=features,
        batch_size=batch_size,
        masks=masks,
        protocol=protocol,
        precision=precision,
        progress=progress,
    )[1]


def evaluate_samples(
    model: VideoSlotModel,
    clips: Sequence[Clip],
    *,
    features: Features | np.ndarray | None = None,
    batch_size: int = 4,
    masks: Masks | None = None,
    protocol: Protocol = ORIGINAL,
    precision: Precision = "no",
    progress: bool | None = None,
) -> tuple[list[str], dict[str, list[float]]]:
    """The ids of the samples that a protocol counts, and what ``evaluate`` returns for them."""
    masks = masks or protocol.masks
    check_choice("masks", masks, Masks)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if (kept := _fitting(features, clips)) is not None:
        kept.check_made_by(model.backbone)
    if features is not None and protocol.window is not None:
        raise ValueError(
            f"protocol {protocol.name!r} cuts videos into windows of {protocol.window} frames, "
            "which features of whole videos do not fit: leave them out"
        )
    if features is None and model.backbone is None:
        raise ValueError("this model has no backbone: give features of the clips")
    total = min(len(clips), protocol.n_videos or len(clips)) if protocol.window is None else None
    bar = tqdm(total=total, desc="evaluating", unit="video", disable=hidden(progress))
    ids: list[str] = []
    scores: list[dict[str, float]] = []
    with bar:
        for clip, _, own in outputs(
            model,
            samples(clips, protocol),
            features,
            batch_size=batch_size,
            masks=masks,
            preprocessing=protocol.preprocessing,
            precision=precision,
        ):
            scores.append(score_masks(clip, own, protocol=protocol))
            ids.append(clip.id)
            bar.update()
    return ids, columns(scores)


def outputs(
    model: VideoSlotModel,
    clips: Iterable[Clip],
    features: Features | np.ndarray | None = None,
    *,
    batch_size: int = 4,
    masks: Masks = "decoder",
    preprocessing: Preprocessing = ORIGINAL.preprocessing,
    precision: Precision = "no",
) -> Iterator[tuple[Clip, Tensor, Tensor]]:
    """Each clip with its slots (T,K,D) and soft masks (T,K,P), on the CPU in single precision.

    Arguments are those of ``evaluate``; the model is in evaluation mode while a batch passes.
    """
    if precision != "no" and features is not None and model.backbone is not None:
        raise ValueError(
            f"precision {precision!r} is the backbone's too, and the features were made in single "
            "precision: leave them out"
        )
    sampled = model.config.initial_slots == "sampled"
    done = 0
    for batch in _batches(clips, 1 if sampled else batch_size):
        seen = None if features is None else features[done : done + len(batch)]
        was_training = model.training
        model.eval()
        found = list(
            model.stream(
                _frames(batch, seen, preprocessing, model.decoder.positions.device),
                decode=masks == "decoder",
                precision=precision,
                generator=torch.Generator().manual_seed(done),
            )
        )
        model.train(was_training)
        slots = torch.cat([output.slots for output in found], dim=1).float().cpu()
        soft = torch.cat([output.segmentation for output in found], dim=1).float().cpu()
        yield from zip(batch, slots, soft, strict=True)
        done += len(batch)


def score_on(
    clips: Sequence[Clip],
    features: Features | np.ndarray | None = None,
    *,
    protocol: Protocol = ORIGINAL,
    process: tuple[int, int] = (0, 1),
    gather: Callable[[list[dict[str, float]]], list[dict[str, float]]] = list,
) -> Callable[[VideoSlotModel], dict[str, float]]:
    """A model's mean scores on a few clips, as ``training.train`` wants them for ``validate``.

    Clips that are read when asked for are read anew each time. The function returned gives
    ``video_fg_ari``, ``image_fg_ari`` and ``video_mbo``, joined as ``metrics.dataset_metrics``
    does. Arguments are those of ``evaluate``, and for processes that share the work:

    Args:
        process: number of this process and how many there are. Each scores a part of the clips; a
            model that draws its initial slots is scored whole by each, since a draw depends on the
            place of a video.
        gather: joins the lists of all processes in their order, as ``accelerate.utils`` has it.
    """
    n_clips = min(len(clips), protocol.n_videos or len(clips))
    kept = _fitting(features, clips)

    def validate(model: VideoSlotModel) -> dict[str, float]:
        shared = process[1] > 1 and model.config.initial_slots != "sampled"
        number, total = process if shared else (0, 1)
        part = range(n_clips * number // total, n_clips * (number + 1) // total)
        rows: list[dict[str, float]] = []
        if part or not shared:
            found = evaluate(
                model,
                Subset(clips, part),  # type: ignore[arg-type]
                features=kept and replace(kept, array=kept.array[part.start : part.stop]),
                protocol=replace(protocol, n_videos=None),
                progress=False,
            )
            rows = _rows(found)
        scores = metrics.dataset_metrics(gather(rows) if shared else rows)
        return {name: scores[name] for name in VALIDATED}

    return validate


def grid_oracle(
    clips: Iterable[Clip], grid: int, *, protocol: Protocol = ORIGINAL
) -> dict[str, list[float]]:
    """The metrics of the true labels, seen through a square grid of patches.

    Each label's share of each patch (``grid`` of them a side) is enlarged as a model's masks are.
    So what is lost is what masks on such a grid cannot draw. No ceiling of FG-ARI: objects smaller
    than a patch are lost here to what surrounds them, and a model may paint too much of them.
    Returns what ``evaluate`` returns.

    Raises:
        ValueError: no clips, or a grid without patches.
    """
    if grid < 1:
        raise ValueError(f"grid must be 1 patch a side or more, got {grid}")
    return columns(
        score_masks(clip, _shares(clip.labels, grid), protocol=protocol)
        for clip in samples(clips, protocol)
    )


def score_masks(clip: Clip, masks: Tensor, *, protocol: Protocol = ORIGINAL) -> dict[str, float]:
    """All metrics of soft masks (T,K,P) on a square grid against a sample's labels.

    Raises:
        ValueError: see ``score_labels``.
    """
    predicted = metrics.label_maps(masks, clip.labels.shape[1:])
    scores = score_labels(clip, predicted, protocol=protocol)
    return scores | {"mask_entropy": metrics.mask_entropy(masks[int(protocol.skip_first) :])}


def score_labels(
    clip: Clip, predicted: np.ndarray, *, protocol: Protocol = ORIGINAL
) -> dict[str, float]:
    """All metrics of label maps (T,H,W) against a sample's labels; their mask entropy is 0.

    Those of ``metrics.video_metrics``, ``slots_in_use`` and ``identity_switches``. Where background
    counts, ``video_mbo`` and ``image_mbo`` have it as one more object, and ``video_ari`` (the Rand
    index of all pixels) and ``video_iou`` (slots and objects paired one to one) come on top;
    FG-ARI, J&F and switches are of objects always.

    Raises:
        ValueError: labels of another size than the maps, or no frame left to score.
    """
    true = clip.labels
    if protocol.skip_first:
        if len(true) < 2:
            raise ValueError(
                f"{clip.id} has one frame, and protocol {protocol.name!r} skips the first"
            )
        true, predicted = true[1:], predicted[1:]
    scores = metrics.video_metrics(true, predicted, empty=protocol.empty)
    if protocol.background_counts:
        everything = metrics.video_metrics(true, predicted, ignore_label=None)
        scores |= {name: value for name, value in everything.items() if "mbo" in name}
        scores["video_ari"] = everything["video_fg_ari"]
        scores["video_iou"] = metrics.hungarian_iou(true, predicted, ignore_label=None)
    return {
        **scores,
        "slots_in_use": metrics.slots_in_use(predicted),
        "identity_switches": metrics.identity_switches(true, predicted),
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


def joined(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The scores of a data set (``metrics.dataset_metrics``) from the lists of ``evaluate``."""
    return metrics.dataset_metrics(_rows(scores))


def _rows(scores: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """The metrics of each video: what ``columns`` put into lists."""
    return [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]


def _fitting(features: Features | np.ndarray | None, clips: Sequence[Clip]) -> Features | None:
    """Features of as many videos as there are clips, or none."""
    if features is not None and len(features) != len(clips):
        raise ValueError(f"got features of {len(features)} videos for {len(clips)} clips")
    return None if features is None else Features.of(features)


def _frames(
    clips: Sequence[Clip],
    features: np.ndarray | None,
    preprocessing: Preprocessing,
    device: torch.device,
) -> Iterator[Tensor]:
    """What a model reads of clips of one size, frame by frame."""
    for t in range(len(clips[0].video)):
        if features is not None:
            yield torch.from_numpy(np.array(features[:, t]))
        else:
            pixels = torch.from_numpy(np.stack([clip.video[t] for clip in clips])).to(device)
            yield preprocessing.resize(float_frames(pixels))


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
