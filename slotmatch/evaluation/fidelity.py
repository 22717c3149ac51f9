"""How closely a student follows its teacher, or a model itself once its frames are disturbed.

The number to beat is `constant_slots`: a vector for each slot index, the same for all videos, that
knows nothing of what is seen. The ceiling is the teacher's own constancy: no student can follow a
teacher more closely than the teacher follows itself.

Shapes: N videos; T frames, K slots, D slot width, H and W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from slotmatch import metrics
from slotmatch.backbones import Backbone, Features, encode_frames
from slotmatch.data import Clip
from slotmatch.data.disturbances import disturb
from slotmatch.data.preprocessing import float_frames
from slotmatch.evaluation.scoring import VALIDATED, columns, joined, outputs, score_labels
from slotmatch.losses import match_slots, reorder_slots
from slotmatch.model import VideoSlotModel
from slotmatch.settings import Disturbance, Precision

__all__ = [
    "Followed",
    "constancy",
    "constant_slots",
    "cosine_over_time",
    "disturbed_clips",
    "feature_change",
    "fidelity",
    "follow",
    "score_against",
    "score_followed",
]

KINDS: tuple[Disturbance, ...] = get_args(Disturbance)


@dataclass(frozen=True)
class Followed:
    """What a model sees in one video: ``slots`` (T,K,D), and a slot's number at each pixel."""

    slots: Tensor
    labels: np.ndarray  # (T,H,W)


def follow(
    model: VideoSlotModel,
    clips: Iterable[Clip],
    features: Features | np.ndarray | None = None,
    *,
    precision: Precision = "no",
) -> list[Followed]:
    """Slots and label maps of every clip, from their features if these are at hand.

    Raises:
        ValueError: a precision that ``evaluate`` refuses.
    """
    return [
        Followed(slots, metrics.label_maps(masks, clip.labels.shape[1:]))
        for clip, slots, masks in outputs(model, clips, features, precision=precision)
    ]


def constant_slots(followed: Sequence[Followed]) -> Tensor:
    """The vector (K,D) of each slot index that has the largest mean cosine with a model's slots.

    That is the mean of these slots at unit length. Fit it on other videos than it is compared on.
    """
    slots = torch.cat([one.slots for one in followed])
    return F.normalize(F.normalize(slots, dim=-1).mean(0), dim=-1)


def fidelity(
    student: Sequence[Followed],
    teacher: Sequence[Followed],
    clips: Sequence[Clip],
    *,
    constant: Tensor | None = None,
) -> dict[str, list[float]]:
    """Agreement of a student with its teacher on the same videos: a value a video.

    Returns:
        ``slot_cosine``: mean over frames and slots of the cosine of slots of equal index, and
        ``slot_cosine_first`` and ``slot_cosine_last`` of these frames alone;
        ``slot_cosine_permuted``: under the permutation of the video's slots that is best for it;
        ``same_slot`` and ``same_slot_objects``: share of all pixels, and of those of objects, that
        both give to slots of equal index; ``map_ari``: adjusted Rand index of the two label maps;
        and with ``constant`` (``constant_slots`` of the teacher) ``constant_cosine``, which a
        student that sees anything has to beat.

    Raises:
        ValueError: other numbers of videos.
    """
    if not len(student) == len(teacher) == len(clips) or not clips:
        raise ValueError(
            f"got {len(student)} videos of the student, {len(teacher)} of the teacher and "
            f"{len(clips)} clips: give one or more, the same of each"
        )
    return columns(
        _agreement(own, other, clip, constant)
        for own, other, clip in zip(student, teacher, clips, strict=True)
    )


def _agreement(
    own: Followed, other: Followed, clip: Clip, constant: Tensor | None
) -> dict[str, float]:
    cosines = _cosines(own, other)
    order = match_slots(own.slots[None], other.slots[None])
    permuted = F.cosine_similarity(own.slots[None], reorder_slots(other.slots[None], order), dim=-1)
    same = own.labels == other.labels
    objects = clip.labels > 0
    row = {
        "slot_cosine": float(cosines.mean()),
        "slot_cosine_first": float(cosines[0]),
        "slot_cosine_last": float(cosines[-1]),
        "slot_cosine_permuted": float(permuted.mean()),
        "same_slot": float(same.mean()),
        "same_slot_objects": float(same[objects].mean()) if objects.any() else float("nan"),
        "map_ari": metrics.adjusted_rand_index(other.labels, own.labels, ignore_label=None),
    }
    if constant is not None:
        row["constant_cosine"] = float(F.cosine_similarity(constant, other.slots, dim=-1).mean())
    return row


def cosine_over_time(student: Sequence[Followed], teacher: Sequence[Followed]) -> np.ndarray:
    """Mean cosine of slots of equal index in each frame, over videos of one length: (T,)."""
    return np.mean(
        [_cosines(own, other).numpy() for own, other in zip(student, teacher, strict=True)], axis=0
    )


def _cosines(own: Followed, other: Followed) -> Tensor:
    """Of each frame, the mean over slots: (T,)."""
    return F.cosine_similarity(own.slots, other.slots, dim=-1).mean(-1)


def score_followed(followed: Sequence[Followed], clips: Sequence[Clip]) -> dict[str, list[float]]:
    """All metrics (``score_labels``) of what a model sees in videos: a value a video."""
    return columns(
        score_labels(clip, own.labels) for clip, own in zip(clips, followed, strict=True)
    )


def score_against(
    teacher: Sequence[Followed],
    clips: Sequence[Clip],
    features: Features | np.ndarray | None = None,
) -> Callable[[VideoSlotModel], dict[str, float]]:
    """A student's mean scores and fidelity on a few clips, as ``training.train`` wants them.

    What ``score_on`` gives, and the means of ``slot_cosine``, that of the last frame, and
    ``same_slot_objects``, from one pass of the student.
    """

    def validate(model: VideoSlotModel) -> dict[str, float]:
        followed = follow(model, clips, features)
        found = joined(score_followed(followed, clips))
        agreement = fidelity(followed, teacher, clips)
        return {name: found[name] for name in VALIDATED} | {
            name: float(np.nanmean(agreement[name]))
            for name in ("slot_cosine", "slot_cosine_last", "same_slot_objects")
        }

    return validate


def disturbed_clips(clips: Iterable[Clip], kind: Disturbance) -> list[Clip]:
    """The same videos after a disturbance; noise is drawn from a clip's number."""
    return [
        Clip(_pixels(disturb(float_frames(clip.video), kind, seed=seed)), clip.labels, clip.id)
        for seed, clip in enumerate(clips)
    ]


def constancy(
    model: VideoSlotModel, clips: Sequence[Clip]
) -> dict[Disturbance, dict[str, list[float]]]:
    """``fidelity`` of a model to itself under each disturbance: the ceiling of any student."""
    undisturbed = follow(model, clips)
    return {
        kind: fidelity(follow(model, disturbed_clips(clips, kind)), undisturbed, clips)
        for kind in KINDS
    }


def feature_change(backbone: Backbone, clips: Sequence[Clip]) -> dict[Disturbance, float]:
    """How far features move under each disturbance, as a share of their spread over patches.

    The root of the mean squared change over that of the deviation from the mean feature, of all
    channels together.
    """

    def encoded(some: Sequence[Clip]) -> Tensor:
        return torch.cat([encode_frames(clip.video, backbone).float() for clip in some])

    before = encoded(clips)
    spread = (before - before.mean((0, 1))).square().mean()
    return {
        kind: float(
            ((encoded(disturbed_clips(clips, kind)) - before).square().mean() / spread).sqrt()
        )
        for kind in KINDS
    }


def _pixels(frames: Tensor) -> np.ndarray:
    return rearrange(255 * frames, "t c h w -> t h w c").round().byte().numpy()
