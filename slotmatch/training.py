"""One training loop for teacher and student: L = L_rec + alpha L_contrast + beta L_match.

What chance decides in a step (videos, first frames, mirroring, decoded patches) is a pure function
of seed and step. So a run that is killed and started again ends with the very weights of one that
was not.

Shapes: N videos; B clips, T frames, K slots, D slot width, P patches, F feature width.
"""

import hashlib
import json
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from einops import rearrange
from torch import Tensor, nn
from tqdm.auto import tqdm

from slotmatch import paths
from slotmatch.features import HasVideo, weights_checksum
from slotmatch.losses import CORRESPONDENCES, feature_reconstruction, slot_contrast, slot_match
from slotmatch.metrics import mask_entropy
from slotmatch.model import SlotOutput, VideoSlotModel

__all__ = [
    "CHECKPOINT",
    "INHERITABLE",
    "LOG_COLUMNS",
    "PRECISIONS",
    "TrainConfig",
    "learning_rate_factor",
    "start_from",
    "term_weights",
    "train",
]

PRECISIONS = ("no", "bf16", "fp16")
CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in a run's output folder."""
TERMS = ("reconstruction", "contrast", "match", "attention")
LOG_COLUMNS = (
    "step",
    "loss",
    *TERMS,
    "grad_norm",
    "learning_rate",
    "slot_cosine",
    "attention_entropy",
    "seconds",
)
"""Columns of every log; those of the validation follow."""
INHERITABLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "initial_slots": ("initial_slots", "n_slots", "slot_dim"),
        "slot_attention": ("slot_dim", "gru_state"),
        "predictor": ("slot_dim", "n_heads", "predictor_logits"),
        "decoder": ("slot_dim", "n_patches", "decoder_hidden", "decoder_layers"),
    }
)
"""Parts a student can start from, and in what of its config it then has to equal its teacher."""
COLLAPSED = 0.999
"""Cosine of a frame's slots, or relative entropy of attention, from which on slots are all one."""

Videos = np.ndarray | Tensor | Sequence[HasVideo]
Validate = Callable[[VideoSlotModel], Mapping[str, float]]


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
    learning_rate: float = 4e-4  # the largest
    warmup_steps: int = 2500
    decay: float = 0.5  # share of the learning rate that is left at the end
    grad_clip: float | None = 0.05  # largest norm of the gradient; None: any
    reconstruction_weight: float = 1.0
    contrast_weight: float = 0.5  # alpha
    match_weight: float = 0.0  # beta
    temperature: float = 0.1  # of the contrast
    correspondence: str = "index"  # which teacher slot a student slot answers to
    attention_weight: float = 0.0  # ours: slot attention's masks have to explain the features too
    attention_until: float = 0.0  # share of the steps over which that weight fades; 0: it stays
    patch_fraction: float = 1.0  # share of the patches decoded in a step, drawn anew in each
    flip_probability: float = 0.0  # of mirroring a clip; only with videos
    seed: int = 0
    mixed_precision: str = "no"
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        weights = tuple(f"{term}_weight" for term in TERMS)
        every = ("log_every", "validate_every", "checkpoint_every")
        rules: list[tuple[Iterable[str], str, Callable[[Any], bool]]] = [
            (
                ("steps", "batch_size", "clip_length", *every),
                "a whole number of 1 or more",
                lambda value: _is_whole(value) and value >= 1,
            ),
            (
                ("warmup_steps", "seed"),
                "a whole number of 0 or more",
                lambda value: _is_whole(value) and value >= 0,
            ),
            (
                ("learning_rate", "temperature"),
                "a positive number",
                lambda value: _is_number(value) and value > 0,
            ),
            (weights, "a number of 0 or more", lambda value: _is_number(value) and value >= 0),
            (
                ("grad_clip",),
                "a positive number or None",
                lambda value: value is None or (_is_number(value) and value > 0),
            ),
            (
                ("attention_until", "flip_probability"),
                "a number from 0 to 1",
                lambda value: _is_number(value) and 0 <= value <= 1,
            ),
            (
                ("patch_fraction", "decay"),
                "a number above 0, up to 1",
                lambda value: _is_number(value) and 0 < value <= 1,
            ),
            (("correspondence",), f"one of {CORRESPONDENCES}", CORRESPONDENCES.__contains__),
            (("mixed_precision",), f"one of {PRECISIONS}", PRECISIONS.__contains__),
        ]
        for names, what, holds in rules:
            for name in names:
                if not holds(value := getattr(self, name)):
                    raise ValueError(f"{name} must be {what}, got {value!r}")
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be less than steps {self.steps}, or the "
                f"learning rate never arrives: try warmup_steps={self.steps // 10}"
            )
        if not any(getattr(self, weight) for weight in weights):
            raise ValueError(f"there is nothing to learn: {', '.join(weights)} are all 0")
        if self.contrast_weight and self.clip_length < 2:
            raise ValueError(
                "the contrast compares neighbouring frames: set clip_length to 2 or more, or "
                f"contrast_weight to 0, not {self.clip_length} and {self.contrast_weight}"
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
    if config.attention_until:
        weights["attention"] *= max(0.0, 1 - step / (config.attention_until * config.steps))
    return weights


def start_from(
    student: VideoSlotModel,
    teacher: VideoSlotModel,
    *,
    parts: Sequence[str] = ("initial_slots",),
) -> None:
    """Give a student its teacher's weights in the named parts, before training.

    The initial slots alone let slots of equal index correspond from the start. With all parts of
    ``INHERITABLE`` what is left to learn is reading and writing the student's own features: of the
    decoder's last layer only the row that gives masks is taken over. What the paper's student
    starts from is not known.

    Raises:
        ValueError: an unknown part, or one in which the two models differ.
    """
    if unknown := [part for part in parts if part not in INHERITABLE]:
        raise ValueError(f"parts {unknown} are unknown: choose from {', '.join(INHERITABLE)}")
    for part in parts:
        names = INHERITABLE[part]
        own, wanted = (
            [getattr(model.config, name) for name in names] for model in (student, teacher)
        )
        if own != wanted:
            raise ValueError(
                f"to start from its teacher's {part} a student needs the same "
                f"{', '.join(names)}, got {own} and {wanted}"
            )
    for part in parts:
        weights = getattr(teacher, part).state_dict()
        if part == "decoder":
            last = f"layers.{len(teacher.decoder.layers) - 1}"
            features = student.decoder.state_dict()
            for name in (f"{last}.weight", f"{last}.bias"):
                weights[name] = torch.cat([features[name][:-1], weights[name][-1:]])
        getattr(student, part).load_state_dict(weights)


def train(
    model: VideoSlotModel,
    clips: Videos,
    config: TrainConfig,
    *,
    output: Path,
    teacher: VideoSlotModel | None = None,
    teacher_clips: Videos | None = None,
    validate: Validate | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Train a model in place, leave it in evaluation mode, and return the log.

    Runs on a GPU if there is one, and in as many processes as ``accelerate launch`` started. Each
    takes an equal part of the batch; a slot's negatives are those of its own process, as in
    SlotContrast. Clips start at any frame, where SlotContrast's start at multiples of their length.

    ``output`` gets a checkpoint every so often. The same call goes on from there, to the same
    weights and, but for ``seconds``, the same log; if the run is finished it loads the result.
    Deleting the checkpoint starts afresh.

    Args:
        model: the student, or the teacher to be. Its own weights are the start.
        clips: its features, an array (N,T,P,F) such as ``features.cached_features`` gives, or N
            videos, whose frames then pass the backbone in every step.
        config: everything else.
        output: the run's folder.
        teacher: for the match term. It sees the same frames, in evaluation mode and without its
            decoder, and never changes. Not run if ``match_weight`` is 0.
        teacher_clips: the teacher's features of the same N videos in the same order, or these
            videos. Left out if teacher and student read the same.
        validate: called with the model every ``validate_every`` steps and after the last, by the
            first process; its numbers join the log. The bar shows an entry ``video_fg_ari``.
        progress: shows a bar; None: if the output is a terminal.

    Returns:
        One row for the first step, every ``log_every`` steps, each validated step and the last:
        ``LOG_COLUMNS`` and ``validation_...``. ``step`` counts the steps done. Losses and
        ``grad_norm`` (before clipping) are of this one step. ``slot_cosine`` is the mean cosine of
        a frame's slots and ``attention_entropy`` that of slot attention relative to its largest;
        either is 1 where all slots are the same. ``seconds`` add up over resumed runs.

    Raises:
        ValueError: arguments that do not fit together, or a checkpoint of another run in
            ``output``.
        RuntimeError: a loss or gradient that is not finite; the model keeps the weights before that
            step.
    """
    trainer = _Trainer(model, clips, config, teacher, teacher_clips)
    checkpoint = Path(output) / CHECKPOINT
    done, rows = trainer.restore(checkpoint)
    started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    is_first = trainer.accelerator.is_main_process
    hidden = (None if progress is None else not progress) if is_first else True
    bar = tqdm(total=config.steps, initial=done, unit="step", mininterval=0.5, disable=hidden)
    shown: dict[str, str] = {}
    may_warn = True
    with bar:
        for step in range(done, config.steps):
            try:
                row, slots, attention = trainer.update(step)
            except FloatingPointError as error:
                raise RuntimeError(f"{error}; {_last_good(checkpoint)}") from error
            done = step + 1
            last = done == config.steps
            validated = last or done % config.validate_every == 0
            if validated or done == 1 or done % config.log_every == 0:
                row |= _collapse(slots, attention)
                if validated and may_warn and step >= config.warmup_steps:
                    may_warn = not _warn_of_collapse(done, row)
                if validated and validate is not None and is_first:
                    row |= _validation(model, validate)
                rows.append(row | {"seconds": time.perf_counter() - started})
                shown |= _summary(row)
                bar.set_postfix(shown, refresh=False)
            if last or done % config.checkpoint_every == 0:
                trainer.save(checkpoint, done, rows)
            bar.update()
    model.eval()
    extra = dict.fromkeys(key for row in rows for key in row if key not in LOG_COLUMNS)
    return pd.DataFrame(rows, columns=[*LOG_COLUMNS, *extra])


class _Trainer:
    """A model with all that one step needs, and that outlives a kill."""

    def __init__(
        self,
        model: VideoSlotModel,
        clips: Videos,
        config: TrainConfig,
        teacher: VideoSlotModel | None,
        teacher_clips: Videos | None,
    ) -> None:
        self.config = config
        self.source = _source(clips)
        self.source.check("clips", model, config)
        self.teacher = self.teacher_source = None
        if config.match_weight:
            self.teacher, self.teacher_source = _checked_teacher(
                model, self.source, config, teacher, teacher_clips
            )
        self.accelerator = _accelerator(config)
        self.objective = _Objective(model, config).train()
        self.trainable = [p for p in self.objective.parameters() if p.requires_grad]
        adam = torch.optim.Adam(self.trainable, lr=config.learning_rate, fused=True)
        self.wrapped, self.optimiser = self.accelerator.prepare(self.objective, adam)
        if self.teacher is not None:
            self.teacher.to(self.accelerator.device).eval()
        share = config.batch_size // self.accelerator.num_processes
        rank = self.accelerator.process_index
        self.share = slice(rank * share, (rank + 1) * share)
        self.identity = json.dumps(self._identity())

    def update(self, step: int) -> tuple[dict[str, float], Tensor, Tensor]:
        """One optimiser step: its row of the log, its slots (B,T,K,D) and attention (B,T,K,P).

        Raises:
            FloatingPointError: a number is not finite; nothing was changed.
        """
        config, device = self.config, self.accelerator.device
        chance = _draw(config, step, len(self.source), self.objective.model.config.n_patches)
        batch = self.source.read(chance, self.share, config.clip_length, device)
        seed = chance.seed + self.accelerator.process_index
        wanted = self._teacher_slots(chance, batch, seed)
        patches = None if chance.patches is None else chance.patches.to(device)
        weights = term_weights(config, step)
        rate = config.learning_rate * learning_rate_factor(
            step, warmup_steps=config.warmup_steps, steps=config.steps, decay=config.decay
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate

        try:
            loss, terms, slots, attention = self.wrapped(batch, patches, seed, wanted, weights)
        except ValueError as error:  # shapes were checked: only numbers can be wrong by now
            raise FloatingPointError(f"step {step + 1} is not finite: {error}") from error
        self.accelerator.backward(loss)
        limit = math.inf if config.grad_clip is None else config.grad_clip
        norm = self.accelerator.clip_grad_norm_(self.trainable, limit)
        values = torch.stack([loss.detach(), norm, *(term.detach() for term in terms.values())])
        values = self.accelerator.reduce(values, "mean").tolist()
        row = {"step": step + 1, "learning_rate": rate} | dict.fromkeys(TERMS, math.nan)
        row |= dict(zip(("loss", "grad_norm", *terms), values, strict=True))
        self._require_finite(row, terms)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return row, slots, attention

    def save(self, path: Path, step: int, rows: list[dict[str, float]]) -> None:
        """Write all but the frozen backbones; ``torch.load`` reads it with ``weights_only``."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        content = {
            "run": self.identity,
            "step": step,
            "rows": rows,
            "weights": self._weights(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        with paths.atomic(path) as temporary:
            torch.save(content, temporary)

    def restore(self, path: Path) -> tuple[int, list[dict[str, float]]]:
        """Steps done and log so far of the checkpoint at ``path``, once its state is taken over.

        Raises:
            ValueError: it cannot be read, or belongs to another run.
        """
        if not path.is_file():
            return 0, []
        try:
            content = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            run = json.loads(content["run"])
        except (RuntimeError, OSError, KeyError, EOFError, ValueError, pickle.PickleError) as error:
            raise ValueError(
                f"{path} is damaged or not a checkpoint of slotmatch: delete it to start afresh"
            ) from error
        if differences := _differences(run, json.loads(self.identity)):
            raise ValueError(
                f"{path} belongs to another run ({'; '.join(differences)}): train into another "
                "folder, or delete the checkpoint to start afresh"
            )
        self.objective.load_state_dict(content["weights"], strict=False)
        self.optimiser.load_state_dict(content["optimiser"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        return content["step"], content["rows"]

    def _teacher_slots(self, chance: "_Chance", batch: Tensor, seed: int) -> Tensor | None:
        if self.teacher is None or self.teacher_source is None:
            return None
        if self.teacher_source is not self.source:
            length, device = self.config.clip_length, self.accelerator.device
            batch = self.teacher_source.read(chance, self.share, length, device)
        with torch.no_grad(), self.accelerator.autocast():
            run = self.teacher.forward if batch.ndim == 5 else self.teacher.forward_features
            return run(batch, decode=False, generator=_generator(seed)).slots

    def _require_finite(self, row: Mapping[str, float], terms: Iterable[str]) -> None:
        scaler = self.accelerator.scaler
        # Half precision finds its loss scale by overflowing: such a step is skipped by design.
        overflows = scaler is not None and scaler.get_scale() >= 1
        names = ("loss", *terms) if overflows else ("loss", *terms, "grad_norm")
        if not all(math.isfinite(row[name]) for name in names):
            found = ", ".join(f"{name} {row[name]:g}" for name in ("loss", *terms, "grad_norm"))
            raise FloatingPointError(f"step {row['step']} is not finite: {found}")

    def _weights(self) -> dict[str, Tensor]:
        state = self.objective.state_dict()
        return {name: t for name, t in state.items() if not name.startswith("model.backbone.")}

    def _identity(self) -> dict[str, Any]:
        """All that shapes the run's result apart from the model's first weights."""
        identity = {
            "config": asdict(self.config),
            "model": asdict(self.objective.model.config),
            "clips": self.source.identity,
            "processes": self.accelerator.num_processes,
        }
        if self.teacher is not None and self.teacher_source is not None:
            identity["teacher"] = asdict(self.teacher.config)
            identity["teacher"]["weights"] = weights_checksum(self.teacher)
            identity["teacher_clips"] = self.teacher_source.identity
        return identity


class _Objective(nn.Module):
    """The loss as a module, so that whatever wraps it (processes, precision) wraps all of it.

    Its head turns a slot into features; it exists for the attention term and is thrown away after
    training.
    """

    def __init__(self, model: VideoSlotModel, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.head: nn.Linear | None = None
        if config.attention_weight:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(config.seed)
                self.head = nn.Linear(model.config.slot_dim, model.config.feature_dim)
            self.head.to(model.decoder.positions.dtype)

    def forward(
        self,
        clip: Tensor,
        patches: Tensor | None,
        seed: int,
        teacher_slots: Tensor | None,
        weights: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """The loss, its terms (only those with a weight), the slots and the attention.

        ``clip`` is (B,T,P,F) features or (B,T,3,H,W) frames.
        """
        features = self.model.encode(clip) if clip.ndim == 5 else clip
        decode = weights["reconstruction"] > 0
        output = self.model.forward_features(
            features, decode=decode, patches=patches, generator=_generator(seed)
        )
        reconstructed = None
        if self.head is not None and weights["attention"]:
            reconstructed = output.attention.mT @ self.head(output.slots)
        with torch.autocast(features.device.type, enabled=False):
            terms = self._terms(_full(features), output, reconstructed, patches, teacher_slots)
            terms = {name: term for name, term in terms.items() if weights[name]}
            loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        # Detached, since processes wait for the gradient of all that a returned tensor depends on.
        return loss, terms, output.slots.detach(), output.attention.detach()

    def _terms(
        self,
        features: Tensor,
        output: SlotOutput,
        by_attention: Tensor | None,
        patches: Tensor | None,
        teacher_slots: Tensor | None,
    ) -> dict[str, Tensor]:
        config, slots, terms = self.config, _full(output.slots), {}
        if output.reconstruction is not None:
            target = features if patches is None else features[:, :, patches]
            terms["reconstruction"] = feature_reconstruction(_full(output.reconstruction), target)
        if config.contrast_weight:
            terms["contrast"] = slot_contrast(slots, temperature=config.temperature)
        if teacher_slots is not None:
            terms["match"] = slot_match(
                slots, _full(teacher_slots), correspondence=config.correspondence
            )
        if by_attention is not None:
            terms["attention"] = feature_reconstruction(_full(by_attention), features)
        return terms


@dataclass(frozen=True)
class _Chance:
    """What chance decides in one step, for the batches of all processes together."""

    videos: np.ndarray  # (B,) which
    places: np.ndarray  # (B,) where in its video a clip starts, in [0, 1)
    flipped: np.ndarray  # (B,) whether it is mirrored
    seed: int  # of initial slots that are sampled
    patches: Tensor | None  # the decoded ones; None: all


def _draw(config: TrainConfig, step: int, n_videos: int, n_patches: int) -> _Chance:
    """Videos differ within a batch as long as there are enough."""
    size = config.batch_size
    rng = np.random.default_rng((config.seed, step))
    videos = rng.choice(n_videos, size, replace=n_videos < size)
    places = rng.random(size)
    flipped = rng.random(size) < config.flip_probability
    seed = int(rng.integers(2**62))
    n_decoded = max(1, round(config.patch_fraction * n_patches))
    patches = None
    if n_decoded < n_patches:
        patches = torch.from_numpy(rng.permutation(n_patches)[:n_decoded])
    return _Chance(videos, places, flipped, seed, patches)


@dataclass(frozen=True)
class _Features:
    """Videos as features (N,T,P,F), usually on disk."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    @property
    def n_frames(self) -> int:
        return self.array.shape[1]

    @property
    def identity(self) -> dict[str, Any]:
        return {"shape": list(self.array.shape), "first": _digest(self.array[0])}

    def check(self, name: str, model: VideoSlotModel, config: TrainConfig) -> None:
        expected = (model.config.n_patches, model.config.feature_dim)
        if self.array.ndim != 4 or self.array.shape[2:] != expected or not len(self.array):
            raise ValueError(
                f"{name} must be features (N,T,{expected[0]},{expected[1]}) for this model, "
                f"got {self.array.shape}"
            )
        _require_frames(f"{name} {self.array.shape}", self.n_frames, config.clip_length)
        if config.flip_probability:
            raise ValueError(
                f"flip_probability {config.flip_probability} needs videos, since cached features "
                "are of unmirrored frames: set it to 0 or give videos"
            )

    def read(self, chance: _Chance, share: slice, length: int, device: torch.device) -> Tensor:
        starts = (chance.places[share] * (self.n_frames - length + 1)).astype(int)
        frames = starts[:, None] + np.arange(length)
        features = torch.from_numpy(self.array[chance.videos[share, None], frames])
        return features.to(device).float()


@dataclass(frozen=True)
class _Frames:
    """Videos as frames, uint8 (T,H,W,3), perhaps of different lengths."""

    clips: Sequence[HasVideo]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def n_frames(self) -> int:
        return len(self.clips[0].video)

    @property
    def identity(self) -> dict[str, Any]:
        first = self.clips[0]
        return {"videos": len(self), "id": first.id, "first": _digest(first.video)}

    def check(self, name: str, model: VideoSlotModel, config: TrainConfig) -> None:
        if not len(self):
            raise ValueError(f"{name} must hold at least one video, got none")
        if model.backbone is None:
            raise ValueError(
                f"{name} are videos, but the model that reads them has no backbone: give features"
            )
        _require_frames(f"{name}: {self.clips[0].id}", self.n_frames, config.clip_length)

    def read(self, chance: _Chance, share: slice, length: int, device: torch.device) -> Tensor:
        chosen = zip(chance.videos[share], chance.places[share], strict=True)
        cut = [self._cut(int(index), place, length) for index, place in chosen]
        if len(sizes := {frames.shape for frames in cut}) > 1:
            raise ValueError(f"videos of one batch must have one size, got {sorted(sizes)}")
        video = rearrange(torch.from_numpy(np.stack(cut)).to(device), "b t h w c -> b t c h w")
        flipped = torch.from_numpy(chance.flipped[share]).to(device)[:, None, None, None, None]
        return torch.where(flipped, video.flip(-1), video).float() / 255

    def _cut(self, index: int, place: float, length: int) -> np.ndarray:
        clip = self.clips[index]
        video = clip.video
        _require_frames(clip.id, len(video), length)
        start = int(place * (len(video) - length + 1))
        return video[start : start + length]


def _source(clips: Videos) -> _Features | _Frames:
    if isinstance(clips, np.ndarray | Tensor):
        return _Features(np.asarray(clips))  # a plain array: indexing a memmap costs more
    return _Frames(clips)


def _require_frames(name: str, n_frames: int, clip_length: int) -> None:
    if n_frames < clip_length:
        raise ValueError(f"{name} has {n_frames} frames, fewer than clip_length {clip_length}")


def _checked_teacher(
    model: VideoSlotModel,
    source: _Features | _Frames,
    config: TrainConfig,
    teacher: VideoSlotModel | None,
    teacher_clips: Videos | None,
) -> tuple[VideoSlotModel, _Features | _Frames]:
    """The teacher and where it reads, once it is known to fit the student and its clips."""
    if teacher is None:
        raise ValueError(f"match_weight {config.match_weight} needs a teacher: pass teacher=")
    for name in ("n_slots", "slot_dim"):
        own, wanted = getattr(model.config, name), getattr(teacher.config, name)
        if own != wanted:
            raise ValueError(f"student and teacher need the same {name}, got {own} and {wanted}")
    if teacher_clips is None:
        what = ("backbone", "image_size", "feature_shape")
        own, wanted = ([getattr(m.config, name) for name in what] for m in (model, teacher))
        if isinstance(source, _Features) and own != wanted:
            raise ValueError(
                f"the teacher reads features of {wanted}, the student of {own}: pass the "
                "teacher's own as teacher_clips"
            )
        teacher_source = source
    else:
        teacher_source = _source(teacher_clips)
    teacher_source.check("teacher_clips", teacher, config)
    sizes = [(len(clips), clips.n_frames) for clips in (source, teacher_source)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            "clips and teacher_clips must be the same videos, got (videos, frames) of "
            f"{sizes[0]} and {sizes[1]}"
        )
    return teacher, teacher_source


def _accelerator(config: TrainConfig) -> Accelerator:
    # A process that trains twice (teacher, then student) may change precision in between.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        ],
    )
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError('mixed_precision "fp16" needs a GPU: choose "bf16" or "no"')
    if config.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be shared equally by "
            f"{accelerator.num_processes} processes"
        )
    return accelerator


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _full(tensor: Tensor) -> Tensor:
    """At least single precision, which losses need."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Where two nested dictionaries disagree, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = dict.fromkeys((*ours, *theirs))
        return [
            line
            for key in keys
            for line in _differences(theirs.get(key), ours.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if theirs == ours else [f"{name} is {ours!r} here and {theirs!r} there"]


def _last_good(path: Path) -> str:
    if not path.is_file():
        return "no checkpoint was written yet"
    step = torch.load(path, map_location="cpu", weights_only=True)["step"]
    return f"the last good checkpoint, of step {step}, is {path}"


@torch.no_grad()
def _collapse(slots: Tensor, attention: Tensor) -> dict[str, float]:
    unit = F.normalize(_full(slots), dim=-1)
    n_slots = unit.shape[-2]
    pairs = max(n_slots * (n_slots - 1), 1)
    cosine = (unit.sum(-2).square().sum(-1).mean() - n_slots) / pairs
    entropy = mask_entropy(_full(attention))
    return {"slot_cosine": float(cosine), "attention_entropy": entropy}


def _warn_of_collapse(step: int, row: Mapping[str, float]) -> bool:
    found = {name: row[name] for name in ("slot_cosine", "attention_entropy")}
    collapsed = max(found.values()) > COLLAPSED
    if collapsed:
        what = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        warnings.warn(
            f"all slots are the same at step {step} ({what}): they have collapsed. Try a lower "
            "learning rate, a longer warm-up or a larger contrast_weight",
            RuntimeWarning,
            stacklevel=3,
        )
    return collapsed


def _validation(model: VideoSlotModel, validate: Validate) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        scores = validate(model)
    model.train()
    return {f"validation_{name}": float(score) for name, score in scores.items()}


def _summary(row: Mapping[str, float]) -> dict[str, str]:
    """What the bar shows beside the time left."""
    names = {"loss": "loss", "validation_video_fg_ari": "FG-ARI"}
    return {title: f"{row[name]:.3f}" for name, title in names.items() if name in row}
