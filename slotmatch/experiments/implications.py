"""The theory page's statements, measured on the models that come with the package.

``python -m slotmatch.experiments.implications`` writes the result file that the page's numbers come
from: how tight its bounds are, what swapped decoders do, where cosine says nothing, and, in a
training, how much of an added loss's gradient the student's own losses already have.

Shapes: T frames, K slots, D slot width, P patches.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy.stats import spearmanr
from torch import Tensor, nn

from slotmatch import paths
from slotmatch.backbones import Features
from slotmatch.data import Clip
from slotmatch.data.clips import ids_of
from slotmatch.evaluation import Followed, follow
from slotmatch.evaluation.scoring import columns, score_masks
from slotmatch.experiments.select import Experiment, read_features, select, training_clips
from slotmatch.experiments.students import train_student
from slotmatch.metrics import label_maps, mask_entropy
from slotmatch.model import VideoSlotModel, load
from slotmatch.model.modules import MLPDecoder
from slotmatch.reporting import results, stats
from slotmatch.settings import Distillation, choices
from slotmatch.training import TrainConfig
from slotmatch.training.loading import Batch
from slotmatch.training.step import slotmatch_step
from slotmatch.training.student import PROJECTED, Student

__all__ = [
    "COMPARED",
    "MEASURES",
    "gradient_shares",
    "mask_bound",
    "measure",
    "measures_table",
    "shares_table",
    "slopes_of",
    "there_and_back",
    "told",
]

OWN = ("reconstruction", "contrast", "match")
"""Losses that a student has already."""
COMPARED = tuple(name for name in choices(Distillation) if name not in PROJECTED)
"""Added losses whose gradient is compared with theirs: those without weights of their own."""
ON_THE_WAY = 8
"""Points between two slots at which a decoder's slope is taken."""
N_CLIPS = 4
ELSEWHERE = "match_elsewhere"
"""The SlotMatch term on other clips: what chance alone leaves outside the span of the losses."""
TURNS = 4
"""Times a video of 24 frames is played, there and back, to make a long one."""


MEASURES = {
    "length_ratio": "length of a student's slot over its teacher's",
    "length_gap": "their difference, relative to the teacher's",
    "mask_distance": "distance of the masks of both models' slots, through one decoder (2)",
    "mask_bound": "its bound (2)",
    "bound_held": "share of patches within the bound (2)",
    "one_slot_two_decoders": "distance of the masks of one slot through both decoders (3)",
    "doubled_same_slot": "share of pixels that keep their slot when all lengths double (2)",
    "entropy": "entropy of the masks, of its largest",
    "doubled_entropy": "the same with doubled lengths (2)",
    "permuted_cosine": "cosine when slots answer to their neighbours' index",
    "cosine_with_same_slot": "rank correlation over frames: cosine and share of same slots",
}
"""What ``measure`` finds in each video, and the statement of the theory page that it checks."""


def measures_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """Means over videos of what ``measure`` found, with 95 % intervals."""
    found = _measured(content)
    return pd.DataFrame(
        {"mean over videos": {what: found[name] for name, what in MEASURES.items()}}
    )


def told(content: Mapping[str, Any]) -> dict[str, str]:
    """The numbers in the theory page's sentences, by the names under which it quotes them.

    ``theory_MEASURE`` is a mean over videos with its interval, ``theory_share_LOSS`` the smallest
    and largest share along the training, ``theory_OWN_slots_OTHER_decoder_METRIC`` a score.
    """
    shares = {f"share_{name}": content["shares"][name] for name in (*COMPARED, ELSEWHERE)}
    scores = {
        "_".join(name.replace("'s", "").replace(",", "").split()): str(text)
        for name, text in results.numbers(content).items()
        if name.endswith(("decoder_video_fg_ari", "decoder_video_mbo"))
    }
    found = {
        **_measured(content),
        **{name: f"{min(share):.2f} to {max(share):.2f}" for name, share in shares.items()},
        **scores,
    }
    return {f"theory_{name}": text for name, text in found.items()}


def _measured(content: Mapping[str, Any]) -> dict[str, str]:
    found = content["models"]["student, measures"]["metrics"]
    return {
        name: f"{stats.mean_interval([value for value in found[name] if np.isfinite(value)]):.3f}"
        for name in MEASURES
    }


def shares_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """Of each added loss and of the control, the share outside the span, along a training."""
    shares = content["shares"]
    columns = {name.replace("_", " "): shares[name] for name in COMPARED}
    columns["SlotMatch term, other clips"] = shares[ELSEWHERE]
    return pd.DataFrame({"step": shares["step"], **columns})


def mask_bound(decoder: MLPDecoder, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of a decoder's masks of two sets of slots (T,K,D), and their bound: (T,P) each.

    Equation ``eq-masks`` of the book: half the slope L times the gap of the slots. L is the largest
    norm of a logit's exact gradient at points between the slots of a frame, patch by patch; between
    these points it may be larger.
    """
    flat = torch.stack([first, second])
    masks = decoder(flat.flatten(0, 1), reconstruct=False)[0].unflatten(0, flat.shape[:2])
    distance = (masks[0] - masks[1]).norm(dim=-2)

    steepest = torch.zeros_like(distance)
    for share in torch.linspace(0, 1, ON_THE_WAY).tolist():
        between = (1 - share) * first + share * second
        slopes = rearrange(
            slopes_of(decoder, rearrange(between, "t k d -> (t k) d")),
            "(t k) p -> t k p",
            t=len(between),
        )
        steepest = torch.maximum(steepest, slopes.amax(1))
    gap = (first - second).square().sum((-1, -2)).sqrt()
    return distance, steepest / 2 * gap[:, None]


def slopes_of(decoder: MLPDecoder, slots: Tensor) -> Tensor:
    """Norms (N,P) of the exact gradients of each patch's logit with respect to slots (N,D).

    A patch's logit sees slot and place through their sum alone, so one backward pass to the places
    gives all patches at once.
    """
    first, last = cast("nn.Linear", decoder.layers[0]), cast("nn.Linear", decoder.layers[-1])

    def total(places: Tensor, slot: Tensor) -> Tensor:
        return (decoder.hidden(first(slot)[None, None], places) @ last.weight[-1]).sum()

    gradients = torch.func.vmap(torch.func.grad(total), in_dims=(None, 0))
    places = F.linear(decoder.positions, first.weight)
    norms: Tensor = (gradients(places, slots) @ first.weight).norm(dim=-1)
    return norms


def gradient_shares(
    student: VideoSlotModel,
    teacher: VideoSlotModel,
    batch: Batch,
    elsewhere: Batch,
    config: TrainConfig,
) -> dict[str, float]:
    """Of each compared loss, the share of its gradient outside the span of the student's losses.

    Equation ``eq-share`` of the book, over all weights that train, on ``batch``. Also
    ``NAME_cosine``, that of its gradient with the SlotMatch term's, and ``match_elsewhere``, the
    share of the SlotMatch term itself on other clips: a loss that is there already, and so the
    measure of how much of a share is the choice of clips.
    """

    def gradient(clips: Batch, /, **weights: Any) -> Tensor:
        alone = dict.fromkeys((f"{name}_weight" for name in (*OWN, "attention")), 0.0)
        settings = replace(config, **{**alone, "added": {}, **weights})
        step = Student(student, settings, teacher)
        slotmatch_step(step, teacher, clips, settings)
        found = [p.grad for p in student.parameters() if p.requires_grad]
        student.zero_grad()
        own = (torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True))
        return torch.cat([part.flatten() for part in own]).double()

    trained = [p for p in student.parameters() if p.requires_grad]
    own = {name: gradient(batch, **{f"{name}_weight": 1.0}) for name in OWN}
    basis, _ = torch.linalg.qr(torch.stack([F.normalize(g, dim=0) for g in own.values()], dim=1))
    compared = {name: gradient(batch, added={name: 1.0}) for name in COMPARED}
    compared[ELSEWHERE] = gradient(elsewhere, match_weight=1.0)
    found = {}
    for name, other in compared.items():
        unit = F.normalize(other, dim=0)
        found[name] = float((unit - basis @ (basis.T @ unit)).norm())
        found[f"{name}_cosine"] = float(unit @ F.normalize(own["match"], dim=0))
    return found


def there_and_back(features: np.ndarray, turns: int = TURNS) -> np.ndarray:
    """A video (T,P,F) played forwards and backwards in turn, without showing an end twice."""
    order = list(range(len(features)))
    whole = order + [
        i for turn in range(1, turns) for i in (order[::-1] if turn % 2 else order)[1:]
    ]
    return features[whole]


def measure(output: Path, *, training: Path | None = None) -> dict[str, Any]:
    """Write the result file: scores and measures on the validation videos of ``minimovi_a``.

    Args:
        output: the file.
        training: folder of a student's training, along which gradients are compared; None: no such.
    """
    started = time.monotonic()
    experiment = select("mini", "minimovi_a")
    clips = experiment.open("validation")
    models = {role: load(f"mini-{role}") for role in ("teacher", "student")}
    features = {role: read_features(experiment, "validation", own) for role, own in models.items()}
    followed = {role: follow(own, clips, features[role]) for role, own in models.items()}
    content = results.run_results(
        config={"points on the way": ON_THE_WAY, "turns": TURNS},
        seeds=[experiment.student.seed],
        dataset=experiment.dataset,
        split="validation",
        ids=ids_of(clips),
        models={
            **_swapped(models, followed, clips),
            "student, measures": {"metrics": columns(_measures(models, followed, clips))},
        },
        started=started,
        long=_long(models, features),
        shares={} if training is None else _along(experiment, models["teacher"], training),
    )
    return results.write_results(output, content)


@torch.no_grad()
def _swapped(
    models: Mapping[str, VideoSlotModel],
    followed: Mapping[str, Sequence[Followed]],
    clips: Sequence[Clip],
) -> dict[str, Any]:
    """Scores of each model's slots through each model's decoder."""
    return {
        f"{role}'s slots, {other}'s decoder": {
            "metrics": columns(
                score_masks(clip, models[other].decoder(own.slots, reconstruct=False)[0])
                for clip, own in zip(clips, followed[role], strict=True)
            )
        }
        for role in models
        for other in models
    }


@torch.no_grad()
def _measures(
    models: Mapping[str, VideoSlotModel],
    followed: Mapping[str, Sequence[Followed]],
    clips: Sequence[Clip],
) -> list[dict[str, float]]:
    """Of each video: lengths, bounds, and masks of slots that were tampered with."""
    rows = []
    decoder, other = models["student"].decoder, models["teacher"].decoder
    for own, theirs, clip in zip(followed["student"], followed["teacher"], clips, strict=True):
        distance, bound = mask_bound(other, own.slots, theirs.slots)
        lengths, wanted = own.slots.norm(dim=-1), theirs.slots.norm(dim=-1)
        cosine = F.cosine_similarity(own.slots, theirs.slots, dim=-1).mean(-1)
        same = (own.labels == theirs.labels).mean((1, 2))
        doubled = decoder(2 * own.slots, reconstruct=False)[0]
        plain = decoder(own.slots, reconstruct=False)[0]
        shared = decoder(theirs.slots, reconstruct=False)[0]
        apart = other(theirs.slots, reconstruct=False)[0]
        rows.append(
            {
                "length_ratio": float((lengths / wanted).mean()),
                "length_gap": float(((lengths - wanted).abs() / wanted).mean()),
                "mask_distance": float(distance.mean()),
                "mask_bound": float(bound.mean()),
                "bound_held": float((distance <= bound).double().mean()),
                "cosine_with_same_slot": float(spearmanr(cosine, same).statistic),
                "doubled_same_slot": _same(clip, doubled, plain),
                "doubled_entropy": mask_entropy(doubled),
                "entropy": mask_entropy(plain),
                "one_slot_two_decoders": float((shared - apart).norm(dim=-2).mean()),
                "permuted_cosine": float(
                    F.cosine_similarity(own.slots.roll(1, 1), theirs.slots, dim=-1).mean()
                ),
            }
        )
    return rows


def _same(clip: Clip, first: Tensor, second: Tensor) -> float:
    """Share of pixels that two masks (T,K,P) give to the same slot."""
    size = clip.labels.shape[1:]
    return float((label_maps(first, size) == label_maps(second, size)).mean())


@torch.no_grad()
def _long(
    models: Mapping[str, VideoSlotModel], features: Mapping[str, Features | None]
) -> dict[str, list[float]]:
    """Mean cosine of student and teacher in each frame of long videos."""
    slots = {}
    for role, model in models.items():
        own = features[role]
        assert own is not None
        long = np.stack([there_and_back(np.asarray(video)) for video in own.array])
        slots[role] = torch.cat(
            [
                model.forward_features(torch.from_numpy(part).float(), decode=False).slots
                for part in np.array_split(long, len(long) // N_CLIPS)
            ]
        )
    cosine = F.cosine_similarity(slots["student"], slots["teacher"], dim=-1).mean((0, 2))
    return {"slot_cosine": cosine.tolist()}


def _along(experiment: Experiment, teacher: VideoSlotModel, folder: Path) -> dict[str, list[float]]:
    """``gradient_shares`` along the training of a student, on training clips."""
    config = replace(experiment.student, validate_every=experiment.student.steps // 12)
    student = VideoSlotModel(experiment.models.student)
    read = [cast("Features", training_clips(experiment, one)) for one in (student, teacher)]
    patches = torch.arange(experiment.models.student.n_patches)

    def clips(first: int) -> Batch:
        own, theirs = (
            torch.from_numpy(np.array(features[first : first + N_CLIPS])).float()
            for features in read
        )
        return Batch(0, own, theirs, patches, config.seed, first=0, size=N_CLIPS)

    _, log = train_student(
        experiment,
        config,
        teacher,
        folder / "student.safetensors",
        validate=_shares(teacher, clips(0), clips(N_CLIPS), config),
    )
    kept = log.filter(like="validation_").dropna()
    found = kept.rename(columns=lambda name: name.removeprefix("validation_")).to_dict("list")
    return {"step": log.step[kept.index].tolist(), **found}


def _shares(
    teacher: VideoSlotModel, batch: Batch, elsewhere: Batch, config: TrainConfig
) -> Callable[[VideoSlotModel], dict[str, float]]:
    def validate(student: VideoSlotModel) -> dict[str, float]:
        with torch.enable_grad():
            return gradient_shares(student, teacher, batch, elsewhere, config)

    return validate


if __name__ == "__main__":
    measure(paths.RESULTS / "implications" / "results.json", training=paths.BUILD / "implications")
