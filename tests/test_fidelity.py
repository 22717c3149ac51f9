"""How closely a student follows its teacher, on slots and label maps made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from tiny import tiny

from slotmatch.backbones import build
from slotmatch.data import Clip
from slotmatch.data.disturbances import disturb
from slotmatch.evaluation import (
    Followed,
    constancy,
    constant_slots,
    cosine_over_time,
    disturbed_clips,
    evaluate,
    feature_change,
    fidelity,
    follow,
    score_against,
    score_on,
)
from slotmatch.model import VideoSlotModel


def drawn(seed: int = 0, n_slots: int = 3) -> Followed:
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randn(4, n_slots, 8, generator=generator)
    labels = np.random.default_rng(seed).integers(0, n_slots, (4, 6, 6))
    return Followed(slots, labels)


def clip_of(labels: np.ndarray) -> Clip:
    return Clip(np.zeros((*labels.shape, 3), np.uint8), labels.astype(np.int32), "made/by/hand")


def clips_of_noise(n: int = 2) -> list[Clip]:
    rng = np.random.default_rng(1)
    return [
        Clip(
            rng.integers(0, 256, (3, 32, 32, 3), np.uint8),
            rng.integers(0, 3, (3, 32, 32), np.int32),
            f"noise/{i}",
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def model() -> VideoSlotModel:
    return VideoSlotModel(tiny("embedded_small", 32, n_slots=3), seed=1).eval()


def test_a_student_that_is_its_teacher_is_faithful() -> None:
    own = drawn()
    scores = fidelity([own], [own], [clip_of(own.labels)])
    assert {name: value for name, (value,) in scores.items()} == pytest.approx(
        dict.fromkeys(scores, 1.0)
    )


def test_cosines_are_of_slots_of_equal_index_frame_by_frame() -> None:
    teacher = drawn()
    slots = 3 * teacher.slots  # lengths are free
    slots[-1, 1:] *= -1  # two of three
    labels = teacher.labels.copy()
    labels[0, :3] += 10
    truth = np.zeros_like(labels)
    truth[0, 2:4] = 1  # half of the objects' pixels lie where the maps differ
    scores = fidelity([Followed(slots, labels)], [teacher], [clip_of(truth)])
    assert scores["slot_cosine"] == pytest.approx([(3 - 1 / 3) / 4])
    assert scores["slot_cosine_first"] == pytest.approx([1])
    assert scores["slot_cosine_last"] == pytest.approx([-1 / 3])
    assert scores["same_slot"] == pytest.approx([1 - 18 / 144])
    assert scores["same_slot_objects"] == pytest.approx([0.5])
    expected = adjusted_rand_score(teacher.labels.ravel(), labels.ravel())  # slot 0 counts
    assert scores["map_ari"] == pytest.approx([expected])
    over_time = cosine_over_time([Followed(slots, labels), teacher], [teacher, teacher])
    assert over_time == pytest.approx([1, 1, 1, 1 / 3])


def test_another_order_of_slots_is_seen_under_the_best_permutation_alone() -> None:
    teacher = drawn()
    order = [2, 0, 1]
    slots = teacher.slots[:, order]
    slots[0] = teacher.slots[0]  # one order holds for the whole video
    student = Followed(slots, np.argsort(order)[teacher.labels])
    scores = fidelity([student], [teacher], [clip_of(teacher.labels)])
    apart = F.cosine_similarity(slots[0], slots[0, order], dim=-1).mean().item()
    assert scores["slot_cosine_permuted"] == pytest.approx([(apart + 3) / 4])
    assert scores["slot_cosine"][0] < 0.5
    assert scores["same_slot"] == [0]
    assert scores["map_ari"] == pytest.approx([1])


def test_the_constant_is_the_best_one_for_other_videos() -> None:
    others = [drawn(1), drawn(2)]
    constant = constant_slots(others)

    def mean_cosine(guess: torch.Tensor) -> float:
        return float(
            torch.cat([F.cosine_similarity(guess, o.slots, dim=-1) for o in others]).mean()
        )

    assert constant.norm(dim=-1).numpy() == pytest.approx(1)
    for seed in range(20):
        nearby = constant + 0.1 * torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
        assert mean_cosine(constant) > mean_cosine(nearby)
    own, other = drawn(3), drawn(4)
    (found,) = fidelity([own], [other], [clip_of(own.labels)], constant=constant)["constant_cosine"]
    assert found == pytest.approx(F.cosine_similarity(constant, other.slots, dim=-1).mean().item())


def test_a_video_without_objects_has_no_agreement_on_them() -> None:
    own = drawn()
    scores = fidelity([own], [own], [clip_of(np.zeros_like(own.labels))])
    assert np.isnan(scores["same_slot_objects"]).all()


def test_videos_have_to_be_the_same() -> None:
    own = drawn()
    with pytest.raises(ValueError, match="got 1 videos of the student, 2 of the teacher and 1"):
        fidelity([own], [own, own], [clip_of(own.labels)])


def test_models_are_followed_as_they_are_scored(model: VideoSlotModel) -> None:
    clips = clips_of_noise()
    followed = follow(model, clips)
    output = model(torch.from_numpy(clips[1].video).permute(0, 3, 1, 2)[None] / 255)
    torch.testing.assert_close(followed[1].slots, output.slots[0], rtol=1e-4, atol=1e-5)
    in_use = evaluate(model, clips, progress=False)["slots_in_use"]
    assert in_use == [np.mean([len(np.unique(f)) for f in own.labels]) for own in followed]


def test_constancy_is_fidelity_to_oneself(model: VideoSlotModel) -> None:
    clips = clips_of_noise()
    scores = constancy(model, clips)["noise"]
    changed = follow(model, disturbed_clips(clips, "noise"))
    assert scores == fidelity(changed, follow(model, clips), clips)
    assert 0.5 < np.mean(scores["slot_cosine"]) < 1


def test_validation_is_scores_and_fidelity_of_one_pass(model: VideoSlotModel) -> None:
    clips, student = clips_of_noise(), VideoSlotModel(model.config, seed=2)
    clips[1].labels[:] = 0  # so that its agreement on objects does not count
    teacher = follow(model, clips)
    found = score_against(teacher, clips)(student)
    agreement = fidelity(follow(student, clips), teacher, clips)
    assert found.pop("same_slot_objects") == agreement["same_slot_objects"][0]
    for name in ("slot_cosine", "slot_cosine_last"):
        assert found.pop(name) == pytest.approx(np.mean(agreement[name]))
    assert found == score_on(clips)(student)


# Disturbances


def test_disturbances_do_what_they_say() -> None:
    frames = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    frames = (255 * frames).round() / 255
    brighter = disturb(frames, "brightness")
    torch.testing.assert_close(brighter, 1.05 * frames, rtol=0, atol=0.5001 / 255)
    torch.testing.assert_close(255 * brighter, (255 * brighter).round())
    assert disturb(torch.ones(1, 3, 8, 8), "brightness").max() == 1
    (clip,) = clips_of_noise(1)
    (bright,) = disturbed_clips([clip], "brightness")
    assert np.abs(bright.video - np.minimum(1.05 * clip.video, 255)).max() < 0.5001
    shifted = disturb(frames, "shift")
    torch.testing.assert_close(shifted[..., 1:], frames[..., :-1])
    torch.testing.assert_close(shifted[..., 0], frames[..., 0])
    flat = torch.full((1, 3, 8, 8), 100 / 255)
    torch.testing.assert_close(disturb(flat, "half_size"), flat)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * torch.ones(1, 3, 8, 8)
    assert (disturb(checks, "half_size")[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.01


def test_noise_has_its_size_and_its_seed() -> None:
    frames = torch.full((4, 3, 64, 64), 0.5)
    noise = 255 * (disturb(frames, "noise", seed=3) - frames)
    assert noise.std().item() == pytest.approx(2, rel=0.05)
    assert torch.equal(disturb(frames, "noise", seed=3), disturb(frames, "noise", seed=3))
    assert not torch.equal(disturb(frames, "noise", seed=3), disturb(frames, "noise", seed=4))
    one, other = disturbed_clips(clips_of_noise(1) * 2, "noise")
    assert (one.video != other.video).any()
    with pytest.raises(ValueError, match=r"kind must be one of .*'half_size'.* got 'fog'"):
        disturb(frames, "fog")


def test_feature_change_is_a_share_of_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build("embedded_small", image_size=32)
    # Two channels that are the frame's mean brightness, one of them far off the other's values.
    monkeypatch.setattr(
        backbone,
        "patch_features",
        lambda images: images.mean((1, 2, 3))[:, None, None] + torch.tensor([0.0, 1.0]),
    )
    levels = np.array([50, 150], np.uint8)
    video = np.ones((2, 32, 32, 3), np.uint8) * levels[:, None, None, None]
    clip = replace(clips_of_noise()[0], video=video, labels=np.zeros((2, 32, 32), np.int32))
    found = feature_change(backbone, [clip])["brightness"]
    change = np.round(1.05 * levels) - levels
    assert found == pytest.approx(np.sqrt(np.mean(change**2)) / 50, rel=0.01)
