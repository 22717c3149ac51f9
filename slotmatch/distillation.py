"""Losses that distillers add to, or put in the place of, the cosine of slots.

SlotMatch claims that it needs none of them. Each is a pure function of a student's and a teacher's
tensors and gives a scalar; no gradient reaches the teacher. Distillation of features and of
reconstructions needs no function of its own: it is ``feature_reconstruction`` of the teacher's by
way of a linear projection, which trains with the student and is thrown away.

Shapes: B clips, T frames, K slots, D slot width, P patches.
"""

import torch.nn.functional as F
from torch import Tensor

from slotmatch.precision import full_precision

__all__ = [
    "mask_divergence",
    "slot_error",
    "slot_length_error",
    "slot_relations",
    "slot_relations_over_time",
]

SMALLEST = 1e-8
"""Of a mask, before its logarithm."""


def slot_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of slots (B,T,K,D): directions and lengths at once.

    Equation ``eq-split`` of the book splits it into both.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _pair("slots", student, teacher)
    return F.mse_loss(student, teacher)


def slot_length_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the lengths of slots (B,T,K,D), over D: what cosine leaves free.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _pair("slots", student, teacher)
    return F.mse_loss(student.norm(dim=-1), teacher.norm(dim=-1)) / student.shape[-1]


def mask_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over patches of KL(teacher || student) of masks (B,T,K,P), which sum to one over slots.

    In nats. For attention's masks or the decoder's.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _pair("masks", student, teacher)
    logs = student.clamp(min=SMALLEST).log()
    own = teacher.clamp(min=SMALLEST).log()
    return (teacher * (own - logs)).sum(-2).mean()


def slot_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines of each two slots of a frame, of slots (B,T,K,D).

    A rotation that all slots share goes unseen (relational distillation, Park et al., 2019).

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _pair("slots", student, teacher)
    return F.mse_loss(_cosines(student, student), _cosines(teacher, teacher))


def slot_relations_over_time(student: Tensor, teacher: Tensor) -> Tensor:
    """`slotmatch.distillation.slot_relations` between each slot and those of the next frame.

    Raises:
        ValueError: the shapes differ, or there is one frame alone.
    """
    student, teacher = _pair("slots", student, teacher)
    if student.shape[1] < 2:
        raise ValueError("relations over time need clips of two frames or more, got one")
    return F.mse_loss(
        _cosines(student[:, :-1], student[:, 1:]), _cosines(teacher[:, :-1], teacher[:, 1:])
    )


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """Of each slot (B,T,K,D) with each: (B,T,K,K)."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).mT


def _pair(what: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the student's precision or better, the teacher's without gradient."""
    if student.shape != teacher.shape or student.ndim != 4:
        raise ValueError(
            f"{what} of student and teacher must have one shape of four axes, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student = full_precision(student)
    return student, teacher.detach().to(student.dtype)
