"""Losses beside the method's own: by hand, what they ignore, and in a training."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import normal, tiny
from torch import Tensor
from torch.testing import assert_close

from slotmatch.distillation import (
    mask_divergence,
    slot_error,
    slot_length_error,
    slot_relations,
    slot_relations_over_time,
)
from slotmatch.losses import slot_match, temporal_similarity
from slotmatch.model import VideoSlotModel
from slotmatch.settings import Added, choices
from slotmatch.training import TrainConfig, train
from slotmatch.training.added import ADDED
from slotmatch.training.student import Student, View

LOSSES = (slot_error, slot_length_error, slot_relations, slot_relations_over_time)


def slots(*vectors: tuple[float, float], frames: int = 1) -> Tensor:
    return torch.tensor(vectors, dtype=torch.float64).expand(1, frames, -1, -1)


def still(n_videos: int, n_frames: int, *shape: int, seed: int = 0) -> Tensor:
    """Features of videos in which nothing moves."""
    return normal(n_videos, 1, *shape, seed=seed).float().repeat(1, n_frames, 1, 1)


def test_each_by_hand() -> None:
    student, teacher = slots((3, 0), (0, 1)), slots((0, 4), (0, 1))
    assert slot_error(student, teacher).item() == pytest.approx((9 + 16) / 4)
    assert slot_length_error(student, teacher).item() == pytest.approx((3 - 4) ** 2 / 2 / 2)
    # The two are at right angles in the student and parallel in the teacher: 2 of 4 cosines differ.
    assert slot_relations(student, teacher).item() == pytest.approx(2 / 4)
    halves = torch.tensor([0.5, 0.5]).view(1, 1, 2, 1)
    sure = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
    assert mask_divergence(halves, sure).item() == pytest.approx(math.log(2))
    lost = -math.log(2) - math.log(1e-8) / 2  # a share of zero counts as this much
    assert mask_divergence(sure, halves).item() == pytest.approx(lost)


def test_the_squared_error_splits_into_lengths_and_cosine() -> None:
    """|s - t|^2 = (|s| - |t|)^2 + 2 |s| |t| (1 - cos), the mean of each over slots and width."""
    student, teacher = normal(2, 3, 4, 8), normal(2, 3, 4, 8, seed=1)
    lengths = student.norm(dim=-1) * teacher.norm(dim=-1)
    angles = 2 * lengths * (1 - F.cosine_similarity(student, teacher, dim=-1)) / 8
    whole = slot_length_error(student, teacher) + angles.mean()
    assert_close(slot_error(student, teacher), whole)


def test_relations_follow_from_cosine_and_not_the_other_way() -> None:
    teacher = normal(2, 3, 4, 8)
    longer = 2 * teacher
    turned = teacher @ torch.linalg.qr(normal(8, 8, seed=2))[0]
    for relations in (slot_relations, slot_relations_over_time):
        assert relations(longer, teacher).item() == pytest.approx(0, abs=1e-12)
        assert relations(turned, teacher).item() == pytest.approx(0, abs=1e-12)
    assert slot_match(longer, teacher).item() == pytest.approx(0, abs=1e-12)
    assert slot_match(turned, teacher).item() > 0.5


def test_relations_over_time_see_slots_that_change_places() -> None:
    teacher = normal(1, 1, 3, 8).expand(1, 2, 3, 8)
    swapped = torch.stack([teacher[:, 0], teacher[:, 1, [1, 0, 2]]], dim=1)
    assert slot_relations_over_time(swapped, teacher) > 0.1
    frame_by_frame = torch.stack([teacher[:, 0], teacher[:, 1]], dim=1)
    assert slot_relations_over_time(frame_by_frame, teacher).item() == pytest.approx(0)


@pytest.mark.parametrize("loss", [*LOSSES, mask_divergence])
def test_it_is_zero_and_flat_at_the_teacher_and_never_moves_it(loss) -> None:
    teacher = normal(2, 3, 4, 8).softmax(-2).requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    found = loss(student, teacher)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-12)
    if loss is not mask_divergence:  # its slope is along the sum over slots, which is one always
        assert_close(student.grad, torch.zeros_like(student))
    other = normal(2, 3, 4, 8, seed=1).softmax(-2).requires_grad_()
    loss(other, teacher).backward()
    assert teacher.grad is None
    assert other.grad is not None
    assert other.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [*LOSSES, mask_divergence])
def test_gradients_are_right(loss) -> None:
    student = normal(1, 2, 3, 4).softmax(-2).requires_grad_()
    assert torch.autograd.gradcheck(lambda own: loss(own, normal(1, 2, 3, 4, seed=1) ** 2), student)


@pytest.mark.parametrize("loss", [*LOSSES, mask_divergence])
def test_half_precision_is_summed_in_single(loss) -> None:
    student, teacher = (normal(2, 3, 4, 8, seed=seed).softmax(-2).half() for seed in (0, 1))
    assert_close(loss(student, teacher), loss(student.float(), teacher.float()), rtol=0, atol=0)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 2, 3, 4\) and \(1, 2, 4, 4\)"):
        slot_error(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"four axes, got \(2, 3, 4\)"):
        slot_error(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="two frames or more"):
        slot_relations_over_time(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4))
    with pytest.raises(ValueError, match=r"an added loss must be one of .*, got 'hope'"):
        TrainConfig(steps=10, warmup_steps=0, added={"hope": 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"correspondence must be one of .*'shuffled'.* got 'x'"):
        TrainConfig(steps=10, warmup_steps=0, correspondence="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="added relations must be a positive number, got 0"):
        TrainConfig(steps=10, warmup_steps=0, added={"relations": 0})


def test_each_looks_at_what_its_name_says() -> None:
    config = TrainConfig(steps=10, warmup_steps=0, added=dict.fromkeys(choices(Added), 1.0))
    teacher = VideoSlotModel(tiny(feature_shape=(9, 5)), seed=1).double()
    student = Student(VideoSlotModel(tiny(), seed=2).double(), config, teacher)
    patches = torch.tensor([7, 0, 5])

    def view(width: int, seed: int) -> View:
        attention, masks = (normal(2, 3, 4, n, seed=seed + n).softmax(2) for n in (9, 3))
        features, similarity = normal(2, 3, 9, width, seed=seed), normal(2, 3, 3, 9, seed=seed)
        slots, some = normal(2, 3, 4, 8, seed=seed), normal(2, 3, 3, width, seed=seed + 1)
        return View(features, patches, slots, attention, masks, some, similarity)

    own, theirs = view(6, 1), view(5, 2)
    by_head = student.heads["features"](student.model.transform(own.features))
    rebuilt = student.heads["reconstructions"](own.reconstruction)
    expected = {
        "slot_error": slot_error(own.slots, theirs.slots),
        "slot_lengths": slot_length_error(own.slots, theirs.slots),
        "attention_masks": mask_divergence(own.attention, theirs.attention),
        "decoder_masks": mask_divergence(own.masks, theirs.masks),
        "features": F.mse_loss(by_head, theirs.features),
        "reconstructions": F.mse_loss(rebuilt, theirs.reconstruction),
        "relations": slot_relations(own.slots, theirs.slots),
        "relations_over_time": slot_relations_over_time(own.slots, theirs.slots),
        "temporal_similarity": temporal_similarity(own.similarity, own.features, patches=patches),
    }
    assert {name: loss(student, own, theirs) for name, loss in ADDED.items()} == expected


@pytest.mark.parametrize("loss", choices(Added))
def test_it_teaches_alone(loss: str, tmp_path: Path) -> None:
    """Every added loss falls in a training that has nothing else, and is in the log."""
    teacher = VideoSlotModel(tiny(feature_shape=(16, 12)), seed=1).eval()
    student = VideoSlotModel(tiny(feature_shape=(16, 8)), seed=2)
    own, theirs = still(6, 4, 16, 8), still(6, 4, 16, 12, seed=1)
    config = TrainConfig(
        steps=60,
        batch_size=6,
        clip_length=4,
        warmup_steps=0,
        learning_rate=1e-2,
        grad_clip=1.0,
        reconstruction_weight=0.0,
        contrast_weight=0.0,
        added={loss: 2.0},  # type: ignore[dict-item]
    )
    log = train(
        student, own, config, output=tmp_path, teacher=teacher, teacher_clips=theirs, progress=False
    )
    assert log.loss.iloc[0] == pytest.approx(2 * log[loss].iloc[0], rel=1e-6)
    assert log[loss].iloc[-1] < 0.9 * log[loss].iloc[0]
    assert log[["match", "contrast", "reconstruction"]].isna().all(axis=None)


def test_videosaurs_loss_needs_no_teacher_and_stays_out_of_the_model(tmp_path: Path) -> None:
    """It falls with a part of the patches, beside a reconstruction, in clips that grow."""
    student = VideoSlotModel(tiny(feature_shape=(16, 8)), seed=2)
    names = {*student.state_dict()}
    config = TrainConfig(
        steps=60,
        batch_size=4,
        doublings=(0.5,),
        warmup_steps=0,
        learning_rate=1e-2,
        grad_clip=1.0,
        contrast_weight=0.0,
        patch_fraction=0.5,
        accumulate=2,
        added={"temporal_similarity": 1.0},
    )
    assert not config.distils
    log = train(student, still(6, 8, 16, 8), config, output=tmp_path, progress=False)
    similarity = log.temporal_similarity
    assert similarity.iloc[-1] < 0.9 * similarity.iloc[0]
    assert log.loss.tolist() == pytest.approx((log.reconstruction + similarity).tolist())
    assert {*student.state_dict()} == names


def test_similarities_are_further_outputs_of_the_decoder() -> None:
    """As if every slot predicted its own for each patch, mixed by the decoder's masks."""
    model = VideoSlotModel(tiny(decoder_layers=3), seed=1).double()
    config = TrainConfig(steps=10, warmup_steps=0, added={"temporal_similarity": 1.0})
    student = Student(model, config)
    slots, patches = normal(2, 3, 4, 8), torch.tensor([7, 0, 5])
    masks, reconstruction, similarity = student.decode(slots, patches=patches)
    assert_close((masks, reconstruction), model.decode(slots, patches=patches))

    hidden = slots[..., None, :] + model.decoder.positions[patches]
    for layer in list(model.decoder.layers)[:-1]:
        hidden = layer(hidden).relu()
    of_slots = student.heads["temporal_similarity"](hidden)
    assert of_slots.shape == (2, 3, 4, 3, 9)
    assert_close(similarity, (masks[..., None] * of_slots).sum(2))

    similarity.square().sum().backward()
    for weights in (*student.heads.parameters(), *model.decoder.layers[0].parameters()):
        assert weights.grad is not None
        assert weights.grad.any()
    last = model.decoder.layers[-1].weight.grad
    assert last[-1].any()  # of the masks
    assert not last[:-1].any()  # of the features


def test_a_decoder_without_the_loss_is_the_models_own() -> None:
    model = VideoSlotModel(tiny(), seed=1).double()
    student = Student(model, TrainConfig(steps=10, warmup_steps=0))
    slots = normal(2, 3, 4, 8)
    masks, reconstruction, similarity = student.decode(slots)
    assert_close((masks, reconstruction), model.decode(slots), rtol=0, atol=0)
    assert similarity is None
    assert not student.heads


@pytest.mark.parametrize("loss", ["relations_over_time", "temporal_similarity"])
def test_one_frame_has_no_next(loss: str) -> None:
    with pytest.raises(ValueError, match=f"added {loss} compares .* clip_length to 2 or more"):
        TrainConfig(
            steps=10,
            warmup_steps=0,
            clip_length=1,
            contrast_weight=0.0,
            added={loss: 1.0},  # type: ignore[dict-item]
        )


def test_it_needs_a_teacher(tmp_path: Path) -> None:
    student = VideoSlotModel(tiny(feature_shape=(16, 8)), seed=2)
    config = TrainConfig(steps=10, warmup_steps=0, added={"relations": 1.0})
    with pytest.raises(ValueError, match=r"added relations 1\.0 needs a teacher"):
        train(student, normal(6, 4, 16, 8).float(), config, output=tmp_path)
