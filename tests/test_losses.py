"""The terms against the references' numbers, hand-worked values and their invariances."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tiny import normal
from torch import Tensor
from torch.testing import assert_close

from slotmatch.losses import (
    feature_reconstruction,
    slot_contrast,
    slot_match,
    temporal_similarity,
)

Oracles = Mapping[str, np.ndarray]


def oracle(oracles: Oracles, key: str) -> Tensor:
    return torch.from_numpy(oracles[key])


def expect(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=1e-10, atol=1e-13)


# Feature reconstruction


def test_reconstruction_gives_the_reference_loss_and_gradient(oracles: Oracles) -> None:
    prediction = oracle(oracles, "featrec.b2t4.pred").requires_grad_()
    target = oracle(oracles, "featrec.b2t4.target").requires_grad_()
    loss = feature_reconstruction(prediction, target)
    expect(loss, oracle(oracles, "featrec.b2t4.loss"))
    loss.backward()
    expect(prediction.grad, oracle(oracles, "featrec.b2t4.grad"))
    assert target.grad is None


def test_reconstruction_is_the_mean_over_all_elements() -> None:
    assert feature_reconstruction(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0])) == 4.5


def test_reconstruction_takes_half_precision_targets_from_a_cache() -> None:
    features = normal(2, 3, 4, 5).half()
    assert feature_reconstruction(features.float(), features) == 0


@pytest.mark.parametrize(
    "loss",
    [
        feature_reconstruction,
        slot_match,
        lambda slots, _: slot_contrast(slots),
        lambda features, _: temporal_similarity(features[..., :4], features),
    ],
)
def test_half_precision_is_summed_in_single(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    one, other = (normal(2, 3, 4, 8, seed=seed).half() for seed in (0, 1))
    assert_close(loss(one, other), loss(one.float(), other.float()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        (torch.zeros(2, 3), r"one shape, got \(3, 2\) and \(2, 3\)"),
        (torch.zeros(3, 2, dtype=torch.long), r"floating-point, got torch\.float32 and torch\.int"),
    ],
)
def test_reconstruction_refuses_what_would_broadcast(features: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        feature_reconstruction(torch.zeros(3, 2), features)


# Slot contrast


@pytest.mark.parametrize("case", ["random", "batch1"])
@pytest.mark.parametrize("batch", ["on", "off"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrast_gives_the_reference_loss_and_gradient(
    oracles: Oracles, case: str, batch: str, temperature: float
) -> None:
    key = f"contrast.{case}.batch_{batch}.temp_{temperature}"
    slots = oracle(oracles, f"contrast.{case}.slots").requires_grad_()
    loss = slot_contrast(slots, temperature=temperature, batch_contrast=batch == "on")
    expect(loss, oracle(oracles, f"{key}.loss"))
    if temperature == 0.1:
        loss.backward()
        expect(slots.grad, oracle(oracles, f"{key}.grad"))


@pytest.mark.parametrize("case", ["random", "batch1"])
@pytest.mark.parametrize("batch", ["on", "off"])
def test_looking_ahead_is_another_loss(oracles: Oracles, case: str, batch: str) -> None:
    slots, on = oracle(oracles, f"contrast.{case}.slots"), batch == "on"
    back, ahead, both = (
        slot_contrast(slots, batch_contrast=on, axis=axis)
        for axis in ("earlier", "later", "symmetric")
    )
    wrong = oracle(oracles, f"contrast.{case}.batch_{batch}.temp_0.1.not_this")
    expect(ahead, wrong)
    assert (back - wrong).abs() > 1e-3 * wrong
    expect(both, (back + ahead) / 2)


def test_later_is_earlier_of_the_reversed_video() -> None:
    slots = normal(2, 4, 5, 8)
    expect(slot_contrast(slots.flip(1), axis="earlier"), slot_contrast(slots, axis="later"))


def test_contrast_of_two_orthogonal_slots_by_hand() -> None:
    # Slots that stay: the cosine with itself is 1, with the other 0, so every softmax over the
    # earlier frame is e^10 / (e^10 + 1).
    still = torch.eye(2, dtype=torch.float64).expand(1, 3, 2, 2)
    expect(slot_contrast(still), torch.tensor(math.log1p(math.exp(-10)), dtype=torch.float64))
    # Slots that swap at every frame: the positive is the worse one by 10.
    swapped = torch.stack([torch.eye(2), torch.eye(2).flip(0)])[None].double()
    expect(
        slot_contrast(swapped), torch.tensor(10 + math.log1p(math.exp(-10)), dtype=torch.float64)
    )


def test_identical_slots_cost_the_logarithm_of_the_candidates() -> None:
    slots = torch.ones(3, 4, 5, 8, dtype=torch.float64)
    expect(slot_contrast(slots), torch.tensor(math.log(15), dtype=torch.float64))
    alone = slot_contrast(slots, batch_contrast=False)
    expect(alone, torch.tensor(math.log(5), dtype=torch.float64))


def test_contrast_depends_on_directions_only_and_on_no_order() -> None:
    slots = normal(3, 4, 5, 8)
    loss = slot_contrast(slots)
    expect(slot_contrast(slots * normal(3, 4, 5, 1, seed=1).exp()), loss)
    expect(slot_contrast(slots[:, :, [3, 0, 4, 1, 2]]), loss)
    expect(slot_contrast(slots[[2, 0, 1]]), loss)


def test_other_clips_count_only_with_batch_contrast() -> None:
    slots = normal(3, 4, 5, 8)
    clips = [slot_contrast(clip[None]) for clip in slots]
    expect(slot_contrast(slots, batch_contrast=False), torch.stack(clips).mean())
    assert slot_contrast(slots) > torch.stack(clips).mean()


@pytest.mark.parametrize("loss", [feature_reconstruction, slot_match])
def test_nothing_has_no_mean(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"are empty: \(0, 4, 5, 8\) has no mean"):
        loss(torch.zeros(0, 4, 5, 8), torch.zeros(0, 4, 5, 8))


def test_contrast_of_one_frame_is_zero_with_zero_gradient() -> None:
    slots = normal(3, 1, 5, 8).requires_grad_()
    with pytest.warns(UserWarning, match="needs two frames, got one"):
        loss = slot_contrast(slots)
    assert loss == 0
    loss.backward()
    assert_close(slots.grad, torch.zeros_like(slots))


@pytest.mark.parametrize(
    ("slots", "options", "complaint"),
    [
        (torch.zeros(4, 5, 8), {}, r"\(B,T,K,D\), got torch\.float32 of shape \(4, 5, 8\)"),
        (torch.zeros(1, 4, 5, 8, dtype=torch.int64), {}, r"got torch\.int64"),
        (torch.zeros(0, 4, 5, 8), {}, r"of shape \(0, 4, 5, 8\)"),
        (torch.zeros(1, 4, 5, 8), {"temperature": 0.0}, "positive, got 0.0"),
        (torch.zeros(1, 4, 5, 8), {"temperature": math.nan}, "positive, got nan"),
        (torch.zeros(1, 4, 5, 8), {"axis": "both"}, r"'symmetric'\), got 'both'"),
    ],
)
def test_contrast_names_what_does_not_fit(
    slots: Tensor, options: dict[str, float | str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        slot_contrast(slots, **options)


# SlotMatch


def test_slot_match_is_one_minus_the_mean_cosine(oracles: Oracles) -> None:
    loss = slot_match(oracle(oracles, "slotkd.student"), oracle(oracles, "slotkd.teacher"))
    expect(loss, oracle(oracles, "slotkd.one_minus_mean_cosine"))


@pytest.mark.parametrize("correspondence", ["index", "hungarian"])
def test_slot_match_ranges_from_zero_to_two_whatever_the_lengths(correspondence: str) -> None:
    slots = normal(2, 3, 1, 8)
    for factor, expected in [(2.5, 0.0), (-0.1, 2.0)]:
        loss = slot_match(slots, factor * slots, correspondence=correspondence)
        assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_only_hungarian_is_blind_to_the_order_of_the_teachers_slots() -> None:
    student, teacher = normal(2, 3, 5, 8), normal(2, 3, 5, 8, seed=1)
    order = [3, 0, 4, 1, 2]
    matched = slot_match(student, teacher, correspondence="hungarian")
    expect(slot_match(student, teacher[:, :, order], correspondence="hungarian"), matched)
    by_index = slot_match(student, teacher)
    assert (slot_match(student, teacher[:, :, order]) - by_index).abs() > 1e-3
    assert matched < by_index
    permuted = slot_match(student[:, :, order], student, correspondence="hungarian")
    assert permuted.item() == pytest.approx(0, abs=1e-12)


def test_one_order_holds_for_a_whole_clip() -> None:
    """A student that swaps two objects half-way is excused frame by frame alone."""
    teacher = torch.eye(2).expand(1, 2, 2, 2)
    student = torch.stack([torch.eye(2), torch.eye(2).flip(0)])[None]
    assert slot_match(student, teacher, correspondence="hungarian") == 0.5
    assert slot_match(student, teacher, correspondence="hungarian_per_frame") == 0


def test_shifted_pairs_each_slot_with_the_next() -> None:
    slots = normal(2, 3, 5, 8)
    student = slots[:, :, [1, 2, 3, 4, 0]]
    shifted = slot_match(student, slots, correspondence="shifted")
    assert shifted.item() == pytest.approx(0, abs=1e-12)


def test_an_assignment_of_the_callers_pairs_each_clip_by_itself() -> None:
    slots = normal(2, 3, 3, 8)
    orders = torch.tensor([[2, 0, 1], [0, 2, 1]])
    student = torch.stack([slots[0, :, [2, 0, 1]], slots[1, :, [0, 2, 1]]])
    assert slot_match(student, slots, correspondence=orders).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"an assignment \(B,K\)"):
        slot_match(student, slots, correspondence=orders[0])


@pytest.mark.parametrize("correspondence", ["index", "hungarian"])
def test_slot_match_moves_the_student_and_never_the_teacher(correspondence: str) -> None:
    student = normal(1, 2, 3, 4).requires_grad_()
    teacher = normal(1, 2, 3, 4, seed=1).requires_grad_()
    slot_match(student, teacher, correspondence=correspondence).backward()
    assert teacher.grad is None
    assert student.grad is not None
    # Cosine has no radial slope: the pull is at right angles to each slot.
    assert_close((student.grad * student).sum(-1), torch.zeros(1, 2, 3, dtype=torch.float64))
    assert student.grad.norm(dim=-1).min() > 0
    assert torch.autograd.gradcheck(
        lambda slots: slot_match(slots, teacher, correspondence=correspondence), student
    )


@pytest.mark.parametrize(
    ("student", "teacher", "correspondence", "complaint"),
    [
        ((1, 2, 3, 4), (1, 2, 4, 4), "index", r"got \(1, 2, 3, 4\) and \(1, 2, 4, 4\)"),
        ((2, 3, 4), (2, 3, 4), "index", r"expected slots \(B,T,K,D\), got \(2, 3, 4\)"),
        ((1, 2, 3, 4), (1, 2, 3, 4), "greedy", r"'shifted'\), got 'greedy'"),
    ],
)
def test_slot_match_names_what_does_not_fit(
    student: tuple[int, ...], teacher: tuple[int, ...], correspondence: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        slot_match(torch.ones(student), torch.ones(teacher), correspondence=correspondence)


# Temporal similarity


def of_frames(*frames: list[list[float]]) -> Tensor:
    """Features (1,T,P,F)."""
    return torch.tensor([frames], dtype=torch.float64)


def test_temporal_similarity_gives_the_reference_loss_and_target(oracles: Oracles) -> None:
    features = oracle(oracles, "timesim.keys").requires_grad_()
    prediction = oracle(oracles, "timesim.pred_logits").requires_grad_()
    loss = temporal_similarity(prediction, features, temperature=0.15)
    expect(loss, oracle(oracles, "timesim.loss"))
    loss.backward()
    assert features.grad is None
    # The gradient is prediction minus target, over the number of rows; the last frame has none.
    target = oracle(oracles, "timesim.target")
    assert prediction.grad is not None
    pull = target.shape[:2].numel() * prediction.grad
    expect((prediction.softmax(-1) - pull)[:, :-1].flatten(1, 2), target)
    assert not prediction.grad[:, -1].any()


def test_temporal_similarity_of_two_patches_by_hand() -> None:
    """They change places, so that each is like the other's patch of the next frame, and unlike
    its own: shares of e^(1 / temperature) to 1, since a cosine of 0 counts."""
    swap = of_frames([[2, 0], [0, 1]], [[0, 1], [3, 0]])
    prediction = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    prediction[0, 0, 0] = torch.tensor([0.0, 2.0])
    for temperature, options in ((1.0, {"temperature": 1.0}), (0.075, {})):
        share = 1 / (1 + math.exp(-1 / temperature))
        first = math.log(1 + math.exp(2)) - share * 2
        loss = temporal_similarity(prediction, swap, **options)
        assert loss.item() == pytest.approx((first + math.log(2)) / 2)


def test_unlike_patches_have_no_share_unless_all_are_unlike() -> None:
    features = of_frames([[1, 0], [0, 1]], [[1, 0.1], [-1, -0.1]])
    sure = torch.tensor([50.0, -50.0], dtype=torch.float64).expand(1, 2, 2, 2)
    assert temporal_similarity(sure, features).item() == pytest.approx(0, abs=1e-12)
    away = of_frames([[1, 0], [1, 0]], [[-1, 0], [-1, -5]])
    even = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    assert temporal_similarity(even, away).item() == pytest.approx(math.log(2))
    assert temporal_similarity(sure, away).item() == pytest.approx(50)


def test_patches_of_a_still_video_stay_where_they_are() -> None:
    still = torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    stays, cold = 100 * still, 0.02
    assert temporal_similarity(stays, still, temperature=cold).item() == pytest.approx(0, abs=1e-9)
    assert temporal_similarity(stays.roll(1, dims=-1), still, temperature=cold) > 50


def test_temporal_similarity_follows_patches_that_are_renumbered() -> None:
    features, prediction = normal(2, 3, 5, 6), normal(2, 3, 5, 5, seed=1)
    order = [3, 0, 4, 1, 2]
    whole = temporal_similarity(prediction, features)
    renumbered = prediction[:, :, order][..., order]
    expect(temporal_similarity(renumbered, features[:, :, order]), whole)
    assert (temporal_similarity(prediction[:, :, order], features) - whole).abs() > 1e-3


def test_some_patches_estimate_the_whole() -> None:
    features, prediction = normal(2, 3, 6, 4), normal(2, 3, 6, 6, seed=1)
    parts = [
        temporal_similarity(prediction[:, :, rows], features, patches=rows)
        for rows in torch.tensor([[5, 0], [2, 4], [3, 1]])
    ]
    expect(torch.stack(parts).mean(), temporal_similarity(prediction, features))


def test_the_gradient_of_temporal_similarity_is_right() -> None:
    features = normal(1, 3, 4, 5)
    prediction = normal(1, 3, 4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda own: temporal_similarity(own, features), prediction)


def test_temporal_similarity_takes_half_precision_features_and_shows_what_is_not_finite() -> None:
    features, prediction = normal(1, 2, 4, 5).half(), normal(1, 2, 4, 4).float()
    exact = temporal_similarity(prediction, features.float())
    assert_close(temporal_similarity(prediction, features), exact)
    features[0, 1, 2] = torch.nan
    assert temporal_similarity(prediction, features).isnan()


@pytest.mark.parametrize(
    ("prediction", "features", "options", "complaint"),
    [
        ((1, 2, 3, 4), (1, 2, 4, 5), {}, r"\(B,T,4,P\) .* got \(1, 2, 4, 5\) and \(1, 2, 3, 4\)"),
        ((1, 2, 4, 4), (1, 2, 4, 5), {"patches": torch.tensor([1, 2])}, r"\(B,T,2,P\)"),
        ((2, 4, 4), (2, 4, 5), {}, r"expected features \(B,T,P,F\)"),
        ((1, 1, 4, 4), (1, 1, 4, 5), {}, "two frames or more, got one"),
        ((1, 2, 4, 4), (1, 2, 4, 5), {"temperature": 0.0}, "positive, got 0.0"),
        ((1, 2, 4, 4), (1, 2, 4, 5), {"temperature": math.nan}, "positive, got nan"),
    ],
)
def test_temporal_similarity_names_what_does_not_fit(
    prediction: tuple[int, ...],
    features: tuple[int, ...],
    options: dict[str, Any],
    complaint: str,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        temporal_similarity(torch.ones(prediction), torch.ones(features), **options)
    with pytest.raises(ValueError, match=r"floating-point, got torch\.float32 and torch\.int64"):
        temporal_similarity(torch.ones(prediction), torch.ones(features).long(), **options)
