"""A batch in micro-batches, or on several processes, to the gradient of the whole.

All terms are means over clips but the contrast, where each clip has its negatives in all others. So
its gradient is cached (Gao et al., 2021, arXiv 2101.06983): the slots of all micro-batches are
found without gradient, the contrast's gradient with respect to them is taken once, and beside each
micro-batch's own terms stands the product of its slots with it, whose gradient is the contrast's.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor

from slotmatch.losses import slot_contrast
from slotmatch.model import VideoSlotModel
from slotmatch.precision import autocast
from slotmatch.training.loading import Batch
from slotmatch.training.recipe import TrainConfig, term_weights
from slotmatch.training.step import (
    StepOutput,
    encode,
    find_slots,
    slotmatch_step,
    weighted_sum,
)
from slotmatch.training.student import Student

__all__ = ["accumulated_step"]


def accumulated_step(
    student: Student,
    teacher: VideoSlotModel | None,
    batch: Batch,
    config: TrainConfig,
    accelerator: Accelerator,
) -> StepOutput:
    """``slotmatch_step`` of ``config.accumulate`` micro-batches, one after the other.

    With ``gather_negatives`` the contrast is over the slots of all processes, else over those of
    this one. The gradient is this process's; ``processes.average`` makes it that of all.
    """
    gather = config.gather_negatives and accelerator.num_processes > 1
    n_parts = config.accumulate
    if n_parts == 1 and not gather:
        return slotmatch_step(student, teacher, batch, config, backward=accelerator.backward)

    parts = [  # frozen features are kept, so that the backbone runs once
        replace(part, clips=_features(student.model, part, config))
        for part in batch.micro_batches(n_parts)
    ]
    weights = term_weights(config, batch.step)
    contrast: Tensor | None = None
    gradients: Sequence[Tensor | None] = [None] * n_parts
    if weights["contrast"]:
        contrast, gradients = _contrast(student.model, parts, config, accelerator, gather)
    outputs = [
        slotmatch_step(
            student,
            teacher,
            part,
            config,
            slot_gradient=gradient,
            backward=lambda loss: accelerator.backward(loss / n_parts),
        )
        for part, gradient in zip(parts, gradients, strict=True)
    ]
    terms = {
        name: torch.stack([output.terms[name] for output in outputs]).mean()
        for name in outputs[0].terms
    }
    if contrast is not None:
        terms["contrast"] = contrast
    slots = torch.cat([output.slots for output in outputs])
    attention = torch.cat([output.attention for output in outputs])
    return StepOutput(weighted_sum(terms, weights), terms, slots, attention)


@torch.no_grad()
def _features(model: VideoSlotModel, batch: Batch, config: TrainConfig) -> Tensor:
    with autocast(batch.clips, config.mixed_precision):
        return encode(model, batch.clips)


@torch.no_grad()
def _contrast(
    model: VideoSlotModel,
    parts: list[Batch],
    config: TrainConfig,
    accelerator: Accelerator,
    gather: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The contrast of all slots, and its gradient with respect to those of each micro-batch."""
    with autocast(parts[0].clips, config.mixed_precision):
        own = torch.cat([find_slots(model, part.clips, part) for part in parts])
    gathered = (accelerator.gather(own) if gather else own.clone()).requires_grad_()
    with torch.enable_grad():
        loss = slot_contrast(gathered, temperature=config.temperature)
        (gradient,) = torch.autograd.grad(loss, gathered)
    first = accelerator.process_index * len(own) if gather else 0
    # The contrast's gradient is a sum over parts, where those of the other terms are averaged.
    n_parts = len(gathered) // len(parts[0].clips)
    return loss.detach(), list((n_parts * gradient[first : first + len(own)]).chunk(len(parts)))
