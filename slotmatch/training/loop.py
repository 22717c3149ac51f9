"""One training loop for teacher and student: L = L_rec + alpha L_contrast + beta L_match.

What chance decides in a step (videos, first frames, mirroring, decoded patches) is a pure function
of seed and step. So a run that is killed and started again ends with the very weights of one that
was not.

Shapes: N videos; B clips, T frames, K slots, D slot width, P patches, F feature width.
"""

import json
import math
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from tqdm.auto import tqdm

from slotmatch import paths
from slotmatch.backbones import weights_checksum
from slotmatch.metrics import mask_entropy
from slotmatch.model import VideoSlotModel
from slotmatch.training.loading import Chance, Features, Loader, Source, Videos, source
from slotmatch.training.objective import Objective, first_slots, full_precision
from slotmatch.training.recipe import (
    TERMS,
    TrainConfig,
    learning_rate_factor,
    term_weights,
)

CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in a run's output folder."""
LOG = "log.csv"
"""Name of the log beside it, of the same step."""
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
DEFAULTS = {
    field.name: field.default for field in fields(TrainConfig) if field.default is not MISSING
}
DAMAGED = (RuntimeError, OSError, KeyError, EOFError, ValueError, TypeError, pickle.PickleError)
"""What reading a checkpoint raises that is not one."""
COLLAPSED = 0.999
"""Cosine of a frame's slots, or relative entropy of attention, from which on slots are all one."""

Validate = Callable[[VideoSlotModel], Mapping[str, float]]


def train(
    model: VideoSlotModel,
    clips: Videos,
    config: TrainConfig,
    *,
    output: Path,
    teacher: VideoSlotModel | None = None,
    teacher_clips: Videos | None = None,
    validate: Validate | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Train a model in place, leave it in evaluation mode, and return the log.

    Runs on a GPU if there is one, and in as many processes as ``accelerate launch`` started. Each
    takes an equal part of the batch. With ``gather_negatives`` the result is that of one process
    with the whole batch, up to rounding; without, a slot's negatives are those of its own process,
    as in SlotContrast, and so depend on the number of processes. ``accumulate`` never matters.

    ``output`` gets a checkpoint every so often, and the log. The same call goes on from there, to
    the same weights and, but for ``seconds``, the same log; if the run is finished it loads the
    result. Deleting the checkpoint starts afresh.

    Args:
        model: the student, or the teacher to be. Its own weights are the start.
        clips: its features, an array (N,T,P,F) such as ``features.cached_features`` gives, or N
            videos, whose frames then pass the backbone in every step: clips that start anywhere,
            or as the preprocessing of a ``loading.Frames`` says.
        config: everything else.
        output: the run's folder.
        teacher: for the match term. It sees the same frames, in evaluation mode and without its
            decoder, and never changes. Not run if ``match_weight`` is 0.
        teacher_clips: the teacher's features of the same N videos in the same order, or these
            videos. Left out if teacher and student read the same.
        validate: called with the model every ``validate_every`` steps and after the last, by the
            first process; its numbers join the log. The bar shows an entry ``video_fg_ari``.
        workers: threads that read ahead (``loading.Loader``); they do not change the result.
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
    trainer = _Trainer(model, clips, config, teacher, teacher_clips, workers)
    checkpoint = Path(output) / CHECKPOINT
    done, rows = trainer.restore(checkpoint)
    started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    is_first = trainer.accelerator.is_main_process
    hidden = (None if progress is None else not progress) if is_first else True
    bar = tqdm(total=config.steps, initial=done, unit="step", mininterval=0.5, disable=hidden)
    shown: dict[str, str] = {}
    may_warn = True
    with bar, trainer.loader:
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
    return _table(rows)


class _Trainer:
    """A model with all that one step needs, and that outlives a kill."""

    def __init__(
        self,
        model: VideoSlotModel,
        clips: Videos,
        config: TrainConfig,
        teacher: VideoSlotModel | None,
        teacher_clips: Videos | None,
        workers: int | None,
    ) -> None:
        self.config = config
        self.source = source(clips)
        self.source.check("clips", model, config)
        self.teacher = self.teacher_source = None
        if config.match_weight:
            self.teacher, self.teacher_source = _checked_teacher(
                model, self.source, config, teacher, teacher_clips
            )
        self.accelerator = _accelerator(config)
        self.objective = Objective(model, config).train()
        self.trainable = [p for p in self.objective.parameters() if p.requires_grad]
        adam = torch.optim.Adam(self.trainable, lr=config.learning_rate, fused=True)
        self.wrapped, self.optimiser = self.accelerator.prepare(self.objective, adam)
        if self.teacher is not None:
            self.teacher.to(self.accelerator.device).eval()
        n_processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.gathers = config.gather_negatives and n_processes > 1
        share = config.batch_size // n_processes
        self.share = slice(rank * share, (rank + 1) * share)
        sources = [self.source]
        if self.teacher_source is not None and self.teacher_source is not self.source:
            sources.append(self.teacher_source)
        self.loader = Loader(
            sources,
            config,
            share=self.share,
            n_patches=model.config.n_patches,
            device=self.accelerator.device,
            workers=workers,
        )
        self.identity = json.dumps(self._identity())

    def update(self, step: int) -> tuple[dict[str, float], Tensor, Tensor]:
        """One optimiser step: its row of the log, its slots (B,T,K,D) and attention (B,T,K,P).

        Raises:
            FloatingPointError: a number is not finite; nothing was changed.
        """
        config = self.config
        weights = term_weights(config, step)
        rate = config.learning_rate * learning_rate_factor(
            step, warmup_steps=config.warmup_steps, steps=config.steps, decay=config.decay
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate

        chance, batches = self.loader.read(step)
        try:
            pieces = self._pieces(chance, batches)
            results = self._backward(pieces, chance, weights)
        except ValueError as error:  # shapes were checked: only numbers can be wrong by now
            raise FloatingPointError(f"step {step + 1} is not finite: {error}") from error
        limit = math.inf if config.grad_clip is None else config.grad_clip
        norm = self.accelerator.clip_grad_norm_(self.trainable, limit)
        terms = list(results[0].terms)
        values = torch.stack([result.values for result in results]).mean(0)
        values = self.accelerator.reduce(torch.cat([values, norm[None]]), "mean").tolist()
        row = {"step": step + 1, "learning_rate": rate} | dict.fromkeys(TERMS, math.nan)
        row |= dict(zip(("loss", *terms, "grad_norm"), values, strict=True))
        self._require_finite(row, terms)
        self.optimiser.step()
        self.optimiser.zero_grad()
        slots = torch.cat([result.slots for result in results])
        return row, slots, torch.cat([result.attention for result in results])

    @torch.no_grad()
    def _pieces(self, chance: Chance, batches: list[Tensor]) -> "list[_Piece]":
        """The parts of this process's share: what the student sees and the teacher says of it.

        Everything without a gradient happens here, so that the frozen backbones run once.
        """
        size = len(batches[0]) // self.config.accumulate
        pieces = []
        for start in range(0, len(batches[0]), size):
            own, *others = (batch[start : start + size] for batch in batches)
            first = self.share.start + start
            place = slice(first, first + size)
            with self.accelerator.autocast():
                features = self.objective.model.encode(own) if own.ndim == 5 else own
                wanted = self._teacher_slots(others[0] if others else own, chance.seed, place)
            pieces.append(_Piece(features, wanted, place))
        return pieces

    def _teacher_slots(self, clips: Tensor, seed: int, place: slice) -> Tensor | None:
        if self.teacher is None:
            return None
        run = self.teacher.forward if clips.ndim == 5 else self.teacher.forward_features
        state = first_slots(self.teacher, self.config, seed, place)
        return run(clips, decode=False, state=state).slots

    def _backward(
        self, pieces: "Sequence[_Piece]", chance: Chance, weights: Mapping[str, float]
    ) -> "list[_Result]":
        """Leave the gradient of the whole batch's loss in the weights, one piece after another."""
        patches = chance.patches
        if patches is not None:
            patches = patches.to(self.accelerator.device)
        everyone = self._everyone(pieces, chance.seed)
        origin = 0 if self.gathers else self.share.start
        results = []
        for piece in pieces:
            among = slice(piece.place.start - origin, piece.place.stop - origin)
            # Processes add up their gradients once, with the last piece's.
            last = piece is pieces[-1]
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, terms, slots, attention = self.wrapped(
                    piece.features,
                    patches,
                    chance.seed,
                    piece.place,
                    piece.teacher_slots,
                    weights,
                    everyone,
                    among,
                )
                self.accelerator.backward(loss / len(pieces))
            values = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
            results.append(_Result(tuple(terms), values, slots, attention))
        return results

    @torch.no_grad()
    def _everyone(self, pieces: "Sequence[_Piece]", seed: int) -> Tensor | None:
        """All slots that are contrasted, where they are more than those of one piece."""
        if not self.config.contrast_weight or (len(pieces) == 1 and not self.gathers):
            return None
        with self.accelerator.autocast():
            slots = [self.objective.slots(p.features, seed, p.place) for p in pieces]
        own = torch.cat(slots)
        return self.accelerator.gather(own) if self.gathers else own

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
        with paths.atomic(path.with_name(LOG)) as temporary:
            _table(rows).to_csv(temporary, index=False)
        with paths.atomic(path) as temporary:
            torch.save(content, temporary)

    def restore(self, path: Path) -> tuple[int, list[dict[str, float]]]:
        """Steps done and log so far of the checkpoint at ``path``, once its state is taken over.

        What a killed process left half written beside it is removed.

        Raises:
            ValueError: it cannot be read, or belongs to another run.
        """
        if self.accelerator.is_main_process:
            for unfinished in path.parent.glob(".writing-*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        if not path.is_file():
            return 0, []
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            run = json.loads(content["run"])
            run["config"] = DEFAULTS | run["config"]  # it may be older than a field
        except DAMAGED as error:
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


@dataclass(frozen=True)
class _Piece:
    """Some clips of a batch: features (b,T,P,F), the teacher's slots of them, and their places."""

    features: Tensor
    teacher_slots: Tensor | None
    place: slice


@dataclass(frozen=True)
class _Result:
    """What a piece gave: names of the terms, values (1 + terms,) from the loss on, and the rest."""

    terms: tuple[str, ...]
    values: Tensor
    slots: Tensor
    attention: Tensor


def _checked_teacher(
    model: VideoSlotModel,
    own_source: Source,
    config: TrainConfig,
    teacher: VideoSlotModel | None,
    teacher_clips: Videos | None,
) -> tuple[VideoSlotModel, Source]:
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
        if isinstance(own_source, Features) and own != wanted:
            raise ValueError(
                f"the teacher reads features of {wanted}, the student of {own}: pass the "
                "teacher's own as teacher_clips"
            )
        teacher_source = own_source
    else:
        teacher_source = source(teacher_clips)
    teacher_source.check("teacher_clips", teacher, config)
    sizes = [(len(clips), clips.n_frames) for clips in (own_source, teacher_source)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            "clips and teacher_clips must be the same videos, got (videos, frames) of "
            f"{sizes[0]} and {sizes[1]}"
        )
    return teacher, teacher_source


def processes() -> PartialState:
    """How many processes train together, and which this is.

    Accelerate takes several processes without a GPU for single ones unless it is told of the CPU.
    """
    if PartialState._shared_state:  # it was told already
        return PartialState()
    return PartialState(cpu=not torch.cuda.is_available())


def _accelerator(config: TrainConfig) -> Accelerator:
    processes()
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
    if config.batch_size % (accelerator.num_processes * config.accumulate):
        raise ValueError(
            f"batch_size {config.batch_size} cannot be shared equally by "
            f"{accelerator.num_processes} processes in {config.accumulate} parts each"
        )
    return accelerator


def _table(rows: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    extra = dict.fromkeys(key for row in rows for key in row if key not in LOG_COLUMNS)
    return pd.DataFrame(rows, columns=[*LOG_COLUMNS, *extra])


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
    unit = F.normalize(full_precision(slots), dim=-1)
    n_slots = unit.shape[-2]
    pairs = max(n_slots * (n_slots - 1), 1)
    cosine = (unit.sum(-2).square().sum(-1).mean() - n_slots) / pairs
    entropy = mask_entropy(full_precision(attention))
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
