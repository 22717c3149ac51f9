"""One training step of SlotMatch, on one screen: `slotmatch_step`.

A new term is one line there, one pure function in ``slotmatch.losses`` and one name in
``recipe.TERMS``.

Shapes: B clips, T frames, K slots, D slot width, P patches, F feature width.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slotmatch.losses import feature_reconstruction, full_precision, slot_contrast, slot_match
from slotmatch.model import VideoSlotModel
from slotmatch.settings import Precision
from slotmatch.training.loading import Batch
from slotmatch.training.recipe import TrainConfig, term_weights

__all__ = ["StepOutput", "Student", "encode", "find_slots", "slotmatch_step", "weighted_sum"]


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


class Student(nn.Module):
    """The model that trains, and the head of the attention term, which is thrown away afterwards.

    A teacher to be trains in the same way, with no teacher of its own.
    """

    def __init__(self, model: VideoSlotModel, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.head: nn.Module = nn.Identity()
        if config.attention_weight:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(config.seed)
                self.head = nn.Linear(model.config.slot_dim, model.config.feature_dim)
            self.head.to(model.decoder.positions)


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
    model, patches, weights = student.model, batch.patches, term_weights(config, batch.step)

    with torch.no_grad(), autocast(batch.clips, config.mixed_precision):
        features = encode(model, batch.clips)
        teacher_slots: Any = find_slots(teacher, batch.teacher_clips, batch) if teacher else None

    with autocast(batch.clips, config.mixed_precision):
        slots, attention, _ = model.track(features, batch.initial_state(model))
        decoded: Any = (
            model.decode(slots, patches=patches)[1] if weights["reconstruction"] else None
        )
        explained: Any = attention.mT @ student.head(slots) if weights["attention"] else None
    target = features if patches is None else features[:, :, patches]

    terms: dict[str, Callable[[], Tensor]] = {
        "reconstruction": lambda: feature_reconstruction(decoded, target),
        "contrast": lambda: slot_contrast(slots, temperature=config.temperature),
        "match": lambda: slot_match(slots, teacher_slots, correspondence=config.correspondence),
        "attention": lambda: feature_reconstruction(explained, features),
    }
    if slot_gradient is not None:
        terms["contrast"] = lambda: (full_precision(slots) * slot_gradient).sum()
    values = {name: term() for name, term in terms.items() if weights[name]}
    loss = weighted_sum(values, weights)
    backward(loss)
    return StepOutput(loss.detach(), detached(values), slots.detach(), attention.detach())


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


def find_slots(model: VideoSlotModel, clips: Tensor, batch: Batch) -> Tensor:
    """The slots (B,T,K,D) of a model, from the batch's initial ones, without decoding any."""
    slots, _, _ = model.track(encode(model, clips), batch.initial_state(model))
    return full_precision(slots)


def autocast(like: Tensor, precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products in half precision if asked for; meta tensors, of no device, know none."""
    if precision == "no" or like.is_meta:
        return nullcontext()
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(like.device.type, kind)


def detached(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values alone."""
    return {name: term.detach() for name, term in terms.items()}
