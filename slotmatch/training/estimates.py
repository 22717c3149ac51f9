"""What a training will take, before it starts: parameters, memory, disk and hours.

All of it is estimated. Arithmetic and stored activations are counted on a model without memory,
which takes a second at any size; what the device makes of them is assumed, as written beside each
number.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from slotmatch.model import ModelConfig
from slotmatch.precision import HALVES
from slotmatch.profiling import count_flops, count_parameters, now, without_memory
from slotmatch.settings import Precision
from slotmatch.training.loading import Batch
from slotmatch.training.recipe import TrainConfig
from slotmatch.training.step import slotmatch_step
from slotmatch.training.student import Student

__all__ = [
    "Estimate",
    "activation_bytes",
    "device_speed",
    "estimate",
    "stored_bytes",
    "without_backbone",
]

BYTES = 4  # of a number in single precision
EFFICIENCY = 0.4
"""Share of a large matrix product's speed that a whole training step reaches."""
LIVE_IN_BLOCK = 10
"""Feature vectors a token has at once in a block of a ViT: two of width F, hidden ones of 4 F."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the matrices whose product tells the speed of a device."""
GB, HOUR = 1e9, 3600


@dataclass(frozen=True)
class Estimate:
    """What a training takes. Memory and time are those of one process; bytes, FLOP and seconds.

    ``str`` of it is what is printed before a training starts.
    """

    parameters: int  # frozen backbone included
    trained: int
    teacher_parameters: int
    flops: float  # of a step, over all processes
    weights: float  # bytes of the models, the gradient and Adam's state
    activations: float  # bytes kept for the backward pass, and features
    encoding: float  # bytes a backbone needs at most, while it runs
    checkpoint: float  # bytes of the checkpoint and the final weights
    data: float  # bytes of cached features
    speed: float  # FLOP a second of a matrix product
    n_processes: int
    config: TrainConfig

    @property
    def memory(self) -> float:
        """Bytes at most: encoding is over when activations pile up."""
        return self.weights + max(self.activations, self.encoding)

    @property
    def hours(self) -> float:
        """Of all steps; validation and reading are left out."""
        seconds = self.flops / self.n_processes / (EFFICIENCY * self.speed)
        return self.config.steps * seconds / HOUR

    def __str__(self) -> str:
        """The lines to print; every number is marked as what it is."""
        config, at_once = self.config, self.config.batch_size // self.n_processes
        teacher = f"; teacher {self.teacher_parameters:,}" if self.teacher_parameters else ""
        cached = f", {self.data / GB:.1f} GB of cached features" if self.data else ""
        parts = f" in {config.accumulate} micro-batches" if config.accumulate > 1 else ""
        lines = {
            "parameters": f"{self.parameters:,}, of which {self.trained:,} train{teacher}",
            "step": f"{config.batch_size} clips of {config.clip_length} frames, {at_once} a "
            f"process{parts}: {self.flops / 1e12:.3g} TFLOP",
            "memory": f"about {self.memory / GB:.1f} GB a process (estimate): weights and their "
            f"gradients {self.weights / GB:.1f}, activations {self.activations / GB:.1f}, "
            f"a backbone at work {self.encoding / GB:.1f}; more micro-batches take less",
            "disk": f"about {self.checkpoint / GB:.2f} GB of checkpoint and weights{cached} "
            "(estimate)",
            "time": f"about {self.hours:.3g} hours for {config.steps:,} steps (estimate: "
            f"{EFFICIENCY:.0%} of the {self.speed / 1e12:.3g} TFLOP/s of a matrix product here)",
        }
        return "\n".join(f"  {name:<11}{text}" for name, text in lines.items())


def estimate(
    config: TrainConfig,
    model: ModelConfig,
    *,
    teacher: ModelConfig | None = None,
    from_frames: bool = True,
    n_frames: int = 0,
    n_processes: int = 1,
    speed: float | None = None,
) -> Estimate:
    """Parameters, memory, disk and hours of a training.

    Args:
        config: its settings.
        model: what is trained.
        teacher: what it learns from.
        from_frames: whether the backbones run in every step.
        n_frames: of all training videos, for the size of cached features.
        n_processes: that share the batch.
        speed: FLOP a second of a matrix product; None: measured here, in about a second.
    """
    guides = [teacher] if teacher is not None and config.distils else []
    frames = config.batch_size * config.clip_length
    clips_at_once = config.batch_size // n_processes // config.accumulate
    frames_at_once = clips_at_once * config.clip_length
    total, trained = _parameters(model)
    teachers = sum(_parameters(guide)[0] for guide in guides)
    width = BYTES if config.mixed_precision == "no" else BYTES // 2
    per_frame = model.n_patches * model.feature_dim
    # Features of every micro-batch are kept, so that the backbone runs once.
    kept = frames // n_processes * per_frame * width
    activations = activation_bytes(model, config, clips_at_once) * width / BYTES
    widths = [one.n_patches * one.feature_dim for one in (model, *guides)]
    return Estimate(
        parameters=total,
        trained=trained,
        teacher_parameters=teachers,
        flops=frames * _flops_per_frame(config, model, guides, from_frames),
        weights=BYTES * (total + teachers + 3 * trained),
        activations=activations + kept,
        encoding=frames_at_once * max(widths) * LIVE_IN_BLOCK * width if from_frames else 0,
        checkpoint=BYTES * 4 * trained,
        data=0 if from_frames else 2 * n_frames * sum(widths),
        speed=device_speed(config.mixed_precision) if speed is None else speed,
        n_processes=n_processes,
        config=config,
    )


def activation_bytes(model: ModelConfig, config: TrainConfig, n_clips: int) -> int:
    """Bytes that the backward pass of ``n_clips`` clips needs, in single precision.

    Counted are the distinct tensors that autograd keeps, weights and the features left out.
    """
    config = replace(config, batch_size=n_clips, accumulate=1, mixed_precision="no")
    # Pairing slots anew needs their values; in memory it costs nothing.
    config = replace(config, correspondence="index")
    built = without_memory(without_backbone(model))
    teacher = built if config.distils else None  # its slots have the same shape
    student = Student(built, config, teacher).to("meta")
    shape = (n_clips, config.clip_length, model.n_patches, model.feature_dim)
    features = torch.empty(shape, device="meta")
    n_decoded = max(1, round(config.patch_fraction * model.n_patches))
    patches = torch.arange(n_decoded, device="meta") if n_decoded < model.n_patches else None
    batch = Batch(0, features, features, patches, config.seed, first=0, size=n_clips)
    return stored_bytes(
        student,
        features,
        lambda: slotmatch_step(student, teacher, batch, config, backward=lambda loss: None),
    )


def stored_bytes(module: nn.Module, features: Tensor, run: Callable[[], object]) -> int:
    """Bytes of the distinct tensors that autograd keeps of a run, weights and features left out."""
    known = {weight.untyped_storage()._cdata for weight in module.parameters()}
    known.add(features.untyped_storage()._cdata)
    stored: dict[int, Tensor] = {}  # holds them, or a freed one's address would come again

    def keep(tensor: Tensor) -> Tensor:
        stored.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(
        tensor.untyped_storage().nbytes() for key, tensor in stored.items() if key not in known
    )


def device_speed(mixed_precision: Precision = "no") -> float:
    """FLOP a second of a large matrix product on the device that would train."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, side = HALVES.get(mixed_precision, torch.float32), SIDE[device.type]
    matrix = torch.ones(side, side, device=device, dtype=kind)
    matrix @ matrix
    started, rounds = now(device), 0
    deadline = time.perf_counter() + 0.3
    while not rounds or time.perf_counter() < deadline:
        matrix @ matrix
        rounds += 1
    return rounds * 2 * side**3 / (now(device) - started)


def without_backbone(model: ModelConfig) -> ModelConfig:
    """The same model on features, without its backbone."""
    if model.backbone is None:
        return model
    shape = (model.n_patches, model.feature_dim)
    return replace(model, backbone=None, image_size=None, feature_shape=shape)


def _flops_per_frame(
    config: TrainConfig, model: ModelConfig, guides: list[ModelConfig], from_frames: bool
) -> float:
    own = _flops(model)
    slots = own["transform"] + own["slot_attention"] + own["predictor"]
    decoder = own["decoder"] * config.patch_fraction if config.reconstruction_weight else 0
    flops = 3 * (slots + decoder)  # the backward pass takes twice the forward's
    if config.contrast_weight and (config.accumulate > 1 or config.gather_negatives):
        flops += slots  # once more, for all that are contrasted
    if from_frames:
        flops += own.get("backbone", 0)
    for guide in guides:
        counts = _flops(guide)
        idle = counts["decoder"] + (0 if from_frames else counts.get("backbone", 0))
        flops += counts["total"] - idle
    return flops


@lru_cache
def _parameters(model: ModelConfig) -> tuple[int, int]:
    return count_parameters(without_memory(model))["total"]


@lru_cache
def _flops(model: ModelConfig) -> Mapping[str, int]:
    return count_flops(model)
