"""Where teachers come from: trained here, released by others, or with the package."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from slotmatch import paths
from slotmatch.experiments.select import VIDEO_SETS, Experiment
from slotmatch.model import PRESETS, ModelConfig, VideoSlotModel, load

__all__ = ["load_teacher", "read_teacher", "released_path", "teacher_path"]

RELEASED: Mapping[str, str] = MappingProxyType(
    {
        "movi_c": "movi_c.ckpt",
        "movi_d": "movi_e.ckpt",
        "movi_e": "movi_e.ckpt",
        **dict.fromkeys(VIDEO_SETS, "ytvis.ckpt"),
    }
)
"""SlotContrast's released file by data set; where there is none, that of the same sizes."""


def teacher_path(experiment: Experiment) -> Path:
    """Where ``02_teacher`` leaves a teacher that it trained, for ``03_distill`` to find."""
    backbone = experiment.models.teacher.backbone
    name = f"{experiment.dataset}.{experiment.name}.{backbone}.seed{experiment.teacher.seed}"
    return paths.cache_dir() / "teachers" / f"{name}.safetensors"


def load_teacher(experiment: Experiment) -> tuple[VideoSlotModel, str]:
    """The teacher to distil from, and where it comes from.

    That is the one ``02_teacher`` or ``slotmatch train teacher`` trained with the same parameters,
    or else the one that comes with the package; either only if it has the experiment's
    architecture. At the preset ``paper`` it is the one SlotContrast's authors released, if its file
    is at ``released_path``.

    Raises:
        FileNotFoundError: none exists; the message says how to get one.
        ValueError: a released file that is damaged or does not fit the student.
    """
    own = teacher_path(experiment)
    if own.is_file() and (teacher := load(own)).config == experiment.models.teacher:
        return teacher, f"trained here: {own.name}"
    released = released_path(experiment)
    if released is not None and released.is_file():
        return read_teacher(released, experiment.models.student)
    if experiment.models == PRESETS["mini"]:
        return load("mini-teacher"), "mini-teacher, which comes with the package"
    raise FileNotFoundError(
        f"there is no teacher of preset {experiment.name} with backbone "
        f"{experiment.models.teacher.backbone} for {experiment.dataset}: run 02_teacher with the "
        f"same parameters first (or python -m slotmatch train teacher), {_or_released(released)}"
        "or take -p preset mini -p backbone embedded"
    )


def released_path(experiment: Experiment) -> Path | None:
    """Where a teacher that SlotContrast's authors released is looked for; None: there is none."""
    name = RELEASED.get(experiment.dataset)
    if experiment.name != "paper" or name is None:
        return None
    return paths.cache_dir() / "teachers" / "slotcontrast" / name


def _or_released(path: Path | None) -> str:
    if path is None:
        return ""
    return f"put {path.name}, which SlotContrast's authors released, at {path}, "


def read_teacher(name_or_path: str | Path, student: ModelConfig) -> tuple[VideoSlotModel, str]:
    """A teacher that ``slotmatch.model.load`` takes, and where it comes from.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or its slots cannot be compared with the student's.
    """
    teacher = load(name_or_path)
    released = Path(name_or_path).suffix == ".ckpt"
    origin = f"{'released by SlotContrast: ' if released else ''}{Path(name_or_path).name}"
    for name in ("n_slots", "slot_dim", "n_patches"):
        theirs, own = getattr(teacher.config, name), getattr(student, name)
        if theirs != own:
            raise ValueError(
                f"the teacher {name_or_path} has {name} {theirs}, the student {own}: take the "
                "data set and preset that the teacher was made for"
            )
    return teacher, f"{origin}, {teacher.config.backbone or 'from features'}"
