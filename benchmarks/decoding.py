"""(b) The student's decoder alone: plain, fast, and fast for masks alone."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.comparison import Comparison, Settings
from slotmatch.model import ModelConfig, VideoSlotModel
from slotmatch.model.plain import as_written
from slotmatch.profiling import count_flops, milliseconds, peak_memory, take_turns
from slotmatch.training.estimates import without_backbone

__all__ = ["measure"]


class Way(NamedTuple):
    """A decoder and what is asked of it."""

    plain: bool
    reconstruct: bool

    def build(self, config: ModelConfig) -> VideoSlotModel:
        """The model whose decoder it is, without backbone."""
        model = VideoSlotModel(without_backbone(config)).eval()
        return as_written(model) if self.plain else model


WAYS = {
    "plain": Way(plain=True, reconstruct=True),
    "fast": Way(plain=False, reconstruct=True),
    "fast, masks alone": Way(plain=False, reconstruct=False),
}
"""The plain decoder always reconstructs, so it has no way of its own for masks alone."""


def measure(settings: Settings) -> Iterator[Comparison]:
    """A comparison with the plain decoder for each size."""
    n_frames, device = 2 * settings.frames, settings.device
    for name, preset in settings.sizes.items():
        arguments = (preset.student, n_frames, device)
        jobs = {entry: prepare(way, *arguments) for entry, way in WAYS.items()}
        memory = {
            entry: peak_memory(prepare, way, *arguments, device=device)
            for entry, way in WAYS.items()
        }
        flops = {
            entry: count_flops(way.build(preset.student), reconstruct=way.reconstruct)
            for entry, way in WAYS.items()
        }
        yield Comparison(
            title=f"(b) decoder, {name}, {n_frames} frames",
            unit="ms per frame",
            baseline="plain",
            turns=take_turns(jobs, repeats=settings.repeats),
            memory=memory,
            facts={entry: {"GFLOP": counts["decoder"] / 1e9} for entry, counts in flops.items()},
        )


def prepare(
    way: Way, config: ModelConfig, n_frames: int, device: str
) -> Callable[[], dict[str, float]]:
    """The job that decodes the slots of a few frames and says how long it took."""
    model = way.build(config).to(device)
    generator = torch.Generator().manual_seed(0)
    shape = (1, n_frames, config.n_slots, config.slot_dim)
    slots = torch.randn(shape, generator=generator).to(device)

    decode = torch.inference_mode()(partial(model.decode, slots, reconstruct=way.reconstruct))
    return lambda: {"total": milliseconds(decode, slots.device) / n_frames}
