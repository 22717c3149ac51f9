"""Training at paper scale, proven on models and data of a few numbers."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny

from slotmatch import experiments
from slotmatch.__main__ import main
from slotmatch.backbones import Features
from slotmatch.data import minimovi
from slotmatch.data.decoded import DecodedClips
from slotmatch.data.preprocessing import Preprocessing
from slotmatch.experiments import runs
from slotmatch.model import PRESETS, Preset, VideoSlotModel, load
from slotmatch.reporting.results import read_results
from slotmatch.training import Frames, TrainConfig, estimates, train
from slotmatch.training.checkpoint import CHECKPOINT
from slotmatch.training.loading import Batch, FeatureClips, batches, draw
from slotmatch.training.loop import LOG
from slotmatch.training.step import slotmatch_step
from slotmatch.training.student import Student

CPU = torch.device("cpu")
TINY = tiny("embedded", 32, n_slots=3)
QUICK = TrainConfig(
    steps=6,
    batch_size=4,
    clip_length=2,
    learning_rate=3e-3,
    warmup_steps=1,
    log_every=1,
    validate_every=3,
    checkpoint_every=3,
)


def make_videos(n: int = 5, n_frames: int = 9, side: int = 12) -> list[SimpleNamespace]:
    """Frame t of video i has the red value 20 i + t, and a green mark in its left column."""
    videos = []
    for i in range(n):
        video = np.zeros((n_frames, side, side, 3), np.uint8)
        video[..., 0] = 20 * i + np.arange(n_frames)[:, None, None]
        video[:, :, 0, 1] = 255
        videos.append(SimpleNamespace(id=f"v{i}", video=video))
    return videos


def read(*sources, config=QUICK, workers=0, first=0) -> list[Batch]:
    """The batches of a run, on a CPU that trains alone."""
    loader = batches(sources, config, first=first, n_patches=9, device=CPU, workers=workers)
    return [batch.to(CPU) for batch in loader]


# Loading


@pytest.mark.parametrize("kind", ["frames", "preprocessed", "features"])
def test_workers_do_not_change_what_a_step_gets(kind):
    source = {
        "frames": Frames(make_videos()),
        "preprocessed": Frames(make_videos(), Preprocessing(8, "crop")),
        "features": FeatureClips(Features(np.random.default_rng(0).standard_normal((5, 9, 9, 6)))),
    }[kind]
    config = replace(QUICK, flip_probability=0.0 if kind == "features" else 0.5)
    before = torch.random.get_rng_state()
    alone, many = read(source, config=config), read(source, config=config, workers=2)
    resumed = read(source, config=config, workers=2, first=4)  # as after a kill
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [batch.step for batch in many] == [*range(config.steps)]
    assert [batch.step for batch in resumed] == [4, 5]
    for own, theirs in zip([*alone, *alone[4:]], [*many, *resumed], strict=True):
        assert own.seed == theirs.seed
        assert theirs.teacher_clips is theirs.clips  # moved to a device once
        assert torch.equal(own.clips, theirs.clips)


@pytest.mark.parametrize("workers", [0, 2])
def test_video_that_cannot_be_read_stops_the_step_that_needs_it(workers):
    videos = make_videos()
    videos[0].video = None
    with pytest.raises(TypeError):
        read(Frames(videos), workers=workers)
    with pytest.raises(ValueError, match="workers must be 0 or more, got -1"):
        read(Frames(videos), workers=-1)


def test_clips_grow_while_batches_shrink():
    growing = replace(QUICK, doublings=(1 / 3, 2 / 3))
    batches_read = read(Frames(make_videos()), config=growing)
    assert [batch.clips.shape[:2] for batch in batches_read] == [(4, 2)] * 2 + [(2, 4)] * 2 + [
        (1, 8)
    ] * 2
    assert [batch.size for batch in batches_read] == [4, 4, 2, 2, 1, 1]
    for batch in batches_read:  # the red value counts a video's frames
        steps = 255 * batch.clips[:, :, 0, 0, 0].diff(dim=1)
        assert steps.round().unique().tolist() == [1]


def test_preprocessed_clips_start_at_multiples_and_share_crop_and_mirroring():
    source = Frames(make_videos(n_frames=11), Preprocessing(12, "crop"))
    config = replace(QUICK, clip_length=4, flip_probability=0.5, steps=40)
    starts, mirrored = set(), []
    for batch in read(source, config=config):
        clips, chance = batch.clips, draw(config, batch.step, 5, 9)
        assert clips.shape == (4, 4, 3, 12, 12)
        red = (clips[:, :, 0, 0, 0] * 255).round().int()
        red -= 20 * torch.from_numpy(chance.videos)[:, None]
        assert torch.equal(red - red[:, :1], torch.arange(4).expand(4, 4))
        starts |= set(red[:, 0].tolist())
        marks = clips[:, :, 1, 0, 0] == 0  # the mark went to the right
        assert (marks == marks[:, :1]).all()
        np.testing.assert_array_equal(marks[:, 0], chance.flipped)
        mirrored += marks[:, 0].tolist()
    assert starts == {0, 4}
    assert 0.3 < np.mean(mirrored) < 0.7


def test_crop_is_drawn_anew_for_each_clip_and_the_same_for_two_readers():
    videos = make_videos()
    for video in videos:
        video.video = np.concatenate([video.video, video.video], axis=2)  # 12 x 24
        video.video[..., 2] = 10 * np.arange(24)  # a blue that says which column
    first, second = (Frames(videos, Preprocessing(6, "crop")) for _ in range(2))
    lefts = set()
    for batch in read(first, second):
        assert torch.equal(batch.clips, batch.teacher_clips)
        lefts |= set(batch.clips[:, 0, 2, 0, 0].tolist())
    assert len(lefts) > 3


def test_video_shorter_than_a_clip_gives_way_to_the_next():
    videos = make_videos(3)
    videos[1].video = videos[1].video[:1]
    chance, batch = draw(QUICK, 0, 3, 9), read(Frames(videos))[0]
    owners = (batch.clips[:, 0, 0, 0, 0] * 255).round().int() // 20
    assert 1 in chance.videos
    assert owners.tolist() == [2 if index == 1 else index for index in chance.videos]
    short = Frames(make_videos(2, n_frames=1))
    with pytest.raises(ValueError, match="all 2 videos have fewer frames than clip_length 2"):
        short.check("clips", VideoSlotModel(TINY, pretrained=False), QUICK)


def test_clips_are_not_mirrored_twice():
    source = Frames(make_videos(), Preprocessing(8, flip_probability=0.5))
    with pytest.raises(ValueError, match=r"mirrored twice: .* flip_probability 0.5 to 0"):
        source.check("clips", VideoSlotModel(TINY, pretrained=False), QUICK)


def test_training_with_workers_on_frames_is_the_training_without(tmp_path):
    weights = []
    for workers in (0, 2):
        model = VideoSlotModel(TINY, pretrained=False)
        model.backbone.load_state_dict(VideoSlotModel(TINY).backbone.state_dict())
        teacher = VideoSlotModel(TINY, pretrained=False, seed=1)
        teacher.backbone.load_state_dict(model.backbone.state_dict())
        source = Frames(make_videos(), Preprocessing(32))
        config = replace(QUICK, match_weight=1.0, flip_probability=0.5, accumulate=2)
        folder = tmp_path / str(workers)
        train(model, source, config, output=folder, teacher=teacher, workers=workers)
        weights.append(torch.load(folder / CHECKPOINT, weights_only=True)["weights"])
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))


def test_decoded_videos_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    videos = make_videos()
    for _ in range(2):
        kept = DecodedClips(videos, "movi_e")
        assert len(kept) == 5
        for index, video in enumerate(make_videos()):
            np.testing.assert_array_equal(kept[index].video, video.video)
            assert kept[index].id == video.id
    files = sorted((tmp_path / "frames").rglob("*.npy"))
    assert len(files) == 5
    assert isinstance(kept[0].video, np.memmap)
    other = DecodedClips(make_videos(1), "movi_c")
    assert other[0].id == "v0"
    assert len(list((tmp_path / "frames").rglob("*.npy"))) == 6
    changed = make_videos(1)
    changed[0].video = changed[0].video[::-1].copy()  # another video under the same name
    again = DecodedClips(changed, "movi_c")
    np.testing.assert_array_equal(again[0].video, changed[0].video)


# Estimates


def test_parameters_are_those_of_the_published_sizes():
    config = replace(QUICK, match_weight=1.0)
    movi = PRESETS["movi_e"]
    found = estimates.estimate(config, movi.student, teacher=movi.teacher, speed=1e12)
    assert found.parameters == 25_631_617
    assert found.trained == 3_575_425
    assert found.teacher_parameters == 91_533_313
    # A ViT-S and a ViT-B for slots alone, and three times the student's heads, in GFLOP a frame.
    expected = 8 * (30.9 + 110.8 + 1.66 + 3 * (0.45 + 0.067 + 36.9))
    assert found.flops / 1e9 == pytest.approx(expected, rel=0.03)
    assert estimates.estimate(config, movi.teacher, speed=1e12).teacher_parameters == 0


@pytest.mark.parametrize("change", [{}, {"patch_fraction": 0.5, "attention_weight": 1.0}])
def test_activations_are_what_autograd_keeps_of_a_real_step(change):
    config = replace(QUICK, match_weight=1.0, **change)
    model = VideoSlotModel(estimates.without_backbone(TINY))
    features = torch.randn(4, 2, *model.config.feature_shape)
    patches = torch.arange(model.config.n_patches // 2) if change else None
    student, teacher = Student(model, config), VideoSlotModel(model.config, seed=1)
    batch = Batch(0, features, features, patches, seed=0, first=0, size=4)
    kept = estimates.stored_bytes(
        student, features, lambda: slotmatch_step(student, teacher, batch, config)
    )
    assert estimates.activation_bytes(TINY, config, 4) == pytest.approx(kept, rel=0.1)


def test_stored_bytes_of_a_layer_worked_out_by_hand():
    layer = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    features = torch.randn(5, 4)
    # The input is left out; relu keeps its result, which is what the next layer keeps as well.
    assert estimates.stored_bytes(layer, features, lambda: layer(features).sum()) == 5 * 8 * 4


def test_parts_precision_and_processes_take_their_share_of_memory_and_time():
    config = replace(QUICK, batch_size=64, clip_length=4)
    movi = PRESETS["movi_e"].student

    def guess(n_processes=1, **changes):
        settings = replace(config, **changes)
        return estimates.estimate(settings, movi, n_processes=n_processes, speed=1e12)

    whole, parts = guess(), guess(accumulate=8)
    assert 25e9 < whole.activations < 60e9  # three hidden layers of 9 GB, and what is around them
    kept = 64 * 4 * 576 * 384 * 4
    assert parts.activations - kept == pytest.approx((whole.activations - kept) / 8, rel=0.02)
    assert guess(mixed_precision="bf16").activations == pytest.approx(whole.activations / 2)
    assert guess(n_processes=2).hours == pytest.approx(whole.hours / 2)
    assert whole.hours == pytest.approx(6 * whole.flops / (0.4 * 1e12) / 3600)
    assert parts.flops > whole.flops  # slots are found twice
    cached = estimates.estimate(config, movi, from_frames=False, n_frames=9749 * 24, speed=1e12)
    assert cached.data == 9749 * 24 * 576 * 384 * 2
    assert cached.flops < whole.flops
    text = str(parts)
    assert "in 8 micro-batches" in text
    assert text.count("estimate") == 3
    assert estimates.device_speed() > 1e8


# Runs and the command


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> None:
    """Preset sizes of a few numbers, and a few rendered videos' worth of files."""
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    for split, n_videos in {"train": 4, "validation": 2}.items():
        folder = tmp_path / "data" / "minimovi" / f"v{minimovi.VERSION}" / "minimovi_a" / split
        folder.mkdir(parents=True)
        for index in range(n_videos):
            steps = rng.integers(0, 256, (4, 24, 24, 3), np.uint8)
            labels = np.zeros((4, 24, 24), np.uint8)
            labels[:, 4:12, 4:12] = 1
            np.savez_compressed(folder / f"{index:05d}.npz", steps=steps, labels=labels)
    select = experiments.select

    def small(preset, dataset, **arguments):
        chosen = select(preset, dataset, **arguments)
        steps = arguments.get("steps") or QUICK.steps
        settings = replace(QUICK, steps=steps, seed=chosen.teacher.seed)
        return replace(
            chosen,
            models=Preset(TINY, TINY, "test"),
            n_videos={"train": 4, "validation": 2, "test": 1},
            teacher=settings,
            student=replace(settings, match_weight=1.0),
        )

    monkeypatch.setattr(experiments, "select", small)


def train_command(role: str, output: Path, *more: str, preset: str = "paper") -> list[str]:
    command = ["train", role, "--dataset", "minimovi_a", "--preset", preset]
    return [*command, "--output", str(output), *more]


@pytest.mark.filterwarnings("ignore:all slots are the same")  # a few steps on noise
@pytest.mark.parametrize("preset", ["paper", "mini"])
def test_command_trains_teacher_and_student_and_goes_on(preset, tiny, tmp_path, capsys):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert main(train_command("teacher", teacher, "--accumulate", "2", preset=preset)) == 0
    said = capsys.readouterr().out
    assert "4 videos of minimovi_a" in said
    assert "hours for 6 steps (estimate" in said
    names = sorted(path.name for path in teacher.iterdir())
    assert names == [CHECKPOINT, LOG, "results.json", "teacher.safetensors"]
    assert load(teacher / "teacher.safetensors").config == TINY
    found = read_results(teacher / "results.json")
    assert found["config"]["training"]["accumulate"] == 2
    assert found["data"]["split"] == "validation"
    assert len(found["models"]["teacher"]["metrics"]["video_fg_ari"]) == 2

    more = ["--beta", "0.25", "--learning-rate", "0.003"]
    more += ["--decoded", "--workers", "2"] if preset == "paper" else []
    assert main(train_command("student", student, *more, preset=preset)) == 0
    assert "trained here: minimovi_a" in capsys.readouterr().out
    log = pd.read_csv(student / LOG)
    assert log["match"].notna().all()
    settings = read_results(student / "results.json")["config"]["training"]
    assert (settings["match_weight"], settings["learning_rate"]) == (0.25, 0.003)
    assert log["validation_video_fg_ari"].notna().sum() == 2
    before = (student / "student.safetensors").read_bytes()
    file = ["--teacher", str(teacher / "teacher.safetensors")]
    assert main(train_command("student", student, *file, *more, preset=preset)) == 0
    assert (student / "student.safetensors").read_bytes() == before
    assert bool(list((tmp_path / "cache").glob("frames/*/*.npy"))) == (preset == "paper")


def test_dry_run_says_what_it_takes_and_touches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    command = ["train", "student", "--dataset", "movi_e", "--output", str(tmp_path / "run")]
    assert main([*command, "--dry-run", "--accumulate", "4", "--precision", "bf16"]) == 0
    said = capsys.readouterr().out
    assert "25,631,617, of which 3,575,425 train; teacher 91,533,313" in said
    assert "64 clips of 4 frames, 64 a process in 4 micro-batches" in said
    assert "hours for 300,000 steps (estimate" in said
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_is_not_refused_for_what_its_student_could_not_do(capsys):
    command = ["train", "teacher", "--dataset", "minimovi_a", "--preset", "mini", "--accumulate"]
    assert main([*command, "3", "--output", "nowhere", "--dry-run"]) == 0  # 4 clips of a student
    assert "12 clips of 6 frames" in capsys.readouterr().out
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["student", "--teacher", "nowhere.ckpt"], "'nowhere.ckpt' is neither a file nor a model"),
        (["teacher", "--teacher", "x.ckpt"], "x.ckpt means nothing to a teacher"),
        (["teacher", "--beta", "1"], "--beta 1.0 means nothing to a teacher"),
        (["student", "--beta", "-1"], "match_weight"),
        (["teacher"], "movi_e"),  # whose files are not here
        (["teacher", "--steps", "9", "--accumulate", "5"], "64 cannot be cut into accumulate 5"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(
    command, complaint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path / "data"))
    output = tmp_path / "run"
    assert main(["train", *command, "--dataset", "movi_e", "--output", str(output)]) == 1
    found = capsys.readouterr()
    assert complaint in found.err
    assert found.err.count("\n") == 1
    assert not output.exists()


def test_student_without_a_teacher_is_told_how_to_get_one(tiny, tmp_path, capsys):
    assert main(train_command("student", tmp_path / "run")) == 1
    assert "python -m slotmatch train teacher" in capsys.readouterr().err


def test_unknown_role_is_named():
    with pytest.raises(ValueError, match=r"role must be one of .*'student'\), got 'guide'"):
        runs.foresee("guide", experiments.select("smoke", "minimovi_a"))


@pytest.mark.slow
def test_command_runs_in_two_processes_as_in_one(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment |= {"SLOTMATCH_CACHE": str(tmp_path / "cache")}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    launch += ["--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes"]
    for n_processes in (1, 2):
        output = tmp_path / str(n_processes)
        command = train_command(
            "teacher", output, "--gather-negatives", "--steps", "3", preset="smoke"
        )
        several = ["--multi_gpu"] if n_processes > 1 else []
        start = [*launch, str(n_processes), *several, "-m", "slotmatch"]
        for _ in range(2):  # the second time it only loads what is there
            done = subprocess.run(
                [*start, *command], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("weights: ") == 1  # of two processes one speaks
    one, two = (pd.read_csv(tmp_path / n / LOG) for n in "12")
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
    # Each of the two scored its part of the validation videos.
    for name in ("validation_video_fg_ari", "validation_video_mbo"):
        np.testing.assert_allclose(two[name], one[name], atol=0.02)
    assert read_results(tmp_path / "2" / "results.json")["processes"] == 2
