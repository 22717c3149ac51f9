"""The three terms of SlotMatch, L = L_rec + alpha L_contrast + beta L_match, as pure functions.

The first two are those of the teacher, SlotContrast (with weights 1 and 0.5); the third distils.
`temporal_similarity` is VideoSAUR's, which SlotMatch is compared with.
"""

import warnings

import torch
import torch.nn.functional as F
from einops import rearrange
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from slotmatch.precision import full_precision
from slotmatch.settings import Axis, Correspondence, check_choice

__all__ = [
    "feature_reconstruction",
    "match_slots",
    "reorder_slots",
    "slot_contrast",
    "slot_match",
    "temporal_similarity",
]


def feature_reconstruction(reconstruction: Tensor, features: Tensor) -> Tensor:
    """Mean squared error of two tensors of one shape, usually (B,T,P,F): a scalar.

    Equation ``eq-rec`` of the book. The features are a fixed target: no gradient reaches them.
    They are not normalised, so values of different backbones cannot be compared.

    Raises:
        ValueError: the shapes differ, or a tensor is empty or holds no floating-point numbers.
    """
    _require_same_shape("reconstruction", reconstruction, "features", features)
    reconstruction = full_precision(reconstruction)
    return F.mse_loss(reconstruction, features.detach().to(reconstruction.dtype))


def slot_contrast(
    slots: Tensor,
    *,
    temperature: float = 0.1,
    batch_contrast: bool = True,
    axis: Axis = "earlier",
) -> Tensor:
    """Cross-entropy of finding each slot (B,T,K,D) again in the neighbouring frame: a scalar.

    Equation ``eq-contrast`` of the book. For consecutive frames, S[i,j] = <z_i(t), z_j(t+1)> /
    temperature of slots scaled to unit length, and the loss is the mean of -log softmax(S) on
    the diagonal. Positive: the same index in the same clip. Negatives: the clip's other slots
    and, with ``batch_contrast``, those of all other clips, so that the batch size is part of
    the loss.

    ``axis`` says which frame's slots the softmax runs over: the ``"earlier"`` (what SlotContrast's
    code computes: a slot looks back), the ``"later"`` (how its text reads: a slot looks ahead), or
    the mean of both, ``"symmetric"``. One frame alone has no pair: the result is a zero with zero
    gradient, and a warning.

    Raises:
        ValueError: slots that are empty, of another rank or not floating-point, a temperature that
            is not positive, an unknown axis.
    """
    if slots.ndim != 4 or 0 in slots.shape or not slots.is_floating_point():
        raise ValueError(
            "expected floating-point slots (B,T,K,D), "
            f"got {slots.dtype} of shape {tuple(slots.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    check_choice("axis", axis, Axis)
    if slots.shape[1] < 2:
        warnings.warn("slot_contrast needs two frames, got one: the loss is zero", stacklevel=2)
        return slots[:, 1:].sum()
    unit = F.normalize(full_precision(slots), dim=-1)
    pattern = "b t k d -> t (b k) d" if batch_contrast else "b t k d -> (b t) k d"
    earlier, later = rearrange(unit[:, :-1], pattern), rearrange(unit[:, 1:], pattern)
    similarity = earlier @ rearrange(later, "n j d -> n d j") / temperature
    positive = similarity.diagonal(dim1=-2, dim2=-1)
    looking_back = similarity.logsumexp(dim=-2) - positive
    looking_ahead = similarity.logsumexp(dim=-1) - positive
    if axis == "earlier":
        return looking_back.mean()
    if axis == "later":
        return looking_ahead.mean()
    return (looking_back.mean() + looking_ahead.mean()) / 2


def slot_match(
    student: Tensor, teacher: Tensor, *, correspondence: Correspondence | Tensor = "index"
) -> Tensor:
    """One minus the mean cosine of corresponding slots, both (B,T,K,D): a scalar in [0, 2].

    Equation ``eq-match`` of the book. ``"index"`` pairs slots of equal index, which presumes
    that the student starts from the teacher's initial slots or learns their order;
    ``"hungarian"`` pairs them anew for each clip (``match_slots``), so that the order of the
    teacher's slots does not matter, ``"hungarian_per_frame"`` for each frame, so that slots may
    change objects; ``"shifted"`` pairs each with the next, which is another numbering, the same for
    all clips. A tensor is the caller's own assignment (B,K), as ``match_slots`` returns it. Lengths
    of slots are free. No gradient reaches the teacher.

    Raises:
        ValueError: the shapes differ or are of another rank, empty or not floating-point slots, or
            an unknown correspondence.
    """
    _require_same_shape("student slots", student, "teacher slots", teacher)
    if student.ndim != 4:
        raise ValueError(f"expected slots (B,T,K,D), got {tuple(student.shape)}")
    if not isinstance(correspondence, Tensor):
        check_choice("correspondence", correspondence, Correspondence)
    student = full_precision(student)
    teacher = teacher.detach().to(student.dtype)
    if isinstance(correspondence, Tensor):
        teacher = reorder_slots(teacher, correspondence)
    elif correspondence == "hungarian":
        teacher = reorder_slots(teacher, match_slots(student, teacher))
    elif correspondence == "hungarian_per_frame":
        student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
        teacher = reorder_slots(teacher, match_slots(student, teacher))
    elif correspondence == "shifted":
        teacher = teacher.roll(-1, dims=2)
    return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()


def temporal_similarity(
    prediction: Tensor,
    features: Tensor,
    *,
    patches: Tensor | None = None,
    temperature: float = 0.075,
) -> Tensor:
    """Cross-entropy of where what a patch shows is in the next frame, VideoSAUR's loss: a scalar.

    Equation ``eq-similarity`` of the book (Zadaianchuk et al., 2023). The target of a patch is the
    softmax, over the P patches of the next frame, of the cosines of its features (B,T,P,F) with
    theirs, divided by the temperature, which is that of VideoSAUR's released settings for MOVi.
    Patches of negative cosine have no share in it; if all are negative, all have the same. The loss
    is never less than the target's entropy. ``prediction`` (B,T,P,P) holds logits, of the last
    frame too, which has no next one and is left out. With ``patches``, a vector of indices, it is
    of these alone, (B,T,N,P), and an unbiased estimate of the whole: rows do not depend on each
    other. No gradient reaches the features.

    Raises:
        ValueError: shapes that do not belong together, not floating-point, fewer than two frames,
            or a temperature that is not positive.
    """
    if not (prediction.is_floating_point() and features.is_floating_point()):
        raise ValueError(
            "prediction and features must be floating-point, "
            f"got {prediction.dtype} and {features.dtype}"
        )
    n_rows = features.shape[-2] if patches is None else len(patches)
    if features.ndim != 4 or prediction.shape != (*features.shape[:2], n_rows, features.shape[2]):
        raise ValueError(
            f"expected features (B,T,P,F) and a prediction (B,T,{n_rows},P) of their patches, "
            f"got {tuple(features.shape)} and {tuple(prediction.shape)}"
        )
    if features.shape[1] < 2:
        raise ValueError("temporal similarities need clips of two frames or more, got one")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logits = full_precision(prediction[:, :-1])
    unit = F.normalize(features.detach().to(logits.dtype), dim=-1)
    now = unit[:, :-1] if patches is None else unit[:, :-1, patches]
    cosines = now @ unit[:, 1:].mT
    unlike = cosines < 0
    similarity = cosines.masked_fill(unlike, -torch.inf) / temperature
    similarity = similarity.masked_fill(unlike.all(dim=-1, keepdim=True), 0.0)
    return F.cross_entropy(logits.flatten(0, 2), similarity.softmax(dim=-1).flatten(0, 2))


def _require_same_shape(first: str, a: Tensor, second: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{first} and {second} must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if 0 in a.shape:
        raise ValueError(f"{first} and {second} are empty: {tuple(a.shape)} has no mean")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(
            f"{first} and {second} must be floating-point, got {a.dtype} and {b.dtype}"
        )


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
