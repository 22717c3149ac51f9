import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny

from slotmatch.backbones import Features
from slotmatch.losses import slot_contrast, slot_match
from slotmatch.model import INHERITABLE, VideoSlotModel, start_from
from slotmatch.training import TrainConfig, loading, loop, recipe, train
from slotmatch.training.checkpoint import CHECKPOINT
from slotmatch.training.recipe import learning_rate_factor
from slotmatch.training.step import find_slots, slotmatch_step
from slotmatch.training.student import Student

MODEL = tiny(n_slots=3)
EMBEDDED = replace(MODEL, backbone="embedded", image_size=32, feature_shape=None)
QUICK = TrainConfig(
    steps=12,
    batch_size=3,
    clip_length=3,
    learning_rate=3e-3,
    warmup_steps=2,
    attention_weight=0.5,
    attention_until=0.5,
    patch_fraction=0.5,
    log_every=2,
    validate_every=4,
    checkpoint_every=4,
)


def make_features(seed: int = 0, width: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((5, 6, 9, width)).astype(np.float16)


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    update = loop._Run.update

    def dying(self, batch):
        if batch.step == step:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(loop._Run, "update", dying)


def assert_same_run(first: VideoSlotModel, second: VideoSlotModel, *logs: pd.DataFrame) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    pd.testing.assert_frame_equal(*(log.drop(columns="seconds") for log in logs), check_exact=True)


@pytest.mark.parametrize("total", ["100k", "300k"])
def test_learning_rate_equals_the_reference(oracles, total):
    steps = int(total[:-1]) * 1000
    factors = [
        learning_rate_factor(int(step), warmup_steps=2500, steps=steps)
        for step in oracles["lr.steps"]
    ]
    np.testing.assert_allclose(factors, oracles[f"lr.{total}.factor"], rtol=1e-12)


def test_without_warm_up_the_rate_starts_at_its_largest():
    assert learning_rate_factor(0, warmup_steps=0, steps=10) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of 1 or more, got 0"),
        ({"steps": 1e4}, "steps must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"warmup_steps": 12}, "warmup_steps 12 must be less than steps 12.*warmup_steps=1"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number, got nan"),
        ({"grad_clip": 0}, "grad_clip must be a positive number or None, got 0"),
        ({"contrast_weight": -1}, "contrast_weight must be a number of 0 or more, got -1"),
        ({"patch_fraction": 0.0}, "patch_fraction must be a number above 0, up to 1"),
        ({"flip_probability": 1.5}, "flip_probability must be a number from 0 to 1"),
        ({"correspondence": "name"}, "correspondence must be one of .*index.*hungarian.*'name'"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of .*bf16.*'fp8'"),
        ({"accumulate": 0}, "accumulate must be a whole number of 1 or more, got 0"),
        ({"accumulate": 2}, "batch_size 3 cannot be cut into accumulate 2 equal parts"),
        (
            {"batch_size": 4, "accumulate": 2, "doublings": (0.3, 0.6)},
            "batch_size 4 cannot be cut into accumulate 2 equal parts, halved 2 times before",
        ),
        ({"doublings": (0.0, 0.5)}, "shares of the steps between 0 and 1, in order"),
        ({"doublings": (0.5, 0.2)}, "shares of the steps between 0 and 1, in order"),
        ({"gather_negatives": "all"}, "gather_negatives must be True or False, got 'all'"),
        ({"clip_length": 1}, "set clip_length to 2 or more, or contrast_weight to 0"),
        (
            {"reconstruction_weight": 0, "contrast_weight": 0, "attention_weight": 0},
            "nothing to learn",
        ),
    ],
)
def test_config_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)


def test_attention_weight_fades_to_nothing_at_its_share_of_the_steps():
    config = replace(QUICK, steps=100, attention_weight=0.8, attention_until=0.5)
    fading = [recipe.term_weights(config, step)["attention"] for step in (0, 25, 50, 99)]
    assert fading == pytest.approx([0.8, 0.4, 0, 0])
    constant = replace(config, attention_until=0.0)
    assert recipe.term_weights(constant, 99)["attention"] == 0.8


def test_loss_is_the_sum_worked_out_by_hand(tmp_path):
    features = make_features()[:, :3]  # clips as long as the videos: all of them are seen
    student, teacher = VideoSlotModel(MODEL, seed=1), VideoSlotModel(MODEL, seed=2)
    first = copy.deepcopy(student)
    config = TrainConfig(
        steps=1,
        warmup_steps=0,
        batch_size=5,
        clip_length=3,
        learning_rate=1e-30,  # leaves the head as it was
        contrast_weight=0.25,
        temperature=0.5,
        match_weight=2.0,
        correspondence="shifted",
        attention_weight=0.5,
        patch_fraction=0.5,  # of the reconstruction
    )
    row = train(student, features, config, output=tmp_path, teacher=teacher).iloc[0]

    target = torch.from_numpy(features).float()
    patches = loading.draw(config, 0, 5, 9).patches
    said = first.forward_features(target, patches=patches)
    wanted = teacher.forward_features(target, decode=False).slots.detach()
    head = torch.load(tmp_path / CHECKPOINT, weights_only=True)["weights"]
    by_head = said.slots @ head["heads.attention.weight"].T + head["heads.attention.bias"]
    by_attention = torch.einsum("btkp,btkf->btpf", said.attention, by_head)
    unit = F.normalize(said.slots, dim=-1)
    cosines = torch.einsum("btkd,ctjd->tbkcj", unit[:, :-1], unit[:, 1:]).reshape(2, 15, 15)
    back = (cosines / 0.5).softmax(dim=1).diagonal(dim1=1, dim2=2)  # over the earlier frame's
    terms = {
        "reconstruction": ((said.reconstruction - target[:, :, patches]) ** 2).mean(),
        "contrast": -back.log().mean(),
        "match": 1 - (unit * F.normalize(wanted.roll(-1, 2), dim=-1)).sum(-1).mean(),
        "attention": ((by_attention - target) ** 2).mean(),
    }
    loss = sum(w * terms[name] for name, w in zip(terms, (1, 0.25, 2, 0.5), strict=True))
    loss.backward()
    # The head's gradient is part of the norm: (2 / elements) sum of error times attended slot.
    error = 2 * (by_attention - target) / target.numel()
    attended = torch.einsum("btkp,btkd->btpd", said.attention, said.slots)
    of_head = torch.einsum("btpf,btpd->fd", 0.5 * error, attended), 0.5 * error.sum((0, 1, 2))
    squares = [p.grad.square().sum() for p in first.parameters()]
    squares += [gradient.square().sum() for gradient in of_head]
    for name, term in terms.items():
        assert row[name] == pytest.approx(term.item(), rel=1e-5), name
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(sum(squares).sqrt().item(), rel=1e-4)


def test_clipped_gradients_move_the_weights_less(tmp_path):
    model = VideoSlotModel(MODEL)
    before = copy.deepcopy(model.state_dict())
    config = replace(QUICK, steps=2, warmup_steps=0, grad_clip=1e-12)  # beside Adam's 1e-8
    log = train(model, make_features(), config, output=tmp_path)
    assert log["grad_norm"].min() > 1e-3  # before clipping
    moved = [(now - before[name]).abs().max() for name, now in model.state_dict().items()]
    assert 0 < max(moved) < 1e-3 * config.learning_rate


def test_terms_without_weight_are_not_computed(tmp_path):
    config = replace(QUICK, contrast_weight=0.0, attention_weight=0.0)
    teacher = VideoSlotModel(MODEL, seed=2)
    log = train(VideoSlotModel(MODEL), make_features(), config, output=tmp_path, teacher=teacher)
    assert log[["contrast", "match", "attention"]].isna().all(axis=None)
    np.testing.assert_array_equal(log["loss"], log["reconstruction"])


@pytest.mark.parametrize("step", [3, 4, 11])
def test_killed_run_goes_on_to_the_same_result(step, tmp_path, monkeypatch):
    config = replace(QUICK, match_weight=1.0, correspondence="hungarian")
    sampled = replace(MODEL, initial_slots="sampled")

    def run(folder: str, model: VideoSlotModel) -> pd.DataFrame:
        return train(
            model,
            make_features(),
            config,
            output=tmp_path / folder,
            teacher=VideoSlotModel(sampled, seed=7),
            validate=lambda model: {"score": model.initial_slots.mean.sum().item()},
        )

    whole, killed, resumed = (VideoSlotModel(sampled) for _ in range(3))
    log = run("whole", whole)
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            run("killed", killed)
    rest = run("killed", resumed)
    assert_same_run(whole, resumed, log, rest)
    assert rest["seconds"].is_monotonic_increasing  # they add up


def test_finished_run_only_loads_its_result(tmp_path, monkeypatch):
    trained, loaded = VideoSlotModel(MODEL), VideoSlotModel(MODEL)
    log = train(trained, make_features(), QUICK, output=tmp_path)
    kill_at(monkeypatch, 0)
    again = train(loaded, make_features(), QUICK, output=tmp_path)
    assert_same_run(trained, loaded, log, again)
    assert not loaded.training


def test_validation_leaves_the_training_alone(tmp_path):
    def validate(model):
        assert not model.training
        torch.rand(3), np.random.rand(3)  # noqa: NPY002
        return {"video_fg_ari": 0.5}

    quiet, noisy = VideoSlotModel(MODEL), VideoSlotModel(MODEL)
    train(quiet, make_features(), QUICK, output=tmp_path / "quiet")
    often = replace(QUICK, validate_every=3)
    log = train(noisy, make_features(), often, output=tmp_path / "noisy", validate=validate)
    assert all(map(torch.equal, quiet.state_dict().values(), noisy.state_dict().values()))
    validated = log.dropna(subset="validation_video_fg_ari")
    assert list(validated["step"]) == [3, 6, 9, 12]


def test_log_has_its_columns_and_steps(tmp_path):
    config = replace(QUICK, decay=0.1)
    log = train(VideoSlotModel(MODEL), make_features(), config, output=tmp_path)
    assert list(log.columns) == list(loop.LOG_COLUMNS)
    assert list(log["step"]) == [1, 2, 4, 6, 8, 10, 12]
    assert list(log["learning_rate"][:3]) == pytest.approx([0, 1.5e-3, 3e-3 * 0.1**0.1])
    assert log["attention"].notna().sum() == 4  # faded after half the steps
    assert log["seconds"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": replace(QUICK, learning_rate=1.0)},
            r"config.learning_rate is 1.0 here and 0.003",
        ),
        ({"model": replace(MODEL, slot_dim=16)}, r"model.slot_dim is 16 here and 8 there"),
        ({"clips": make_features(1)}, r"clips.sha256 is"),
        ({"clips": make_features()[:4]}, r"clips.shape is \[4, 6, 9, 6\] here and \[5, 6, 9, 6\]"),
        ({"seed": 1}, r"model.weights is"),
        ({"teacher": VideoSlotModel(MODEL, seed=9)}, r"teacher.weights is"),
    ],
)
def test_checkpoint_of_another_run_is_refused(change, message, tmp_path):
    def run(*, config=QUICK, model=MODEL, seed=0, clips=None, teacher=None):
        clips = make_features() if clips is None else clips
        config = replace(config, match_weight=1.0 if teacher else 0.0)
        train(VideoSlotModel(model, seed=seed), clips, config, output=tmp_path, teacher=teacher)

    run(teacher=VideoSlotModel(MODEL, seed=8) if "teacher" in change else None)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match=f"{CHECKPOINT} belongs to another run.*{message}"):
        run(**change)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_log_lies_beside_the_checkpoint_and_what_a_kill_left_is_removed(tmp_path):
    left = tmp_path / ".writing-killed" / CHECKPOINT
    left.parent.mkdir()
    left.write_bytes(b"half")
    log = train(VideoSlotModel(MODEL), make_features(), QUICK, output=tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / loop.LOG), log)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, loop.LOG]


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match=f"{CHECKPOINT} is damaged.*delete it"):
        train(VideoSlotModel(MODEL), make_features(), QUICK, output=tmp_path)


def test_a_checkpoint_that_lacks_a_weight_is_not_taken_for_whole(tmp_path):
    train(VideoSlotModel(MODEL), make_features(), QUICK, output=tmp_path)
    found = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    found["weights"]["model.more"] = found["weights"].pop("model.decoder.positions")
    torch.save(found, tmp_path / CHECKPOINT)
    fits = r"missing model.decoder.positions; unexpected model.more; delete it"
    with pytest.raises(ValueError, match=fits):
        train(VideoSlotModel(MODEL), make_features(), QUICK, output=tmp_path)


def test_chance_is_a_function_of_seed_and_step():
    config = replace(QUICK, batch_size=4, flip_probability=0.5)

    def draws(seed):
        drawn = [loading.draw(replace(config, seed=seed), step, 5, 9) for step in range(1000)]
        return [np.concatenate([d.videos, d.places, d.flipped, d.patches]) for d in drawn]

    first, again, other = draws(0), draws(0), draws(1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[1:], other[:-1])
    assert loading.draw(replace(config, patch_fraction=1.0), 0, 5, 9).patches is None
    videos, places, flipped, patches = np.split(np.array(first), [4, 8, 12], axis=1)
    assert all(len(set(row)) == 4 for row in videos)
    assert all(len(set(row)) == 4 for row in patches)  # half of 9, rounded
    assert np.bincount(videos.astype(int).ravel()) / 1000 == pytest.approx(4 / 5, abs=0.06)
    assert np.bincount(patches.astype(int).ravel()) / 1000 == pytest.approx(4 / 9, abs=0.06)
    assert flipped.mean() == pytest.approx(0.5, abs=0.03)
    assert np.histogram(places, 4, (0, 1))[0] / places.size == pytest.approx(0.25, abs=0.03)


def test_sampled_slots_follow_the_seed_of_their_step():
    model, clips = VideoSlotModel(replace(MODEL, initial_slots="sampled")), torch.zeros(2, 1, 9, 6)
    one, same, other = (
        loading.Batch(0, clips, clips, None, seed, first=0, size=2).initial_state(model).predicted
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_shuffled_slots_have_an_order_for_each_clip_however_the_batch_is_cut():
    clips = torch.zeros(4, 1, 9, 6)
    whole = loading.Batch(0, clips, clips, None, seed=3, first=0, size=4)
    orders = whole.correspondence("shuffled", 5)
    assert orders.sort(dim=1).values.tolist() == 4 * [[0, 1, 2, 3, 4]]
    assert len({tuple(order) for order in orders.tolist()}) > 1
    parts = [part.correspondence("shuffled", 5) for part in whole.micro_batches(2)]
    assert torch.equal(torch.cat(parts), orders)
    assert not torch.equal(replace(whole, seed=4).correspondence("shuffled", 5), orders)
    assert whole.correspondence("hungarian", 5) == "hungarian"


def test_a_shuffled_teacher_is_what_the_step_pairs_with():
    config = TrainConfig(
        steps=1, warmup_steps=0, match_weight=1.0, reconstruction_weight=0.0, contrast_weight=0.0
    )
    student, teacher = VideoSlotModel(MODEL, seed=1), VideoSlotModel(MODEL, seed=2)
    clips = torch.from_numpy(make_features()[:2, :3]).float()
    batch = loading.Batch(0, clips, clips, None, seed=3, first=0, size=2)

    def loss(pairing):
        trained = Student(student, config, teacher)
        settings = replace(config, correspondence=pairing)
        return slotmatch_step(trained, teacher, batch, settings).loss

    own, theirs = (find_slots(model, clips, batch) for model in (student, teacher))
    orders = batch.correspondence("shuffled", MODEL.n_slots)
    torch.testing.assert_close(
        loss("shuffled"), slot_match(own, theirs, correspondence=orders).detach()
    )
    assert loss("shuffled") != loss("index")


def test_frames_and_features_are_cut_alike():
    lengths = [6, 6, 6]
    clips = [
        SimpleNamespace(id=f"v{i}", video=np.zeros((n, 2, 3, 3), np.uint8))
        for i, n in enumerate(lengths)
    ]
    features = np.zeros((3, 6, 9, 6), np.float16)
    for i, clip in enumerate(clips):
        for t in range(6):
            clip.video[t] = features[i, t] = 10 * i + t
            clip.video[t, :, 0] = 100
    seen = set()
    for step in range(40):
        chance = loading.draw(replace(QUICK, flip_probability=0.5), step, 3, 9)
        share = slice(1, 3)
        array, frames = (
            one.cut(chance, share, 3)
            for one in (loading.FeatureClips(Features(features)), loading.Frames(clips))
        )
        frames = (255 * frames.float()).round()
        assert array.shape == (2, 3, 9, 6)
        assert frames.shape == (2, 3, 3, 2, 3)
        assert torch.equal(array[:, :, 0, 0], frames[:, :, 0, 0, 1].half())
        marked = torch.where(torch.from_numpy(chance.flipped[share]), 2, 0)
        assert all((frames[b, ..., marked[b]] == 100).all() for b in range(2))
        seen |= {int(place) % 10 for place in array[:, 0, 0, 0]}
    assert seen == {0, 1, 2, 3}  # any first frame, the last possible one too


def test_teacher_stays_as_it_was_and_gets_no_gradient(tmp_path):
    teacher = VideoSlotModel(MODEL, seed=5).train()
    teacher.decoder.forward = None  # no term looks at its masks
    before = copy.deepcopy(teacher.state_dict())
    config = replace(QUICK, match_weight=1.0)
    train(VideoSlotModel(MODEL), make_features(), config, output=tmp_path, teacher=teacher)
    assert all(map(torch.equal, before.values(), teacher.state_dict().values()))
    assert all(weight.grad is None for weight in teacher.parameters())
    assert not teacher.training


def test_student_learns_its_teachers_slots(tmp_path):
    config = replace(
        QUICK,
        steps=100,
        match_weight=1.0,
        reconstruction_weight=0.0,
        contrast_weight=0.0,
        attention_weight=0.0,
        grad_clip=None,
    )
    teacher = VideoSlotModel(MODEL, seed=5)
    wider = replace(MODEL, feature_shape=(9, 7))
    student = VideoSlotModel(wider)
    start_from(student, teacher)
    assert torch.equal(student.initial_slots.slots, teacher.initial_slots.slots)
    own, wanted = make_features(width=7), make_features()
    own[..., :6] = wanted
    log = train(student, own, config, output=tmp_path, teacher=teacher, teacher_clips=wanted)
    assert log["match"].iloc[-1] < 0.3 * log["match"].iloc[0]


def test_student_takes_over_the_parts_named_and_no_others():
    student = VideoSlotModel(replace(MODEL, feature_shape=(9, 4)), seed=1)
    teacher = VideoSlotModel(MODEL, seed=2)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    start_from(student, teacher, parts=("slot_attention", "decoder"))
    theirs = teacher.state_dict()
    for name, now in student.state_dict().items():
        if name.startswith("decoder.layers.1."):  # of the last layer only the row that gives masks
            assert torch.equal(now[:-1], before[name][:-1])
            assert torch.equal(now[-1], theirs[name][-1])
        else:
            inherited = name.startswith(("slot_attention.", "decoder."))
            assert torch.equal(now, theirs[name] if inherited else before[name])


def test_student_with_all_parts_and_the_same_transform_has_the_slots_and_masks_of_its_teacher():
    student, teacher = VideoSlotModel(MODEL, seed=1), VideoSlotModel(MODEL, seed=2)
    start_from(student, teacher, parts=tuple(INHERITABLE))
    student.transform.load_state_dict(teacher.transform.state_dict())
    features = torch.from_numpy(make_features()[:2])
    own, theirs = student.forward_features(features), teacher.forward_features(features)
    assert torch.equal(own.slots, theirs.slots)
    assert torch.equal(own.masks, theirs.masks)
    assert not torch.equal(own.reconstruction, theirs.reconstruction)


@pytest.mark.parametrize(
    ("parts", "change", "message"),
    [
        (
            ("initial_slots",),
            {"initial_slots": "sampled"},
            r"initial_slots .*same initial_slots, n_slots, slot_dim, got .*sampled",
        ),
        (("initial_slots", "decoder"), {"decoder_hidden": 16}, r"decoder .*, got .*8.* and .*16"),
        (("predictor",), {"n_heads": 4}, r"predictor .*slot_dim, n_heads, predictor_logits"),
        (("transform",), {}, r"\['transform'\] are unknown: choose from initial_slots, slot_att"),
    ],
)
def test_parts_that_differ_are_not_taken_over(parts, change, message):
    student, teacher = VideoSlotModel(MODEL, seed=1), VideoSlotModel(replace(MODEL, **change))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        start_from(student, teacher, parts=parts)
    assert all(torch.equal(now, before[name]) for name, now in student.state_dict().items())


def test_number_that_is_not_finite_stops_the_run(tmp_path):
    def poison(model):
        with torch.no_grad():
            model.decoder.positions[0] = math.inf
        return {}

    model = VideoSlotModel(MODEL)
    config = replace(QUICK, validate_every=3, checkpoint_every=2, patch_fraction=1.0)
    message = rf"step 4 is not finite: loss nan, reconstruction nan.*of step 2, is .*{CHECKPOINT}"
    with pytest.raises(RuntimeError, match=message):
        train(model, make_features(), config, output=tmp_path, validate=poison)
    assert model.slot_attention.to_q.weight.isfinite().all()
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2


def test_failure_that_is_noticed_late_leaves_the_weights_before_it(tmp_path, monkeypatch):
    features = make_features()
    features[3, :, 0] = np.nan
    config = replace(QUICK, log_every=100, batch_size=1, validate_every=100, checkpoint_every=100)
    first = next(s for s in range(12) if 3 in loading.draw(config, s, 5, 9).videos)
    failed, stopped = VideoSlotModel(MODEL), VideoSlotModel(MODEL)
    with pytest.raises(RuntimeError, match=rf"step {first + 1} is not finite: loss nan"):
        train(failed, features, config, output=tmp_path / "failed")
    kill_at(monkeypatch, first)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, features, config, output=tmp_path / "stopped")
    assert all(map(torch.equal, failed.state_dict().values(), stopped.state_dict().values()))


def test_features_of_another_backbone_are_refused(tmp_path):
    model = VideoSlotModel(EMBEDDED, pretrained=False)
    shape = (5, 6, model.config.n_patches, model.config.feature_dim)
    own, others = (
        Features(np.zeros(shape, np.float16), encoder)
        for encoder in (model.backbone.fingerprint(), "another")
    )
    own_clips, mixed_up = loading.FeatureClips(own), loading.FeatureClips(others)
    own_clips.check("clips", model, QUICK)
    assert own_clips.identity != mixed_up.identity
    with pytest.raises(ValueError, match=r"clips were made by another backbone.*embedded at 32 px"):
        train(model, others, QUICK, output=tmp_path)


@pytest.mark.parametrize("correspondence", ["index", "hungarian"])
def test_run_that_fails_at_once_says_that_there_is_no_checkpoint(correspondence, tmp_path):
    model, teacher = VideoSlotModel(MODEL), VideoSlotModel(MODEL)
    torch.nn.init.constant_(model.initial_slots.slots, math.nan)
    config = replace(QUICK, match_weight=1.0, correspondence=correspondence)
    with pytest.raises(RuntimeError, match=r"step 1 is not finite.*no checkpoint was written"):
        train(model, make_features(), config, output=tmp_path, teacher=teacher)


def test_slots_that_are_all_the_same_are_reported_once(tmp_path):
    model = VideoSlotModel(MODEL)
    with torch.no_grad():
        model.initial_slots.slots[:] = model.initial_slots.slots[0]
    config = replace(QUICK, validate_every=1)
    with pytest.warns(RuntimeWarning, match="all slots are the same at step 3") as caught:
        log = train(model, make_features(), config, output=tmp_path)  # after the warm-up
    assert len(caught) == 1
    assert log["slot_cosine"].iloc[0] == pytest.approx(1)
    assert log["attention_entropy"].iloc[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"flip_probability": 0.5}, {}, "flip_probability 0.5 needs videos"),
        ({"match_weight": 1.0}, {}, "match_weight 1.0 needs a teacher"),
        ({"clip_length": 7}, {}, "has 6 frames, fewer than clip_length 7"),
        pytest.param(
            {"mixed_precision": "fp16"},
            {},
            '"fp16" needs a GPU',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU"),
        ),
        ({}, {"clips": make_features(width=7)}, r"features \(N,T,9,6\).*got \(5, 6, 9, 7\)"),
        ({}, {"clips": []}, "at least one video"),
        (
            {},
            {"clips": [SimpleNamespace(id="v", video=np.zeros((6, 8, 8, 3), np.uint8))]},
            "no backbone",
        ),
        (
            {"match_weight": 1.0},
            {"teacher": VideoSlotModel(replace(MODEL, n_slots=4))},
            "same n_slots, got 3 and 4",
        ),
        (
            {"match_weight": 1.0},
            {"teacher": VideoSlotModel(replace(MODEL, feature_shape=(9, 7)))},
            "pass the teacher's own as teacher_clips",
        ),
        (
            {"match_weight": 1.0},
            {"teacher": VideoSlotModel(MODEL), "teacher_clips": make_features()[:, :4]},
            r"same videos, got .* \(5, 6\) and \(5, 4\)",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_training(
    config, arguments, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        train(
            VideoSlotModel(MODEL),
            arguments.pop("clips", make_features()),
            replace(QUICK, **config),
            output=tmp_path,
            **arguments,
        )
    assert not (tmp_path / CHECKPOINT).exists()


def test_videos_train_as_their_features_do(tmp_path):
    rng = np.random.default_rng(0)
    clips = [
        SimpleNamespace(id=f"v{i}", video=rng.integers(0, 256, (4, 32, 32, 3), np.uint8))
        for i in range(3)
    ]
    by_video, by_feature = (VideoSlotModel(EMBEDDED, pretrained=False) for _ in range(2))
    by_feature.backbone.load_state_dict(by_video.backbone.state_dict())
    video = torch.from_numpy(np.stack([clip.video for clip in clips])).movedim(-1, 2)
    features = by_video.encode(video / 255).numpy()
    before = copy.deepcopy(by_video.backbone.state_dict())
    config = replace(QUICK, steps=4, batch_size=2)
    log = train(by_video, clips, config, output=tmp_path / "video")
    other = train(by_feature, features, config, output=tmp_path / "features")
    names = ["loss", "reconstruction", "contrast", "attention", "grad_norm"]
    np.testing.assert_allclose(log[names], other[names], rtol=1e-4)
    assert all(map(torch.equal, before.values(), by_video.backbone.state_dict().values()))
    stored = torch.load(tmp_path / "video" / CHECKPOINT, weights_only=True)["weights"]
    assert not [name for name in stored if "backbone" in name]


def test_reduced_precision_keeps_full_precision_weights(tmp_path):
    logs = []
    for precision in ("no", "bf16"):
        model = VideoSlotModel(MODEL)
        config = replace(QUICK, mixed_precision=precision)
        logs.append(train(model, make_features(), config, output=tmp_path / precision))
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    exact, reduced = logs
    assert reduced["loss"].iloc[0] == pytest.approx(exact["loss"].iloc[0], rel=0.02)
    assert reduced["loss"].iloc[0] != exact["loss"].iloc[0]
    assert reduced["loss"].iloc[-1] < reduced["loss"].iloc[0]


def test_bar_shows_loss_score_and_time_left(tmp_path, capsys):
    train(
        VideoSlotModel(MODEL),
        make_features(),
        QUICK,
        output=tmp_path,
        validate=lambda model: {"video_fg_ari": 0.25},
        progress=True,
    )
    shown = capsys.readouterr().err
    assert "12/12 [00:" in shown
    assert "FG-ARI=0.250" in shown
    assert "loss=" in shown


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import MODEL, QUICK, make_features
from slotmatch.model import VideoSlotModel
from slotmatch.training import train
for name, changes in {runs!r}.items():
    teacher = VideoSlotModel(replace(MODEL, initial_slots="sampled"), seed=2).double()
    train(
        VideoSlotModel(MODEL).double(),
        make_features(),
        replace(QUICK, **changes),
        output=Path(sys.argv[1]) / name,
        teacher=teacher,
    )
"""


def write_script(folder: Path, runs: dict[str, dict[str, object]]) -> Path:
    path = folder / "run.py"
    path.write_text(SCRIPT.format(tests=str(Path(__file__).parent), runs=runs))
    return path


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / CHECKPOINT, weights_only=True)["weights"]


@pytest.mark.slow
def test_process_killed_outright_at_any_moment_goes_on_to_the_same_weights(tmp_path):
    # Most of the time goes into writing, so that most kills come in the middle of it.
    script = write_script(tmp_path, {"run": {"steps": 250, "checkpoint_every": 1}})
    command = [sys.executable, str(script)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    killed = tmp_path / "killed" / "run"
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen([*command, str(killed.parent)])
        checkpoint = killed / CHECKPOINT
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < torch.load(killed / CHECKPOINT, weights_only=True)["step"] < 250
    subprocess.run([*command, str(killed.parent)], check=True)
    whole, resumed = final_weights(tmp_path / "whole" / "run"), final_weights(killed)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sorted(path.name for path in killed.iterdir()) == [CHECKPOINT, loop.LOG]


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path):
    features = make_features()[:4]
    everything = replace(QUICK, batch_size=4, match_weight=1.0, grad_clip=0.05, temperature=0.3)
    logs, weights = [], []
    for parts in (1, 2, 4):
        model = VideoSlotModel(replace(MODEL, initial_slots="sampled")).double()
        teacher = VideoSlotModel(replace(MODEL, initial_slots="sampled"), seed=2).double()
        config = replace(everything, accumulate=parts, correspondence="hungarian")
        logs.append(train(model, features, config, output=tmp_path / str(parts), teacher=teacher))
        weights.append(final_weights(tmp_path / str(parts)))
    for log, other in zip(logs[1:], weights[1:], strict=True):
        pd.testing.assert_frame_equal(
            log.drop(columns="seconds"), logs[0].drop(columns="seconds"), rtol=1e-9, atol=1e-12
        )
        for name, weight in weights[0].items():
            torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-9, msg=name)


def test_contrast_of_parts_would_be_another_number():
    slots = torch.randn(4, 3, 3, 8, generator=torch.Generator().manual_seed(0))
    halves = (slot_contrast(slots[:2]) + slot_contrast(slots[2:])) / 2
    assert halves < 0.9 * slot_contrast(slots)  # fewer negatives


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    whole = {"batch_size": 4, "match_weight": 1.0, "log_every": 1}
    runs = {
        "no contrast": whole | {"contrast_weight": 0.0},
        "gathered": whole | {"gather_negatives": True},
        "gathered, in parts": whole | {"gather_negatives": True, "accumulate": 2},
        "own": whole,
    }
    script = write_script(tmp_path, runs)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    alone = [sys.executable, str(script), str(tmp_path / "one")]
    subprocess.run(alone, check=True, env=environment)
    # What starts several processes, GPUs or not; with --cpu accelerate starts a single one.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no"]
    command = [*launch, "--dynamo_backend", "no", str(script), str(tmp_path / "two")]
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, check=True, env=environment, timeout=900)
    content = torch.load(tmp_path / "two" / "own" / CHECKPOINT, weights_only=True)
    assert json.loads(content["run"])["processes"] == 2
    for name in list(runs)[:3]:
        one, two = (tmp_path / n / name for n in ("one", "two"))
        logs = [pd.read_csv(run / loop.LOG).drop(columns="seconds") for run in (one, two)]
        for column in ("loss", *recipe.TERMS, "grad_norm"):
            np.testing.assert_allclose(logs[1][column], logs[0][column], rtol=1e-6, err_msg=name)
        for key, weight in final_weights(one).items():
            torch.testing.assert_close(
                final_weights(two)[key], weight, rtol=0, atol=1e-6, msg=f"{name}: {key}"
            )
    # Negatives of the own process only: the contrast is the mean of what each half has by itself.
    config = replace(QUICK, **runs["own"])
    chance = loading.draw(config, 0, 5, 9)
    clips = loading.FeatureClips(Features(make_features()))
    batch = clips.cut(chance, slice(0, 4), config.clip_length)
    slots = VideoSlotModel(MODEL).double().forward_features(batch, decode=False).slots
    halves = (slot_contrast(slots[:2]) + slot_contrast(slots[2:])) / 2
    log = pd.read_csv(tmp_path / "two" / "own" / loop.LOG)
    assert log["contrast"][0] == pytest.approx(halves.item(), rel=1e-6)
    assert log["contrast"][0] != pytest.approx(slot_contrast(slots).item(), rel=1e-2)
