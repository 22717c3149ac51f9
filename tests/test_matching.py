"""The assignment of slots: right by hand, best by trying all, stable under what must not matter."""

from itertools import permutations

import pytest
import torch
from tiny import normal
from torch.nn.functional import cosine_similarity

from slotmatch.losses import match_slots, reorder_slots


def test_each_student_slot_finds_its_copy() -> None:
    teacher = normal(1, 3, 4, 8)
    order = torch.tensor([2, 0, 3, 1])  # student slot 0 is a copy of teacher slot 2
    student = teacher[:, :, order]
    assert match_slots(student, teacher).tolist() == [order.tolist()]
    assert torch.equal(reorder_slots(teacher, match_slots(student, teacher)), student)


def test_the_total_cosine_is_the_largest_of_all_assignments() -> None:
    student, teacher = normal(3, 4, 5, 8), normal(3, 4, 5, 8, seed=1)
    found = match_slots(student, teacher)
    for clip in range(3):
        totals = {
            order: cosine_similarity(student[clip], teacher[clip][:, list(order)], dim=-1).sum()
            for order in permutations(range(5))
        }
        assert tuple(found[clip].tolist()) == max(totals, key=totals.__getitem__)


def test_greedy_would_be_wrong() -> None:
    # Student 0 likes teacher 0 best (cosine 1 against 0.96); so does student 1 (0.96 against 0.28).
    # Taking the best pair first gives 1 + 0.28, the other way round gives 0.96 + 0.96.
    teacher = torch.tensor([[1.0, 0.0], [0.96, 0.28]])
    student = torch.tensor([[1.0, 0.0], [0.96, -0.28]])
    cosines = student @ teacher.T
    assert cosines[0, 0] + cosines[1, 1] < cosines[0, 1] + cosines[1, 0]
    assert match_slots(student[None], teacher[None]).tolist() == [[1, 0]]


def test_clips_are_matched_apart_and_lengths_do_not_count() -> None:
    teacher = normal(2, 3, 4, 8)
    orders = torch.tensor([[2, 0, 3, 1], [0, 1, 3, 2]])
    student = torch.stack([teacher[b][:, orders[b]] for b in range(2)])
    scaled = student * normal(2, 3, 4, 1, seed=1).exp()
    assert torch.equal(match_slots(scaled, teacher), orders)


def test_single_frames_go_without_their_axis() -> None:
    student, teacher = normal(2, 4, 8), normal(2, 4, 8, seed=1)
    found = match_slots(student, teacher)
    assert torch.equal(found, match_slots(student[:, None], teacher[:, None]))
    moved = reorder_slots(teacher, found)
    assert torch.equal(moved, reorder_slots(teacher[:, None], found)[:, 0])
    assert torch.equal(moved[1, 2], teacher[1, found[1, 2]])


def test_gradients_pass_the_reordering_and_not_the_matching() -> None:
    teacher = normal(1, 2, 3, 4).requires_grad_()
    found = match_slots(teacher, normal(1, 2, 3, 4, seed=1))
    assert not found.requires_grad
    reorder_slots(teacher, found).sum().backward()
    assert torch.equal(teacher.grad, torch.ones_like(teacher))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_slots_that_are_not_finite_are_refused(value: float) -> None:
    slots = normal(1, 2, 3, 4)
    broken = slots.clone()
    broken[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        match_slots(broken, slots)


def test_wrong_shapes_are_named() -> None:
    slots = normal(2, 3, 4, 8)
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 8\) and \(2, 3, 5, 8\)"):
        match_slots(slots, normal(2, 3, 5, 8))
    with pytest.raises(ValueError, match=r"got \(4, 8\) and \(4, 8\)"):
        match_slots(slots[0, 0], slots[0, 0])
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 8\) and \(2, 3\)"):
        reorder_slots(slots, torch.zeros(2, 3, dtype=torch.long))
