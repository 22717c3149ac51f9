import json
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pytest
import torch
from released import released_heads
from tiny import tiny

from slotmatch import data, paths
from slotmatch.data import NAMES, Clip
from slotmatch.experiments import (
    SIZES,
    example_clips,
    load_teacher,
    overview,
    read_features,
    read_teacher,
    released_path,
    select,
    students,
    teacher_path,
    training_clips,
)
from slotmatch.experiments.shipped import STUDENT_STEPS
from slotmatch.experiments.students import tried, try_all
from slotmatch.model import PRESETS, VideoSlotModel, load, save
from slotmatch.paths import RESULTS, WEIGHTS
from slotmatch.reporting.results import read_results
from slotmatch.settings import Role
from slotmatch.training import Frames


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
    schedule = (movi.teacher.warmup_steps, movi.teacher.decay, movi.teacher.grad_clip)
    assert schedule == (2500, 0.5, 0.05)
    assert (movi.teacher.contrast_weight, movi.teacher.temperature) == (0.5, 0.1)
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
        (("tiny", "minimovi_a"), "preset must be one of .*smoke.*mini.*paper"),
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


def test_a_students_controls_differ_from_it_in_the_term_and_their_best_rate() -> None:
    experiment = select("mini", "minimovi_a", seed=3)
    found = {name: asdict(config) for name, config in experiment.students.items()}
    student = found["student"]
    changed = {
        name: {key: value for key, value in own.items() if value != student[key]}
        for name, own in found.items()
    }
    teacher = experiment.teacher
    assert changed == {
        "student": {},
        "no_term": {"match_weight": 0.0, "learning_rate": 2e-3},
        "teacher_recipe": {
            "match_weight": 0.0,
            "attention_weight": teacher.attention_weight,
            "attention_until": teacher.attention_until,
        },
    }
    assert student["match_weight"] >= 1
    assert list(select("paper", "movi_e").students) == ["student", "no_term"]


def test_as_many_settings_are_tried_for_each_control_as_for_the_student() -> None:
    experiment = select("mini", "minimovi_a")
    found = tried(experiment)
    for name, own in experiment.students.items():
        rates = [
            config.learning_rate
            for config in found.values()
            if config == replace(own, learning_rate=config.learning_rate)
        ]
        assert sorted(rates) == [1e-3, 2e-3, 4e-3], name
    assert {config.match_weight for config in found.values()} == {0.0, 0.3, 1.0, 3.0, 10.0}
    assert len(found) == len({str(config) for config in found.values()}) == 12


def test_every_students_learning_rate_is_the_best_that_was_tried() -> None:
    """By FG-ARI on validation videos, which the committed file holds."""
    experiment = select("mini", "minimovi_a")
    found = read_results(students.COMMITTED["tried"])["models"]
    configs = tried(experiment)
    assert set(found) == set(configs)
    for name, own in experiment.students.items():
        scores = {
            configs[what].learning_rate: np.mean(entry["metrics"]["video_fg_ari"])
            for what, entry in found.items()
            if configs[what] == replace(own, learning_rate=configs[what].learning_rate)
        }
        assert own.learning_rate == max(scores, key=scores.__getitem__), name


def test_at_paper_scale_teacher_and_student_share_the_frames_they_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    given = {}

    def fake_train(model, clips, config, **kwargs):
        given.update(kwargs, clips=clips)

    monkeypatch.setattr(students, "train", fake_train)
    monkeypatch.setattr(data, "open", lambda *_, **__: [])
    experiment = select("paper", "movi_e")
    small = tiny(decoder_layers=3, n_heads=4, n_slots=5)
    experiment = replace(
        experiment, models=replace(experiment.models, teacher=small, student=small)
    )
    teacher = VideoSlotModel(small)
    file = tmp_path / "student.safetensors"
    students.train_student(experiment, experiment.student, teacher, file)
    assert isinstance(given["clips"], Frames)
    assert given["teacher"] is teacher
    assert given["teacher_clips"] is None, "the same clips, not another reading of them"
    assert load(file).config == small


@pytest.mark.slow
def test_a_student_is_trained_scored_and_kept_in_each_way(tmp_path) -> None:
    experiment = select("smoke", "minimovi_a", steps=2)
    configs = dict(islice(tried(experiment).items(), 1))
    configs["no_term"] = experiment.students["no_term"]
    found = try_all(experiment, tmp_path, configs)
    assert list(found["models"]) == list(configs)
    for name, entry in found["models"].items():
        assert {"video_fg_ari", "slot_cosine", "constant_cosine"} <= set(entry["metrics"])
        assert entry["training"] == configs[name]
        assert load(tmp_path / f"{name}.safetensors").config == experiment.models.student
        assert entry["validated"]["step"][-1] == 2


@pytest.mark.slow
def test_students_trained_side_by_side_are_those_trained_alone(tmp_path) -> None:
    experiment = select("smoke", "minimovi_a", steps=2)
    teacher, _ = load_teacher(experiment)
    together = students.train_students(experiment, teacher, tmp_path / "together")
    assert list(together) == list(experiment.students)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, config in experiment.students.items():
            file = tmp_path / "alone" / f"{name}.safetensors"
            alone, log = students.train_student(experiment, config, teacher, file)
            own, own_log, checksum = together[name]
            assert own_log.drop(columns="seconds").equals(log.drop(columns="seconds"))
            for weight, other in zip(own.parameters(), alone.parameters(), strict=True):
                assert torch.equal(weight, other)
            assert checksum == paths.checksum(file)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("dataset", data.EMBEDDED)
def test_results_of_the_shipped_pair_are_those_of_its_weights(role: Role, dataset: str) -> None:
    found = read_results(RESULTS / f"{role}.mini.{dataset}" / "results.json")
    weights = paths.checksum(WEIGHTS / f"mini-{role}.safetensors")
    assert found["models"][role]["checkpoint"] == weights
    assert load(f"mini-{role}").config == getattr(PRESETS["mini"], role)
    steps = STUDENT_STEPS if role == "student" else 0
    settings = getattr(select("mini", dataset, steps=steps), role)
    assert found["config"]["training"] == json.loads(json.dumps(asdict(settings)))


def test_the_shipped_student_follows_its_teacher_far_beyond_a_constant() -> None:
    for dataset in data.EMBEDDED:
        found = read_results(RESULTS / f"student.mini.{dataset}" / "results.json")
        metrics = found["models"]["student"]["metrics"]
        gain = np.subtract(metrics["slot_cosine"], metrics["constant_cosine"])
        assert gain.min() > 0.05
        assert gain.mean() > 0.2


def test_own_teacher_comes_before_the_one_of_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    experiment = select("mini", "minimovi_a", seed=3)
    own = load("mini-teacher")
    own.initial_slots.slots.data += 1
    save(own, teacher_path(experiment))
    teacher, origin = load_teacher(experiment)
    assert teacher_path(experiment).name in origin
    assert bool((teacher.initial_slots.slots == own.initial_slots.slots).all())


def test_own_teacher_of_another_architecture_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    experiment = select("mini", "minimovi_a")
    other = replace(experiment.models.teacher, n_slots=4)
    save(VideoSlotModel(other), teacher_path(experiment))
    teacher, origin = load_teacher(experiment)
    assert "mini-teacher" in origin
    assert teacher.config == experiment.models.teacher


def test_examples_are_spread_over_the_ranking() -> None:
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    clips = [Clip(frames, frames[..., 0].astype(int), str(i)) for i in range(5)]
    scores = {"video_fg_ari": [0.1, 0.5, 0.3, 0.9, 0.7]}  # best first: 3, 4, 1, 2, 0
    assert [clip.id for clip in example_clips(clips, scores, 1)] == ["1"]
    assert [clip.id for clip in example_clips(clips, scores, 3)] == ["4", "1", "2"]


class NamedClips(list):
    """A data set that counts how often a video is read."""

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"v{i}" for i in range(len(self)))


@pytest.mark.parametrize(("n_videos", "held_back"), [(4, 1), (60, 6), (1500, 100)])
def test_real_videos_for_choosing_are_the_last_of_train(n_videos, held_back, monkeypatch) -> None:
    asked = []

    def fake_open(name, split, **_):
        asked.append((name, split))
        return NamedClips(f"{split} {i}" for i in range(n_videos))

    monkeypatch.setattr(data, "open", fake_open)
    experiment = select("paper", "movi_e")
    train, validation, scored = (experiment.open(split) for split in SIZES["paper"])
    assert asked == [("movi_e", "train"), ("movi_e", "train"), ("movi_e", "validation")]
    assert len(train) == n_videos - held_back
    assert list(train) + list(validation) == [f"train {i}" for i in range(n_videos)]
    assert validation.ids == tuple(f"v{i}" for i in range(n_videos - held_back, n_videos))
    assert list(scored) == [f"validation {i}" for i in range(n_videos)]
    assert list(train[1:2]) == ["train 1"]
    with pytest.raises(ValueError, match="'val'; choose from train, validation, test"):
        experiment.open("val")


def test_at_a_small_size_the_first_real_videos_are_enough(monkeypatch) -> None:
    def fake_open(name, split, *, n_videos, **_):  # as after a download with --max-videos
        assert n_videos <= 6, "a video that is not there"
        return NamedClips(f"{split} {i}" for i in range(n_videos))

    monkeypatch.setattr(data, "open", fake_open)
    train, validation, scored = map(select("smoke", "movi_e").open, SIZES["smoke"])
    assert list(train) == ["train 0", "train 1", "train 2", "train 3"]
    assert list(validation) == ["train 4", "train 5"]
    assert list(scored) == ["validation 0", "validation 1", "validation 2"]


def test_paper_trains_from_preprocessed_frames_and_caches_no_features(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (9, 24, 24, 3), np.uint8) for _ in range(3)]
    clips = [Clip(video, video[..., 0].astype(np.int32), str(i)) for i, video in enumerate(videos)]
    monkeypatch.setattr(data, "open", lambda *_, **__: clips)
    experiment = select("paper", "movi_e")
    config = experiment.models.student
    student = VideoSlotModel(config, pretrained=False)
    seen = training_clips(experiment, student)
    assert isinstance(seen, Frames)
    assert seen.preprocessing.size == config.image_size == 336
    assert seen.preprocessing.aligned_starts
    assert (seen.preprocessing.flip_probability, experiment.student.flip_probability) == (0, 0.5)
    assert read_features(experiment, "test", student) is None
    assert not select("mini", "movi_e").from_frames


def test_released_teacher_is_found_at_its_place_and_named_when_missing(
    oracles, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    experiment = select("paper", "movi_e")
    path = released_path(experiment)
    assert path == tmp_path / "teachers" / "slotcontrast" / "movi_e.ckpt"
    with pytest.raises(FileNotFoundError, match=r"put movi_e\.ckpt, which .* at .*movi_e\.ckpt"):
        load_teacher(experiment)
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": released_heads(oracles), "epoch": 3}, path)
    with pytest.raises(ValueError, match="has n_slots 5, the student 15: take the data set"):
        load_teacher(experiment)
    small = tiny(decoder_layers=3, n_heads=4, n_slots=5)
    models = replace(experiment.models, teacher=small, student=small)
    teacher, origin = load_teacher(replace(experiment, models=models))
    assert (teacher.config.n_slots, teacher.config.n_patches) == (5, 9)
    assert "released by SlotContrast: movi_e.ckpt" in origin
    assert released_path(select("paper", "davis2017")).name == "ytvis.ckpt"
    assert released_path(select("mini", "movi_e")) is None
    with pytest.raises(FileNotFoundError):
        read_teacher(tmp_path / "nothing.ckpt", small)


def test_the_models_of_the_book_are_told_apart_by_their_settings() -> None:
    table = overview.settings_table()
    assert table.loc["beta (SlotMatch)"].tolist() == ["-", "1", "-", "3", "3", "10"]
    assert table.loc["steps"].tolist()[2:] == ["10,000", "6,000", "3,000", "1,500"]
    assert table.loc["training videos", "mini-student"] == "4 x 200"
    assert table.loc["clips x frames of a step", "mini-teacher"] == "12 x 6, at last 3 x 24"
    assert table.loc["attention term", "mini-teacher"] == "2, fades until 60 %"
    assert set(table.loc["attention term"].drop("mini-teacher")) == {"0"}
