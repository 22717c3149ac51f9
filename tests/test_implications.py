"""What is measured of the theory, on models and numbers where the answer is known."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import normal, tiny
from torch import Tensor

from slotmatch import metrics, paths
from slotmatch.data import Clip
from slotmatch.distillation import slot_error
from slotmatch.evaluation import Followed, score_masks
from slotmatch.evaluation.scoring import columns
from slotmatch.experiments import implications
from slotmatch.experiments.implications import (
    COMPARED,
    ELSEWHERE,
    MEASURES,
    gradient_shares,
    mask_bound,
    measures_table,
    shares_table,
    slopes_of,
    there_and_back,
    told,
)
from slotmatch.losses import feature_reconstruction, slot_contrast, slot_match
from slotmatch.model import VideoSlotModel
from slotmatch.reporting import results
from slotmatch.training import TrainConfig
from slotmatch.training.loading import Batch


@pytest.fixture
def pair() -> tuple[VideoSlotModel, VideoSlotModel]:
    return VideoSlotModel(tiny(), seed=1), VideoSlotModel(tiny(), seed=2).eval()


def test_a_decoders_logits_are_what_its_masks_come_from(pair) -> None:
    decoder = pair[0].decoder
    slots = normal(3, 4, 8).float()
    masks = decoder(slots, reconstruct=False)[0]
    torch.testing.assert_close(decoder.logits(slots).softmax(-2), masks)


@pytest.mark.parametrize("distance", [0.01, 0.3, 3.0])
def test_masks_stay_within_their_bound(pair, distance: float) -> None:
    slots = normal(3, 4, 8).float()
    moved = slots + distance * normal(3, 4, 8, seed=1).float()
    found, bound = mask_bound(pair[0].decoder, slots, moved)
    assert found.shape == bound.shape == (3, 9)
    assert (found <= bound).all()
    assert (found > 0).all()
    steepest = 2 * bound / (moved - slots).flatten(1).norm(dim=1, keepdim=True)
    for end in (slots, moved):
        own = slopes_of(pair[0].decoder, end.flatten(0, 1)).unflatten(0, (3, 4)).amax(1)
        assert (steepest > 0.999 * own).all()


def test_the_slope_is_exact_where_the_decoder_is_linear(pair) -> None:
    """Tiny moves: the slope at the slot itself, by finite differences."""
    decoder = pair[0].double().decoder
    slots = normal(1, 4, 8)
    step = 1e-6 * normal(1, 4, 8, seed=1)
    _, bound = mask_bound(decoder, slots, slots + step)
    slopes = torch.autograd.functional.jacobian(lambda s: decoder.logits(s[None])[0], slots[0])
    own = torch.stack([slopes[k, :, k].norm(dim=-1) for k in range(4)]).amax(0)
    torch.testing.assert_close(bound[0], own / 2 * step.norm(), rtol=1e-3, atol=0)


def clips_of(seed: int) -> Batch:
    features = normal(2, 3, 9, 6, seed=seed).float()
    return Batch(0, features, features, None, 0, first=0, size=2)


def test_shares_are_what_is_left_of_gradients_beside_the_students_own(pair) -> None:
    student, teacher = pair
    here, elsewhere = clips_of(0), clips_of(1)
    config = TrainConfig(steps=10, warmup_steps=0, match_weight=1.0, attention_weight=0.5)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    found = gradient_shares(student, teacher, here, elsewhere, config)
    names = (*COMPARED, ELSEWHERE)
    assert {*found} == {*names, *(f"{name}_cosine" for name in names)}
    shares = np.array([found[name] for name in names])
    assert ((shares > 0) & (shares <= 1 + 1e-6)).all()
    same = gradient_shares(student, teacher, here, here, config)
    assert same[ELSEWHERE] == pytest.approx(0, abs=1e-6)
    assert same[f"{ELSEWHERE}_cosine"] == pytest.approx(1)
    assert {name: same[name] for name in COMPARED} == {name: found[name] for name in COMPARED}
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(weight.grad is None or not weight.grad.any() for weight in student.parameters())

    weights = list(student.parameters())

    def gradient(loss: Tensor) -> Tensor:
        parts = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts]).double()

    said = student.forward_features(here.clips)
    wanted = teacher.forward_features(here.clips, decode=False).slots
    match, added = (gradient(loss(said.slots, wanted)) for loss in (slot_match, slot_error))
    reconstruction = feature_reconstruction(said.reconstruction, here.clips)
    own = torch.stack([gradient(reconstruction), gradient(slot_contrast(said.slots)), match], 1)
    left = added - own @ torch.linalg.lstsq(own, added[:, None]).solution[:, 0]
    share, cosine = left.norm() / added.norm(), F.cosine_similarity(match, added, dim=0)
    assert found["slot_error"] == pytest.approx(share.item(), rel=1e-3)
    assert found["slot_error_cosine"] == pytest.approx(cosine.item(), rel=1e-3)


def test_measures_of_slots_made_by_hand(pair) -> None:
    """Of twice the teacher's length, in its direction, in the opposite one, and in between."""
    models = dict(zip(("student", "teacher"), pair, strict=True))
    slots = normal(3, 4, 8).float()
    labels = np.arange(36).reshape(6, 6) % 4 + np.zeros((3, 1, 1), int)
    other = labels.copy()
    other[1] += 4  # no pixel of the second frame, and half of those of the third
    other[2, :3] += 4
    between = F.normalize(slots[2], dim=-1) + F.normalize(slots[2].roll(1, 0), dim=-1)
    own = 2 * torch.stack(
        [slots[0], -slots[1], slots[2].norm(dim=-1, keepdim=True) * F.normalize(between, dim=-1)]
    )
    clip = Clip(np.zeros((3, 6, 6, 3), np.uint8), labels.astype(np.int32), "made/by/hand")
    followed = {"student": [Followed(own, labels)], "teacher": [Followed(slots, other)]}
    (found,) = implications._measures(models, followed, [clip])
    assert found.keys() == MEASURES.keys()

    masks = {
        (role, factor): model.decoder(factor * own, reconstruct=False)[0].detach()
        for role, model in models.items()
        for factor in (1, 2)
    }
    theirs = {role: model.decoder(slots)[0].detach() for role, model in models.items()}
    distance, bound = (part.detach() for part in mask_bound(models["teacher"].decoder, own, slots))
    maps = [metrics.label_maps(masks["student", factor], (6, 6)) for factor in (1, 2)]
    expected = {
        "length_ratio": 2,
        "length_gap": 1,
        "mask_distance": (masks["teacher", 1] - theirs["teacher"]).norm(dim=1).mean(),
        "mask_bound": bound.mean(),
        "bound_held": (distance <= bound).double().mean(),
        "one_slot_two_decoders": (theirs["student"] - theirs["teacher"]).norm(dim=1).mean(),
        "doubled_same_slot": np.mean(maps[0] == maps[1]),
        "entropy": metrics.mask_entropy(masks["student", 1]),
        "doubled_entropy": metrics.mask_entropy(masks["student", 2]),
        "permuted_cosine": F.cosine_similarity(own[:, [3, 0, 1, 2]], slots, dim=-1).mean(),
        "cosine_with_same_slot": 1,
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})
    swapped = implications._swapped(models, followed, [clip])["student's slots, teacher's decoder"]
    assert swapped["metrics"] == columns([score_masks(clip, masks["teacher", 1])])


def test_a_long_video_goes_there_and_back() -> None:
    frames = np.arange(4)[:, None, None]
    assert there_and_back(frames, 3)[:, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]


def test_tables_are_means_and_shares_of_the_file() -> None:
    values = {name: [0.5, 1.5, float("nan")] for name in MEASURES}
    shares = {name: [0.9, 0.8] for name in (*COMPARED, ELSEWHERE)}
    content = {
        "models": {"student, measures": {"metrics": values}},
        "shares": {"step": [250, 500], **shares},
    }
    table = measures_table(content)
    assert len(table) == len(MEASURES)
    assert table["mean over videos"].str.startswith("1.000 [").all()
    found = shares_table(content)
    assert found["step"].tolist() == [250, 500]
    assert found["slot error"].tolist() == [0.9, 0.8]


def test_the_theory_page_quotes_what_was_measured() -> None:
    """Every name it quotes is told, and follows the file."""
    content = results.read_results(paths.RESULTS / "implications" / "results.json")
    page = (paths.REPOSITORY / "book" / "theory.md").read_text()
    quoted = set(re.findall(r"06_redundancy\.ipynb::(theory_\w+):s", page))
    assert len(quoted) > 10
    assert quoted <= told(content).keys()

    shares, control = content["shares"], min(content["shares"][ELSEWHERE])
    below = {name for name in COMPARED if np.median(shares[name]) < control}
    assert below == {*COMPARED} - {"slot_lengths"}, "the sentences on shares"

    content["models"]["student, measures"]["metrics"]["length_ratio"] = [1.5, 2.5]
    content["models"]["teacher's slots, student's decoder"]["metrics"]["video_mbo"] = [0.2, 0.4]
    content["shares"]["relations"] = [0.1, 0.7, 0.3]
    changed = told(content)
    assert changed["theory_length_ratio"].startswith("2.000 [")
    assert changed["theory_teacher_slots_student_decoder_video_mbo"].startswith("30.0 [")
    assert changed["theory_share_relations"] == "0.10 to 0.70"
