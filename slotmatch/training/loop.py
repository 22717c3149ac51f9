"""One training loop for teacher and student around `slotmatch.training.step.slotmatch_step`.

What chance decides in a step (videos, first frames, mirroring, decoded patches) is a pure function
of seed and step. So a run that is killed and started again ends with the very weights of one that
was not.

Shapes: N videos; B clips, T frames, K slots, D slot width, P patches, F feature width.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from slotmatch import paths
from slotmatch.backbones import weights_checksum
from slotmatch.data.files import some
from slotmatch.metrics import mask_entropy
from slotmatch.model import VideoSlotModel
from slotmatch.precision import full_precision
from slotmatch.progress import hidden
from slotmatch.training import checkpoint
from slotmatch.training.accumulation import accumulated_step
from slotmatch.training.loading import (
    Batch,
    FeatureClips,
    Reading,
    Source,
    Videos,
    batches,
    source,
)
from slotmatch.training.processes import accelerator, average
from slotmatch.training.recipe import TERMS, TrainConfig, learning_rate_factor
from slotmatch.training.step import StepOutput
from slotmatch.training.student import Student

__all__ = ["LOG", "LOG_COLUMNS", "Validate", "train"]

LOG = "log.csv"
"""Name of the log beside the checkpoint, of the same step."""
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
        clips: its features, such as ``backbones.cached_features`` gives or an array (N,T,P,F), or N
            videos, whose frames then pass the backbone in every step: clips that start anywhere,
            or as the preprocessing of a ``loading.Frames`` says.
        config: everything else.
        output: the run's folder.
        teacher: for the terms that distil. It sees the same frames, in evaluation mode, and without
            its decoder if no term looks at that; it never changes.
        teacher_clips: the teacher's features of the same N videos in the same order, or these
            videos. Left out if teacher and student read the same.
        validate: called with the model every ``validate_every`` steps and after the last, in every
            process, which may share the work (``evaluation.score_on``); its numbers join the log.
            The bar shows an entry ``video_fg_ari``.
        workers: processes that read ahead (``loading.batches``); they do not change the result.
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
    path = Path(output) / checkpoint.CHECKPOINT
    run = _Run(model, clips, config, teacher, teacher_clips, path)
    done, rows = run.restore()
    started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    is_first = run.accelerator.is_main_process
    disable = hidden(progress) if is_first else True
    bar = tqdm(total=config.steps, initial=done, unit="step", mininterval=0.5, disable=disable)
    shown: dict[str, str] = {}
    may_warn = True
    with bar:
        for reading in run.readings(done, workers):
            output_of_step = run.update(reading.to(run.accelerator.device))
            done = reading.step + 1
            last = done == config.steps
            validated = last or done % config.validate_every == 0
            saved = last or done % config.checkpoint_every == 0
            logged = validated or done == 1 or done % config.log_every == 0
            if logged or saved:
                row = run.look()
            if logged:
                row |= _collapse(output_of_step.slots, output_of_step.attention)
                if validated and may_warn and done > config.warmup_steps:
                    may_warn = not _warn_of_collapse(done, row)
                if validated and validate is not None:
                    row |= _validation(model, validate)
                rows.append(row | {"seconds": time.perf_counter() - started})
                shown |= _summary(row)
                bar.set_postfix(shown, refresh=False)
            if saved:
                run.save(done, rows)
            bar.update()
    model.eval()
    return _table(rows)


class _Run:
    """A model with all that its steps need, and that outlives a kill."""

    def __init__(
        self,
        model: VideoSlotModel,
        clips: Videos,
        config: TrainConfig,
        teacher: VideoSlotModel | None,
        teacher_clips: Videos | None,
        path: Path,
    ) -> None:
        self.model, self.config, self.path = model, config, path
        self.sources = [source(clips)]
        self.sources[0].check("clips", model, config)
        self.teacher = None
        if config.distils:
            self.teacher, teachers = _checked_teacher(
                model, self.sources[0], config, teacher, teacher_clips
            )
            if teachers is not self.sources[0]:
                self.sources.append(teachers)
        self.accelerator = accelerator(config)
        self.identity = self._identity()
        self.terms_in_log = (*TERMS, *config.added)
        self.student = Student(model, config, self.teacher).to(self.accelerator.device).train()
        if self.teacher is not None:
            self.teacher.to(self.accelerator.device).eval()
        self.trainable = [p for p in self.student.parameters() if p.requires_grad]
        self.optimiser = self.accelerator.prepare(
            torch.optim.Adam(self.trainable, lr=config.learning_rate, fused=True)
        )
        # The first step that failed and what it gave: on the device, where nobody waits for it.
        self.failed = torch.zeros((), dtype=torch.long, device=self.accelerator.device)
        self.failed_numbers = torch.zeros(
            len(self.terms_in_log) + 2, device=self.accelerator.device
        )

    def readings(self, first: int, workers: int | None) -> Iterable[Reading]:
        """What is read for this process's batch of each step from ``first`` on."""
        return batches(
            self.sources,
            self.config,
            first=first,
            process=(self.accelerator.process_index, self.accelerator.num_processes),
            n_patches=self.model.config.n_patches,
            device=self.accelerator.device,
            workers=workers,
        )

    def update(self, batch: Batch) -> StepOutput:
        """One optimiser step, if all its numbers are finite and those of all steps before were."""
        config = self.config
        self.step = batch.step
        self.rate = config.learning_rate * learning_rate_factor(
            batch.step, warmup_steps=config.warmup_steps, steps=config.steps, decay=config.decay
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        try:
            output = accumulated_step(self.student, self.teacher, batch, config, self.accelerator)
        except ValueError as error:  # shapes were checked: only numbers can be wrong by now
            raise self._not_finite(batch.step + 1, str(error)) from error
        absent = torch.zeros_like(output.loss)
        terms = [output.terms.get(name, absent) for name in self.terms_in_log]
        numbers = torch.stack([output.loss, *terms])
        numbers = average(numbers, self.trainable, self.accelerator)
        limit = math.inf if config.grad_clip is None else config.grad_clip
        norm = self.accelerator.clip_grad_norm_(self.trainable, limit)
        self.terms, self.numbers = tuple(output.terms), torch.cat([numbers, norm[None]])
        self._note_failure()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return output

    def look(self) -> dict[str, float]:
        """The last step's row of the log, on the host.

        Raises:
            RuntimeError: this step or one before it gave a number that is not finite. The weights
                are those before that step.
        """
        names = ("loss", *self.terms_in_log, "grad_norm")
        left_out = {*self.terms_in_log} - {*self.terms}
        if failed := int(self.failed):
            values = zip(names, self.failed_numbers.tolist(), strict=True)
            found = ", ".join(f"{name} {v:g}" for name, v in values if name not in left_out)
            raise self._not_finite(failed, found)
        row = {"step": self.step + 1, "learning_rate": self.rate}
        row |= dict(zip(names, self.numbers.tolist(), strict=True))
        return row | dict.fromkeys(left_out, math.nan)

    def _not_finite(self, step: int, found: str) -> RuntimeError:
        last_good = checkpoint.last_good(self.path)
        return RuntimeError(f"step {step} is not finite: {found}; {last_good}")

    def _note_failure(self) -> None:
        """Keep the optimiser from moving, now and in all later steps, once a number is not finite.

        Fused Adam skips a step whose ``found_inf`` is set, without asking the host. With fp16 that
        is the loss scale's affair, which is found by overflowing: there the norm may be infinite,
        and the host looks at every step.
        """
        scaler = self.accelerator.scaler
        overflows = scaler is not None and scaler.get_scale() >= 1
        numbers = self.numbers[:-1] if overflows else self.numbers
        fails = ~numbers.isfinite().all() & (self.failed == 0)
        self.failed = torch.where(fails, self.step + 1, self.failed)
        self.failed_numbers = torch.where(fails, self.numbers, self.failed_numbers)
        if scaler is None:
            self.optimiser.optimizer.found_inf = (self.failed > 0).float()
        else:
            self.look()

    def save(self, step: int, rows: list[dict[str, float]]) -> None:
        """Write the log and all but the frozen backbones."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = self.student.state_dict()
        with paths.atomic(self.path.with_name(LOG)) as temporary:
            _table(rows).to_csv(temporary, index=False)
        checkpoint.write(
            self.path,
            checkpoint.Checkpoint(
                run=self.identity,
                step=step,
                rows=rows,
                weights={k: v for k, v in state.items() if not k.startswith("model.backbone.")},
                optimiser=self.optimiser.state_dict(),
                scaler=None if scaler is None else scaler.state_dict(),
            ),
        )

    def restore(self) -> tuple[int, list[dict[str, float]]]:
        """Steps done and log so far of the checkpoint, once its state is taken over."""
        if self.accelerator.is_main_process:
            checkpoint.remove_unfinished(self.path.parent)
        found = checkpoint.read(self.path, self.identity)
        if found is None:
            return 0, []
        unlike = self.student.load_state_dict(found.weights, strict=False)
        lacking = [name for name in unlike.missing_keys if not name.startswith("model.backbone.")]
        if lacking or unlike.unexpected_keys:
            raise ValueError(
                f"the weights of checkpoint {self.path} do not fit: missing {some(lacking)}; "
                f"unexpected {some(unlike.unexpected_keys)}; delete it to start afresh"
            )
        self.optimiser.load_state_dict(found.optimiser)
        if self.accelerator.scaler is not None and found.scaler is not None:
            self.accelerator.scaler.load_state_dict(found.scaler)
        return found.step, list(found.rows)

    def _identity(self) -> dict[str, Any]:
        """All that shapes the run's result: settings, first weights, what both models read."""
        identity = {
            "config": asdict(self.config),
            "model": asdict(self.model.config) | {"weights": weights_checksum(self.model)},
            "clips": self.sources[0].identity,
            "processes": self.accelerator.num_processes,
        }
        if self.teacher is not None:
            weights = {"weights": weights_checksum(self.teacher)}
            identity["teacher"] = asdict(self.teacher.config) | weights
            identity["teacher_clips"] = self.sources[-1].identity
        return identity


def _checked_teacher(
    model: VideoSlotModel,
    own_source: Source,
    config: TrainConfig,
    teacher: VideoSlotModel | None,
    teacher_clips: Videos | None,
) -> tuple[VideoSlotModel, Source]:
    """The teacher and where it reads, once it is known to fit the student and its clips."""
    if teacher is None:
        added = "".join(f", added {name} {weight}" for name, weight in config.added.items())
        raise ValueError(
            f"match_weight {config.match_weight}{added} needs a teacher: pass teacher="
        )
    for name in ("n_slots", "slot_dim"):
        own, wanted = getattr(model.config, name), getattr(teacher.config, name)
        if own != wanted:
            raise ValueError(f"student and teacher need the same {name}, got {own} and {wanted}")
    if teacher_clips is None:
        what = ("backbone", "image_size", "feature_shape")
        own, wanted = ([getattr(m.config, name) for name in what] for m in (model, teacher))
        if isinstance(own_source, FeatureClips) and own != wanted:
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


def _table(rows: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    extra = dict.fromkeys(key for row in rows for key in row if key not in LOG_COLUMNS)
    return pd.DataFrame(rows, columns=[*LOG_COLUMNS, *extra])


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
