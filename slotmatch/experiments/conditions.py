"""The study: students that differ in one thing each, a line a condition.

All start from their own weights and their teacher's initial slots, see the same clips in the same
order, and train for ``STEPS`` steps with the settings of ``mini``'s student. A method that has a
weight to choose, or that has nothing to follow and so needs a learning rate of its own, is tried at
three, with one seed, and the one with the best FG-ARI on validation videos stands for it. SlotMatch
itself was chosen first, in the same way: all others differ from it at its best ``BETA``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from slotmatch.experiments.select import Experiment, select
from slotmatch.experiments.students import RATES
from slotmatch.model import INHERITABLE, ModelConfig
from slotmatch.settings import Distillation, Size, choices
from slotmatch.training import TrainConfig

__all__ = [
    "BETA",
    "HELPED",
    "LONGER",
    "METHODS",
    "N_TEST",
    "STEPS",
    "Condition",
    "candidates",
    "planned",
]

STEPS = 1500
"""Half of ``mini``'s: more runs, and so more seeds, before longer ones."""
LONGER = 2
"""Times as many, to see whether what helps does so with more training."""
BETA = 10.0
"""Weight of the SlotMatch term: the best of its three."""
N_TEST = 300
"""Test videos of each data set."""
ALIKE = MappingProxyType(
    {
        "slot_error": 2.0,
        "slot_lengths": 10.0,
        "attention_masks": 2.0,
        "decoder_masks": 2.0,
        "features": 1.0,
        "reconstructions": 1.0,
        "relations": 1.0,
        "relations_over_time": 1.0,
    }
)
"""Weights at which an added loss, or its gradient, starts about as large as the SlotMatch term's.

At a beta of 3, so that the weights tried correspond to the betas tried. But for lengths, which
start right: there it is so at the end.
"""
HELPED = MappingProxyType({"slot_error": 0.6, "slot_lengths": 10.0, "decoder_masks": 0.6})
"""Added losses that help in ``STEPS`` steps, at the weights chosen there, tried ``LONGER``."""
VIDEOSAUR = 0.1
"""Weight of VideoSAUR's loss beside a reconstruction, as released for YouTube-VIS."""
SHARES = (0.3, 1.0, 3.0)
"""Of these weights, which are tried."""


@dataclass(frozen=True)
class Condition:
    """One way to train a student.

    Attributes:
        training: fields of the student's ``TrainConfig`` that differ from SlotMatch's.
        inherits: parts of the teacher that it starts from.
        model: fields of the student's ``ModelConfig`` that differ.
        times: how many times ``STEPS`` it trains.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    inherits: tuple[str, ...] = ("initial_slots",)
    model: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1


@cache
def candidates() -> dict[str, dict[str, Condition]]:
    """Every method of the study with the conditions among which validation videos choose."""
    base = select("mini", "minimovi_a")
    recipe = {name: getattr(base.teacher, name) for name in ("attention_weight", "attention_until")}
    alone = {"match_weight": 0.0}
    uncontrasted = {"contrast_weight": 0.0}
    teacher = base.models.teacher
    eyes = {"backbone": teacher.backbone, "image_size": teacher.image_size}
    everything = tuple(INHERITABLE)
    frames = {"batch_size": base.student.batch_size * base.student.clip_length, "clip_length": 1}
    images = {**alone, **uncontrasted, **frames, "doublings": ()}

    def rates(training: Mapping[str, Any], *others: Any) -> dict[str, Condition]:
        return {f"{own:g}": Condition({**training, "learning_rate": own}, *others) for own in RATES}

    def weights(loss: str, training: Mapping[str, Any]) -> dict[str, Condition]:
        tried = (ALIKE[loss] * share for share in SHARES)
        return {f"{own:g}": Condition({**training, "added": {loss: own}}) for own in tried}

    def videosaur(weight: float, **others: float) -> dict[str, Condition]:
        loss = {"added": {"temporal_similarity": weight}}
        return rates({**alone, **uncontrasted, **loss, **others})

    def betas(*tried: float) -> dict[str, Condition]:
        return {f"{own:g}": Condition({"match_weight": own}) for own in tried}

    def one(*arguments: Any, **more: Any) -> dict[str, Condition]:
        return {"": Condition(*arguments, **more)}

    return {
        "slotmatch": betas(1.0, 3.0, 10.0),
        "no_term": rates(alone),
        "teacher_recipe": rates({**alone, **recipe}),
        **{f"beta_{name}": {"": own} for name, own in betas(0.3, 30.0).items()},
        **{f"with_{loss}": weights(loss, {}) for loss in choices(Distillation)},
        **{f"only_{loss}": weights(loss, alone) for loss in choices(Distillation)},
        "longer": one(times=LONGER),
        **{
            f"longer_with_{loss}": one({"added": {loss: own}}, times=LONGER)
            for loss, own in HELPED.items()
        },
        "image_only": rates(images),
        "videosaur": videosaur(1.0, reconstruction_weight=0.0),
        "videosaur_reconstruction": videosaur(VIDEOSAUR),
        "no_contrast": one(uncontrasted),
        "half_contrast": one({"contrast_weight": base.student.contrast_weight / 2}),
        "no_reconstruction": one({"reconstruction_weight": 0.0}),
        "hungarian": one({"correspondence": "hungarian"}),
        "hungarian_per_frame": one({"correspondence": "hungarian_per_frame"}),
        "shifted": one({"correspondence": "shifted"}),
        "shuffled": one({"correspondence": "shuffled"}),
        "own_start": one({}, ()),
        "own_start_hungarian": one({"correspondence": "hungarian"}, ()),
        "inherited": one({}, everything),
        "inherited_no_term": rates(alone, everything),
        "teacher_eyes": one({}, ("initial_slots",), eyes),
        "teacher_eyes_no_term": rates(alone, ("initial_slots",), eyes),
    }


METHODS = tuple(candidates())
"""Names of the methods, in the order of the tables."""


def planned(
    condition: Condition, dataset: str, seed: int = 0, *, preset: Size = "mini"
) -> Experiment:
    """The experiment whose student a condition trains; ``smoke`` only shows that it does."""
    steps = STEPS * condition.times if preset == "mini" else 0
    experiment = select(preset, dataset, steps=steps, seed=seed)
    if preset == "mini":
        experiment = replace(experiment, n_videos={**experiment.n_videos, "test": N_TEST})
    changed = {"match_weight": BETA, **condition.training}
    student: TrainConfig = replace(experiment.student, **changed)
    model: ModelConfig = replace(experiment.models.student, **condition.model)
    return replace(experiment, student=student, models=replace(experiment.models, student=model))
