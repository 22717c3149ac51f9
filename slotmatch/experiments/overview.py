"""The models of this book side by side: what each is made of and how it was trained."""

import pandas as pd

from slotmatch import data
from slotmatch.experiments.conditions import Condition, planned
from slotmatch.experiments.select import select
from slotmatch.experiments.shipped import STUDENT_STEPS
from slotmatch.model import ModelConfig
from slotmatch.training import TrainConfig

__all__ = ["settings_table"]


def settings_table() -> pd.DataFrame:
    """Sizes and training of the paper-sized pair and of this book's models, a column each.

    ``TrainConfig`` and ``ModelConfig`` say what each setting means.
    """
    paper, mini = select("paper", "movi_e"), select("mini", "minimovi_a")
    shipped = select("mini", "minimovi_a", steps=STUDENT_STEPS)
    study = planned(Condition(), "minimovi_a")
    every, one = f"{len(data.EMBEDDED)} x {mini.n_videos['train']}", f"{mini.n_videos['train']}"
    columns = {
        "teacher, paper": _column(paper.models.teacher, paper.teacher, "all of MOVi-E"),
        "student, paper": _column(paper.models.student, paper.student, "all of MOVi-E"),
        "mini-teacher": _column(mini.models.teacher, mini.teacher, every),
        "mini-student": _column(shipped.models.student, shipped.student, every),
        "student of 03_distill": _column(mini.models.student, mini.student, one),
        "student of the study": _column(study.models.student, study.student, one),
    }
    return pd.DataFrame(columns).rename_axis("setting")


def _column(model: ModelConfig, config: TrainConfig, videos: str) -> dict[str, str]:
    first, last = config.clips(0), config.clips(config.steps - 1)
    grows = "" if first == last else f", at last {last[0]} x {last[1]}"
    attention = f"{config.attention_weight:g}, fades until {100 * config.attention_until:g} %"
    return {
        "backbone": str(model.backbone),
        "frame, pixels": str(model.image_size),
        "patches": f"{model.grid} x {model.grid}",
        "slots x width": f"{model.n_slots} x {model.slot_dim}",
        "decoder, layers x width": f"{model.decoder_layers} x {model.decoder_hidden}",
        "training videos": videos,
        "steps": f"{config.steps:,}",
        "clips x frames of a step": f"{first[0]} x {first[1]}{grows}",
        "learning rate": f"{config.learning_rate:g}",
        "warm-up, steps": f"{config.warmup_steps:,}",
        "rate left at the end": f"{100 * config.decay:g} %",
        "largest gradient": f"{config.grad_clip:g}",
        "alpha (contrast)": f"{config.contrast_weight:g}",
        "beta (SlotMatch)": f"{config.match_weight:g}" if config.distils else "-",
        "attention term": attention if config.attention_weight else "0",
        "patches decoded": f"{100 * config.patch_fraction:g} %",
    }
