"""How a model is trained: every setting, and what follows from them in each step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slotmatch.settings import (
    AT_LEAST_0,
    AT_LEAST_1,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    Added,
    Distillation,
    Pairing,
    Precision,
    check,
    check_choice,
    choices,
)

__all__ = ["TERMS", "TrainConfig", "learning_rate_factor", "term_weights"]

TERMS = ("reconstruction", "contrast", "match", "attention")
"""Of the loss, in the order of the log, which has those of ``TrainConfig.added`` at its end."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are SlotContrast's, apart from its batch of 64 clips.

    A term of weight 0 is neither computed nor logged (nan).

    Raises:
        ValueError: a field out of its range; the message has its name, its value and what it may
            be.
    """

    steps: int
    batch_size: int = 16  # clips of a step, over all processes
    clip_length: int = 4  # frames
    # Shares of the steps at which clips become twice as long, and half as many.
    doublings: tuple[float, ...] = ()
    learning_rate: float = 4e-4  # the largest
    warmup_steps: int = 2500
    decay: float = 0.5  # share of the learning rate that is left at the end
    grad_clip: float | None = 0.05  # largest norm of the gradient; None: any
    reconstruction_weight: float = 1.0
    contrast_weight: float = 0.5  # alpha
    match_weight: float = 0.0  # beta
    temperature: float = 0.1  # of the contrast
    correspondence: Pairing = "index"  # which teacher slot a student slot answers to
    attention_weight: float = 0.0  # ours: slot attention's masks have to explain the features too
    attention_until: float = 0.0  # share of the steps over which that weight fades; 0: it stays
    # Weights of further losses, which the paper's method has none of: training.added.
    added: Mapping[Added, float] = field(default_factory=dict)
    patch_fraction: float = 1.0  # share of the patches decoded in a step, drawn anew in each
    flip_probability: float = 0.0  # of mirroring a clip; only with videos
    seed: int = 0
    mixed_precision: Precision = "no"
    accumulate: int = 1  # micro-batches, one after another: less memory, the same gradient
    gather_negatives: bool = False  # of the contrast: from all processes, not from its own only
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        weights = tuple(f"{term}_weight" for term in TERMS)
        every = ("log_every", "validate_every", "checkpoint_every")
        check(
            self,
            [
                (AT_LEAST_1, ("steps", "batch_size", "clip_length", "accumulate", *every)),
                (AT_LEAST_0, ("warmup_steps",)),
                (SEED, ("seed",)),
                (POSITIVE, ("learning_rate", "temperature", "grad_clip")),
                (NOT_NEGATIVE, weights),
                (SHARE, ("attention_until", "flip_probability")),
                (FRACTION, ("patch_fraction", "decay")),
            ],
        )
        check_choice("correspondence", self.correspondence, Pairing)
        for name, weight in self.added.items():
            check_choice("an added loss", name, Added)
            if not POSITIVE.holds(weight):
                raise ValueError(f"added {name} must be {POSITIVE.what}, got {weight!r}")
        over_time = [
            name for name in ("relations_over_time", "temporal_similarity") if name in self.added
        ]
        if over_time and self.clip_length < 2:
            raise ValueError(
                f"added {over_time[0]} compares neighbouring frames: set clip_length to 2 or more, "
                f"not {self.clip_length}"
            )
        if list(self.doublings) != sorted({share for share in self.doublings if 0 < share < 1}):
            raise ValueError(
                f"doublings must be shares of the steps between 0 and 1, in order: {self.doublings}"
            )
        if self.batch_size % (self.accumulate << len(self.doublings)):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into accumulate {self.accumulate} "
                f"equal parts, halved {len(self.doublings)} times before"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be less than steps {self.steps}, or the "
                f"learning rate never arrives: try warmup_steps={self.steps // 10}"
            )
        if not (any(getattr(self, weight) for weight in weights) or self.added):
            raise ValueError(f"there is nothing to learn: {', '.join(weights)} are all 0")
        if self.contrast_weight and self.clip_length < 2:
            raise ValueError(
                "the contrast compares neighbouring frames: set clip_length to 2 or more, or "
                f"contrast_weight to 0, not {self.clip_length} and {self.contrast_weight}"
            )

    def clips(self, step: int) -> tuple[int, int]:
        """Number of clips, and their length, in a step counted from 0: as many frames in each."""
        n = sum(step >= share * self.steps for share in self.doublings)
        return self.batch_size >> n, self.clip_length << n

    @property
    def distils(self) -> bool:
        """Whether a term of the loss looks at a teacher."""
        return bool(self.match_weight or self.added.keys() & {*choices(Distillation)})

    @property
    def fewest(self) -> int:
        """Clips of the last steps."""
        return self.batch_size >> len(self.doublings)

    @property
    def longest(self) -> int:
        """Frames of the last steps' clips."""
        return self.clip_length << len(self.doublings)


def learning_rate_factor(step: int, *, warmup_steps: int, steps: int, decay: float = 0.5) -> float:
    """Multiplier of the learning rate in a step, counted from 0: linearly up to 1, then down.

    With w warm-up steps of s in all: step / w, then decay ** ((step - w) / (s - w)). SlotContrast
    only halves it. A warm-up's step 0 changes nothing.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return decay ** ((step - warmup_steps) / (steps - warmup_steps))


def term_weights(config: TrainConfig, step: int) -> dict[str, float]:
    """Weight of each term of the loss in a step, counted from 0."""
    weights = {term: float(getattr(config, f"{term}_weight")) for term in TERMS}
    weights |= {str(name): weight for name, weight in config.added.items()}
    if config.attention_until:
        weights["attention"] *= max(0.0, 1 - step / (config.attention_until * config.steps))
    return weights
