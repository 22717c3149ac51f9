from dataclasses import replace

import numpy as np
import pytest

from slotmatch import experiments
from slotmatch.data import NAMES, Clip
from slotmatch.experiments import SIZES, example_clips, load_teacher, select, teacher_path
from slotmatch.model import VideoSlotModel, load
from slotmatch.presets import PRESETS


@pytest.mark.parametrize("preset", SIZES)
@pytest.mark.parametrize("dataset", NAMES)
def test_every_preset_knows_every_data_set(preset: str, dataset: str) -> None:
    chosen = select(preset, dataset)
    assert chosen.student.match_weight > 0
    assert chosen.teacher.match_weight == 0
    assert chosen.student.warmup_steps < chosen.student.steps


def test_paper_has_the_published_sizes_and_schedule() -> None:
    movi, youtube = select("paper", "movi_e"), select("paper", "ytvis2021")
    assert movi.models == PRESETS["movi_e"]
    assert (movi.teacher.steps, movi.teacher.learning_rate, movi.teacher.batch_size) == (
        300_000,
        4e-4,
        64,
    )
    assert (youtube.teacher.steps, youtube.teacher.learning_rate) == (100_000, 8e-4)
    assert youtube.teacher.flip_probability == 0
    assert movi.teacher.flip_probability == 0.5
    assert movi.teacher.attention_weight == 0


def test_steps_and_seed_reach_both_trainings() -> None:
    chosen = select("mini", "minimovi_c", steps=100, seed=7)
    usual = select("mini", "minimovi_c")
    for own, other in ((chosen.teacher, usual.teacher), (chosen.student, usual.student)):
        assert (own.steps, own.seed) == (100, 7)
        assert own.warmup_steps / 100 == pytest.approx(other.warmup_steps / other.steps, abs=0.01)


def test_another_backbone_keeps_the_patch_grid() -> None:
    chosen = select("mini", "minimovi_a", backbone="dinov2_vits14").models
    assert chosen.teacher.backbone == chosen.student.backbone == "dinov2_vits14"
    assert chosen.teacher.image_size == 16 * 14
    assert chosen.teacher.grid == PRESETS["mini"].teacher.grid


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tiny", "minimovi_a"), "choose from smoke, mini, paper"),
        (("mini", "movi_x"), "choose from minimovi_a"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(
    arguments: tuple[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        select(*arguments)
    with pytest.raises(ValueError, match="not one of"):
        select("mini", "minimovi_a", backbone="resnet_of_dreams")


def test_teacher_of_the_package_serves_mini_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    teacher, origin = load_teacher(select("mini", "minimovi_c"))
    assert "mini-teacher" in origin
    assert teacher.config == PRESETS["mini"].teacher == load("mini-teacher").config
    with pytest.raises(FileNotFoundError, match="run 02_teacher"):
        load_teacher(select("paper", "minimovi_c"))


def test_own_teacher_comes_before_the_one_of_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    experiment = select("mini", "minimovi_a", seed=3)
    own = load("mini-teacher")
    own.initial_slots.slots.data += 1
    experiments.save(own, teacher_path(experiment))
    teacher, origin = load_teacher(experiment)
    assert teacher_path(experiment).name in origin
    assert bool((teacher.initial_slots.slots == own.initial_slots.slots).all())


def test_own_teacher_of_another_architecture_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    experiment = select("mini", "minimovi_a")
    other = replace(experiment.models.teacher, n_slots=4)
    experiments.save(VideoSlotModel(other), teacher_path(experiment))
    teacher, origin = load_teacher(experiment)
    assert "mini-teacher" in origin
    assert teacher.config == experiment.models.teacher


def test_examples_are_spread_over_the_ranking() -> None:
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    clips = [Clip(frames, frames[..., 0].astype(int), str(i)) for i in range(5)]
    scores = {"video_fg_ari": [0.1, 0.5, 0.3, 0.9, 0.7]}  # best first: 3, 4, 1, 2, 0
    assert [clip.id for clip in example_clips(clips, scores, 1)] == ["1"]
    assert [clip.id for clip in example_clips(clips, scores, 3)] == ["4", "1", "2"]
