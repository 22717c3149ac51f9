"""One training step of SlotMatch, on one screen: `slotmatch_step`.

A new term is one line there, one pure function in ``slotmatch.losses`` and one name in
``recipe.TERMS``; a loss that could be added to the paper's is one line in
`slotmatch.training.added`.

Shapes: B clips, T frames, K slots, D slot width, P patches, F feature width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slotmatch.losses import feature_reconstruction, slot_contrast, slot_match
from slotmatch.model import VideoSlotModel
from slotmatch.precision import autocast, full_precision
from slotmatch.training.added import ADDED, DECODED
from slotmatch.training.loading import Batch
from slotmatch.training.recipe import TrainConfig, term_weights
from slotmatch.training.student import Student, View

__all__ = ["StepOutput", "encode", "find_slots", "slotmatch_step", "weighted_sum"]


@dataclass(frozen=True)
class StepOutput:
    """What a step found, without gradient.

    ``loss`` and the ``terms`` that have a weight are scalars, ``slots`` are (B,T,K,D),
    ``attention`` is (B,T,K,P).
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    slots: Tensor
    attention: Tensor


def slotmatch_step(
    student: Student,
    teacher: VideoSlotModel | None,
    batch: Batch,
    config: TrainConfig,
    *,
    slot_gradient: Tensor | None = None,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> StepOutput:
    """Leave the gradient of L = L_rec + alpha L_contrast + beta L_match in the student's weights.

    Equation ``eq-total`` of the book. ``slot_gradient`` (B,T,K,D) stands in for the contrast
    where its negatives lie beyond this batch (`slotmatch.training.accumulation`). The attention
    term is ours. A term of weight 0 is left out.
    """
    model, weights = student.model, term_weights(config, batch.step)
    compares = bool(DECODED & config.added.keys())
    decodes = compares or weights["reconstruction"]

    with torch.no_grad(), autocast(batch.clips, config.mixed_precision):
        theirs: Any = None
        if teacher is not None:
            theirs = see(teacher, batch.teacher_clips, batch, teacher.decode if compares else None)

    with autocast(batch.clips, config.mixed_precision):
        own = see(model, batch.clips, batch, student.decode if decodes else None)
    target = own.features if batch.patches is None else own.features[:, :, batch.patches]
    pairing = batch.correspondence(config.correspondence, model.config.n_slots)

    terms: dict[str, Callable[[], Tensor]] = {
        "reconstruction": lambda: feature_reconstruction(own.reconstruction, target),
        "contrast": lambda: slot_contrast(own.slots, temperature=config.temperature),
        "match": lambda: slot_match(own.slots, theirs.slots, correspondence=pairing),
        "attention": lambda: feature_reconstruction(
            full_precision(own.attention).mT @ student.project("attention", own.slots), own.features
        ),
    }
    terms |= {name: partial(ADDED[name], student, own, theirs) for name in config.added}
    if slot_gradient is not None:
        terms["contrast"] = lambda: (full_precision(own.slots) * slot_gradient).sum()
    values = {name: term() for name, term in terms.items() if weights[name]}
    loss = weighted_sum(values, weights)
    backward(loss)
    return StepOutput(loss.detach(), detached(values), own.slots.detach(), own.attention.detach())


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss: the sum of the terms, each times its weight."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def encode(model: VideoSlotModel, clips: Tensor) -> Tensor:
    """What a model reconstructs, (B,T,P,F): of frames its frozen features, features as they are."""
    if clips.ndim == 4:
        return clips.float()
    if model.backbone is None:
        raise ValueError("this model has no backbone: give features")
    return model.backbone.encode(clips)


def see(
    model: VideoSlotModel,
    clips: Tensor,
    batch: Batch,
    decode: Callable[..., tuple[Any, ...]] | None = None,
) -> View:
    """What a model makes of clips, from the batch's initial slots. Their features are frozen."""
    with torch.no_grad():
        features = encode(model, clips)
    slots, attention, _ = model.track(features, batch.initial_state(model))
    decoded = () if decode is None else decode(slots, patches=batch.patches)
    return View(features, batch.patches, slots, attention, *decoded)


def find_slots(model: VideoSlotModel, clips: Tensor, batch: Batch) -> Tensor:
    """The slots (B,T,K,D) of a model, without decoding any."""
    return full_precision(see(model, clips, batch).slots)


def detached(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values alone."""
    return {name: term.detach() for name, term in terms.items()}
