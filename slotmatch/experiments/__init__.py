"""What the notebooks and ``slotmatch train`` run: data, models and settings at three sizes."""

from slotmatch.experiments.select import (
    MINI_STUDENT,
    MINI_TEACHER,
    PAPER,
    SIZES,
    Experiment,
    example_clips,
    lighter,
    read_features,
    select,
    training_clips,
)
from slotmatch.experiments.teachers import (
    load_teacher,
    read_teacher,
    released_path,
    teacher_path,
)

__all__ = [
    "MINI_STUDENT",
    "MINI_TEACHER",
    "PAPER",
    "SIZES",
    "Experiment",
    "example_clips",
    "lighter",
    "load_teacher",
    "read_features",
    "read_teacher",
    "released_path",
    "select",
    "teacher_path",
    "training_clips",
]
