"""Which teacher slot a student slot answers to."""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["match_slots", "reorder_slots"]


def match_slots(student: Tensor, teacher: Tensor) -> Tensor:
    """One-to-one assignment of teacher to student slots with the largest total cosine: long (B,K).

    Student slot ``k`` of clip ``b`` answers to teacher slot ``result[b, k]``. Both inputs are
    (B,T,K,D), or (B,K,D) for single frames. The cosines are summed over a clip's frames first, so
    one assignment holds for the whole clip: a student that swaps objects half-way is not excused.
    Solved exactly (Hungarian method). No gradient passes.

    Raises:
        ValueError: the shapes differ, are of another rank, or the slots hold NaN or infinity.
    """
    if student.shape != teacher.shape or student.ndim not in (3, 4):
        raise ValueError(
            "student and teacher slots must have one shape, (B,T,K,D) or (B,K,D), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student, teacher = (F.normalize(slots.detach(), dim=-1) for slots in (student, teacher))
    if student.ndim == 3:
        student, teacher = student[:, None], teacher[:, None]
    cosines = torch.einsum("btkd,btjd->bkj", student, teacher)
    if not cosines.isfinite().all():
        raise ValueError("slots to be matched hold NaN or infinity")
    columns = [
        linear_sum_assignment(clip, maximize=True)[1] for clip in cosines.cpu().double().numpy()
    ]
    return torch.stack([torch.from_numpy(column) for column in columns]).to(student.device)


def reorder_slots(slots: Tensor, assignment: Tensor) -> Tensor:
    """Slots (B,T,K,D) or (B,K,D) in the order of an assignment (B,K), one order for a clip.

    Raises:
        ValueError: the assignment does not fit the slots.
    """
    if slots.ndim not in (3, 4) or assignment.shape != (slots.shape[0], slots.shape[-2]):
        raise ValueError(
            "expected slots (B,T,K,D) or (B,K,D) and an assignment (B,K), "
            f"got {tuple(slots.shape)} and {tuple(assignment.shape)}"
        )
    index = assignment[:, :, None] if slots.ndim == 3 else assignment[:, None, :, None]
    return slots.gather(-2, index.expand_as(slots))
