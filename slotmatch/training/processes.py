"""The processes that train together, with or without GPUs."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from slotmatch.precision import check_precision
from slotmatch.training.recipe import TrainConfig

__all__ = ["accelerator", "average", "processes"]


def processes() -> PartialState:
    """How many processes train together, and which this is.

    Accelerate takes several processes without a GPU for single ones unless it is told of the CPU.
    """
    if PartialState._shared_state:  # it was told already
        return PartialState()
    return PartialState(cpu=not torch.cuda.is_available())


def accelerator(config: TrainConfig) -> Accelerator:
    """Devices, precision and processes of a training, checked to fit its batch.

    Raises:
        ValueError: fp16 without a GPU, or a batch that cannot be shared equally.
    """
    processes()
    # A process that trains twice (teacher, then student) may change precision in between.
    AcceleratorState._reset_state()
    found = Accelerator(mixed_precision=config.mixed_precision)
    check_precision(config.mixed_precision, found.device, name="mixed_precision")
    if config.fewest % (found.num_processes * config.accumulate):
        raise ValueError(
            f"batch_size {config.batch_size} cannot be shared equally by "
            f"{found.num_processes} processes in {config.accumulate} micro-batches each"
        )
    return found


def average(values: Tensor, weights: Sequence[Tensor], accelerator: Accelerator) -> Tensor:
    """Give all processes the mean of their gradients of ``weights``, and return that of ``values``.

    One message for all of them: the models are small.
    """
    if accelerator.num_processes == 1:
        return values
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    joined = torch.cat([values, *(gradient.flatten() for gradient in gradients)])
    joined = accelerator.reduce(joined, "mean")
    values, *means = joined.split([len(values), *(gradient.numel() for gradient in gradients)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return values
