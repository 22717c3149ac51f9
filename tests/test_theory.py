"""The statements of the theory page, on numbers: bounds that hold, and where they stop."""

import pytest
import torch
import torch.nn.functional as F
from tiny import normal, tiny
from torch import Tensor, nn
from torch.testing import assert_close

from slotmatch.distillation import mask_divergence, slot_relations, slot_relations_over_time
from slotmatch.losses import slot_match
from slotmatch.model import VideoSlotModel

SIZES = (3, 4, 5, 6)  # b t k d


def decoder(seed: int = 0) -> nn.Module:
    """The MLP decoder of a model with slots of width 6."""
    model = VideoSlotModel(tiny(slot_dim=6), seed=seed).double()
    return model.decoder


def masks_of(decode: nn.Module, slots: Tensor) -> Tensor:
    flat = decode(slots.flatten(0, 1), reconstruct=False)[0]
    return flat.unflatten(0, slots.shape[:2])


def lipschitz(decode: nn.Module) -> float:
    """A bound of every logit's slope: the product of the largest singular values of the layers."""
    layers = list(decode.layers)
    slope = layers[-1].weight[-1].norm()
    for layer in layers[:-1]:
        slope = slope * torch.linalg.matrix_norm(layer.weight, ord=2)
    return slope.item()


def slot_gap(first: Tensor, second: Tensor) -> Tensor:
    """Delta of each frame."""
    return (first - second).square().sum((-1, -2)).sqrt()


@pytest.mark.parametrize("distance", [1e-3, 0.1, 1.0, 10.0])
def test_with_one_decoder_close_slots_have_close_masks(distance: float) -> None:
    decode = decoder()
    teacher = 3 * normal(*SIZES)
    student = teacher + distance * normal(*SIZES, seed=1)
    own, theirs = masks_of(decode, student), masks_of(decode, teacher)
    gap, slope = slot_gap(student, teacher)[..., None], lipschitz(decode)
    assert ((own - theirs).norm(dim=-2) <= slope / 2 * gap).all()
    divergence = (theirs * (theirs.log() - own.log())).sum(-2)
    assert (divergence <= slope**2 / 4 * gap**2 + 1e-12).all()
    assert (own - theirs).abs().max() > 0


def test_the_bounds_of_softmax_are_tight() -> None:
    """Two slots at a tie, moved apart: the largest variance there is."""
    step = 1e-4
    moved = torch.tensor([step, -step], dtype=torch.float64)
    before, after = torch.full((2,), 0.5, dtype=torch.float64), moved.softmax(0)
    assert ((after - before).norm() / moved.norm()).item() == pytest.approx(1 / 2, rel=1e-6)
    divergence = (before * (before / after).log()).sum()
    assert (divergence / moved.square().sum()).item() == pytest.approx(1 / 4, rel=1e-6)


def test_where_slots_agree_masks_have_nothing_to_teach() -> None:
    decode, teacher = decoder(), normal(*SIZES)
    student = teacher.clone().requires_grad_()
    mask_divergence(masks_of(decode, student), masks_of(decode, teacher)).backward()
    assert_close(student.grad, torch.zeros_like(teacher), atol=1e-12, rtol=0)


def test_equal_directions_do_not_make_equal_masks() -> None:
    decode, teacher = decoder(), 3 * normal(*SIZES)
    assert slot_match(2 * teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert mask_divergence(masks_of(decode, 2 * teacher), masks_of(decode, teacher)) > 1e-3


def test_the_pull_is_across_the_slot_and_weaker_on_long_ones() -> None:
    teacher = normal(1, 1, 1, 6)
    pulls = []
    for length in (1.0, 4.0):
        student = (length * F.normalize(normal(1, 1, 1, 6, seed=1), dim=-1)).requires_grad_()
        slot_match(student, teacher).backward()
        assert (student.grad * student).sum().item() == pytest.approx(0, abs=1e-12)
        cosine = F.cosine_similarity(student, teacher, dim=-1)[..., None]
        expected = F.normalize(teacher, dim=-1) - cosine * F.normalize(student, dim=-1)
        assert_close(student.grad, (-expected / length).detach())
        pulls.append(student.grad.norm())
    assert (pulls[0] / pulls[1]).item() == pytest.approx(4)


def test_own_decoders_leave_a_gap_that_slots_do_not_close() -> None:
    own, theirs, teacher = decoder(1), decoder(0), normal(*SIZES)
    student = teacher.clone().requires_grad_()
    assert mask_divergence(masks_of(own, student), masks_of(theirs, teacher)) > 1e-3
    slot_match(student, teacher).backward()
    assert all(weight.grad is None for weight in own.parameters())


@pytest.mark.parametrize("distance", [1e-3, 0.1, 1.0, 10.0])
def test_relations_are_bounded_by_cosine(distance: float) -> None:
    teacher = normal(*SIZES)
    student = teacher + distance * normal(*SIZES, seed=1)
    bound = 8 * slot_match(student, teacher)
    assert slot_relations(student, teacher) <= bound
    ends = slot_match(student[:, 1:], teacher[:, 1:]) + slot_match(student[:, :-1], teacher[:, :-1])
    assert slot_relations_over_time(student, teacher) <= 4 * ends


def test_two_losses_with_one_minimum_are_faster_together() -> None:
    epsilon = 0.01
    curvature = torch.tensor([1.0, epsilon], dtype=torch.float64)
    alone, both = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for _ in range(100):
        alone = alone - curvature * alone
    both = both - (curvature + curvature.flip(0)) * both / (1 + epsilon)
    assert alone[1].item() == pytest.approx((1 - epsilon) ** 100)
    assert_close(both, torch.zeros_like(both), atol=1e-12, rtol=0)
