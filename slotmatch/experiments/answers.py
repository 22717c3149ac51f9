"""What the study's result files say: scores, differences, verdicts and curves of its methods.

Everything is computed from the files each time; a method counts with the seeds that are there.
Scores are in points (times 100). Shapes: m seeds, n videos.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from slotmatch.experiments.conditions import (
    HELPED,
    LONGER,
    METHODS,
    STEPS,
    Condition,
    candidates,
    planned,
)
from slotmatch.experiments.study import (
    CHOSEN_ON,
    Run,
    chosen,
    seeds_planned,
    tried,
    tryouts,
)
from slotmatch.reporting import plots
from slotmatch.reporting.results import FIDELITY, HEADINGS, read_results
from slotmatch.reporting.stats import Interval, crossed
from slotmatch.reporting.verdicts import LEVEL, MARGIN, Verdict, power, verdicts
from slotmatch.settings import Distillation, choices

__all__ = [
    "NAMES",
    "OTHERS",
    "apart",
    "beta_curve",
    "claim",
    "controls",
    "curves",
    "differences",
    "effort",
    "forest",
    "judged",
    "lasting",
    "leanings",
    "left_open",
    "not_run",
    "plan_power",
    "read_study",
    "score_table",
    "steps_saved",
    "tried_table",
    "values",
    "verdict_table",
]

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "slotmatch": "SlotMatch",
        "no_term": "no term",
        "teacher_recipe": "teacher's recipe",
        "beta_0.3": "beta 0.3",
        "beta_30": "beta 30",
        "longer": "SlotMatch, twice the steps",
        **{
            f"longer_with_{loss}": f"+ {loss.replace('_', ' ')}, twice the steps" for loss in HELPED
        },
        "image_only": "single frames, no term",
        "videosaur": "VideoSAUR's loss alone",
        "videosaur_reconstruction": "VideoSAUR's loss, reconstruction",
        "no_contrast": "no contrast",
        "half_contrast": "half the contrast",
        "no_reconstruction": "no reconstruction",
        "hungarian": "Hungarian, per clip",
        "hungarian_per_frame": "Hungarian, per frame",
        "shifted": "shifted by one",
        "shuffled": "shuffled in each clip",
        "own_start": "own initial slots",
        "own_start_hungarian": "own initial slots, Hungarian",
        "inherited": "everything inherited",
        "inherited_no_term": "everything inherited, no term",
        "teacher_eyes": "teacher's features",
        "teacher_eyes_no_term": "teacher's features, no term",
        **{f"with_{loss}": f"+ {loss.replace('_', ' ')}" for loss in choices(Distillation)},
        **{f"only_{loss}": f"{loss.replace('_', ' ')} alone" for loss in choices(Distillation)},
    }
)
"""Methods as tables and figures call them."""
OTHERS = tuple(name for name in METHODS if not name.startswith(("with_", "only_")))
"""Methods that are no loss beside SlotMatch or in its place."""
MAX_SEEDS = 100
LEFT_OPEN = ("slot_error", "slot_lengths", "decoder_masks")
"""Losses that bring what slot cosine leaves open by the book's theory: lengths, own decoders."""
NAMED_AFTER = 5
"""Seeds that had been read when these were set apart from the others; later ones are a test."""
PILOT = 3
"""Seeds from which the plan's power is computed."""

Found: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]


def read_study(dataset: str = CHOSEN_ON) -> dict[str, list[dict[str, Any]]]:
    """Of each method that has any, the test results of its chosen setting, from seed 0 on.

    Raises:
        FileNotFoundError: SlotMatch itself was not run on this data set.
    """
    found = {}
    for method in METHODS:
        paths = list(takewhile(Path.is_file, _files(dataset, method)))
        if paths:
            found[method] = [read_results(path) for path in paths]
    if "slotmatch" not in found:
        raise FileNotFoundError(
            f"the study has no results of {dataset}; run "
            f"python -m slotmatch.experiments.study run --dataset {dataset}"
        )
    return found


def _files(dataset: str, method: str) -> Iterable[Path]:
    if not _is_tried(method):
        return []  # nothing was chosen yet
    setting = chosen(method)
    return (Run(dataset, method, setting, seed, "test").path for seed in range(MAX_SEEDS))


def _is_tried(method: str) -> bool:
    return all(run.path.is_file() for run in tryouts([method]))


def _tried(method: str, setting: str) -> Path:
    return Run(CHOSEN_ON, method, setting, 0, "validation").path


def values(found: Found, method: str, metric: str) -> NDArray[np.float64]:
    """A method's scores (m,n) in points; nan where a video is skipped."""
    return 100 * np.array([run["models"]["student"]["metrics"][metric] for run in found[method]])


def differences(
    found: Found, method: str, metric: str, other: str = "slotmatch"
) -> NDArray[np.float64]:
    """Method minus another (m,n), for the seeds that both have and the videos that all score."""
    own, others = values(found, method, metric), values(found, other, metric)
    shared = min(len(own), len(others))
    between = own[:shared] - others[:shared]
    return between[:, ~np.isnan(between).any(axis=0)]


def judged(found: Found, kind: str) -> dict[str, Verdict]:
    """Verdicts on the losses of a kind, ``"with"`` or ``"only"``, that have two seeds or more."""
    losses = {
        loss: {metric: differences(found, f"{kind}_{loss}", metric) for metric in HEADINGS}
        for loss in choices(Distillation)
        if min(len(found.get(f"{kind}_{loss}", ())), len(found["slotmatch"])) > 1
    }
    return verdicts(losses) if losses else {}


def claim(found: Mapping[str, Verdict]) -> str:
    """The claim that all added losses are redundant, judged in a sentence.

    With the differences that were shown, and their 95 % intervals. An intersection-union claim: it
    holds if each holds, and with every loss judged.
    """
    every = choices(Distillation)
    said = {loss: own.word for loss, own in found.items()}
    if not said:
        return f"None of the {len(every)} losses was run with two seeds or more: nothing is shown."
    groups = {
        word: [_with_what_was_shown(loss, found[loss]) for loss in said if said[loss] == word]
        for word in ("redundant", "helps", "hurts", "mixed", "undecided")
    }
    if groups["redundant"] and len(groups["redundant"]) == len(every):
        return f"All {len(every)} losses are redundant: the claim holds at this scale."
    parts = [f"{word}: {', '.join(losses)}" for word, losses in groups.items() if losses]
    if left := [loss.replace("_", " ") for loss in every if loss not in said]:
        parts.append(f"not run yet: {', '.join(left)}")
    refuted = f"refuted at this scale, for students of {STEPS} steps"
    told = "; ".join(parts)
    start = (
        f"The claim that all {len(every)} losses are redundant is "
        f"{refuted if groups['helps'] else 'not shown'}."
    )
    return f"{start} {told[0].upper()}{told[1:]}."


def effort(found: Found) -> str:
    """How many seeds the verdicts on added losses rest on, in sentences."""
    methods = ("slotmatch", *(f"with_{loss}" for loss in choices(Distillation)))
    counts = [len(found.get(method, ())) for method in methods]
    fewest, most = min(counts), max(counts)
    told = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    if fewest >= (asked := seeds_planned(methods[-1])):
        return f"These are {told} seeds of each, as planned."
    return f"These are {told} seeds of each, a look on the way: the plan asks for {asked}."


def _with_what_was_shown(loss: str, own: Verdict) -> str:
    shown = [
        f"{heading} {own.intervals[metric]:+.1f}"
        for metric, heading in HEADINGS.items()
        if own.p_values[metric] < LEVEL
    ]
    return loss.replace("_", " ") + (f" ({', '.join(shown)})" if shown else "")


def leanings(found: Mapping[str, Verdict]) -> str:
    """Differences that exclude zero by themselves and not after correction, in a sentence."""
    told = [
        f"{loss.replace('_', ' ')} ({HEADINGS[metric]} {own.intervals[metric]:+.1f})"
        for loss, own in found.items()
        if own.word not in ("helps", "hurts", "mixed")
        for metric in HEADINGS
        if not own.intervals[metric].low <= 0 <= own.intervals[metric].high
    ]
    if not told:
        return "No undecided or redundant loss has a 95 % interval that excludes zero."
    n_tests = len(found) * len(HEADINGS)
    start = f"By themselves, without the correction for {n_tests} comparisons, these 95 % intervals"
    return f"{start} exclude zero: {', '.join(told)}."


def left_open(found: Found) -> str:
    """How far the losses that bring what cosine leaves open lie above the others, in a sentence.

    On the seeds that were run since the two groups were told apart.
    """
    every = choices(Distillation)
    counts = [len(found.get(f"with_{loss}", ())) for loss in every]
    n_seeds = min(counts) - NAMED_AFTER
    if n_seeds < 2:
        return "Fewer than two seeds of each were run since."
    others = [loss for loss in every if loss not in LEFT_OPEN]

    def mean(losses: Sequence[str], metric: str) -> NDArray[np.float64]:
        scores = (values(found, f"with_{loss}", metric) for loss in losses)
        return np.mean([own[NAMED_AFTER : min(counts)] for own in scores], axis=0)

    told = _points({metric: mean(LEFT_OPEN, metric) - mean(others, metric) for metric in HEADINGS})
    return (
        f"On the {n_seeds} seeds of each that were run since, they lie {told} from the other "
        "losses in the mean."
    )


def forest(found: Found, kind: str) -> Figure:
    """Differences to SlotMatch of the losses of a kind, with verdicts and margin.

    Thin bars are 95 % intervals; thick ones of 90 %, which decide whether a loss is redundant.

    Raises:
        ValueError: no loss of this kind has two seeds or more.
    """
    words = {NAMES[f"{kind}_{loss}"]: own for loss, own in judged(found, kind).items()}
    intervals, narrower = (
        {
            heading: {name: getattr(own, level)[metric] for name, own in words.items()}
            for metric, heading in HEADINGS.items()
        }
        for level in ("intervals", "narrower")
    )
    return plots.forest(
        intervals,
        {name: own.word for name, own in words.items()},
        narrower=narrower,
        margin=MARGIN,
        xlabel="difference to SlotMatch (points)",
    )


def verdict_table(found: Found, kind: str) -> pd.DataFrame:
    """Each loss with its difference to SlotMatch, corrected p-values and the verdict.

    Differences have 95 % intervals; those of 90 % decide whether a loss is redundant.
    """
    words = judged(found, kind)
    rows = {}
    for loss in choices(Distillation):
        method = f"{kind}_{loss}"
        row: dict[str, str] = {
            "verdict": words[loss].word if loss in words else "not run yet",
            "weight": chosen(method) if method in found else "-",
            "seeds": str(len(found.get(method, ()))),
        }
        for metric, heading in HEADINGS.items():
            told, p_value = "-", "-"
            if (own := words.get(loss)) is not None:
                inner = own.narrower[metric]
                within = f"[{inner.low:+.1f}, {inner.high:+.1f}]"
                told = f"{own.intervals[metric]:+.1f}, 90 %: {within}"
                p_value = f"{own.p_values[metric]:.3f}"
            row |= {f"{heading}, difference": told, f"{heading}, p": p_value}
        rows[NAMES[method]] = row
    return pd.DataFrame(rows).T.rename_axis("loss")


def score_table(found: Found, methods: Iterable[str]) -> pd.DataFrame:
    """Scores of methods, those that were run, and their differences to SlotMatch.

    Means over seeds and videos with 95 % intervals that count both as random; one seed has none.
    *More* is the difference to SlotMatch.
    """
    rows = {}
    for method in methods:
        if method not in found:
            continue
        row = {"seeds": str(len(found[method]))}
        for metric, heading in HEADINGS.items():
            row[heading] = f"{_summary(values(found, method, metric)):.1f}"
        for metric in ("slot_cosine", "slot_cosine_permuted", "same_slot_objects"):
            row[FIDELITY[metric]] = _followed(found, method, metric)
        for metric, heading in HEADINGS.items():
            other = differences(found, method, metric)
            row[f"{heading}, more"] = "-" if method == "slotmatch" else f"{_summary(other):+.1f}"
        rows[NAMES[method]] = row
    return pd.DataFrame(rows).T.rename_axis("method")


def _followed(found: Found, method: str, metric: str) -> str:
    """How students of a method follow their teacher in the mean; a dash where it was not kept."""
    if metric not in found[method][0]["models"]["student"]["metrics"]:
        return "-"
    mean = np.nanmean(values(found, method, metric))
    return f"{mean:.0f}" if "%" in FIDELITY[metric] else f"{mean / 100:.2f}"


def apart(found: Found, method: str, other: str) -> str:
    """How far one method lies above another, in words, and how many seeds that rests on."""
    if not {method, other} <= found.keys():
        return "what is not known yet: it was not run"
    told = _points({metric: differences(found, method, metric, other) for metric in HEADINGS})
    n_seeds = min(len(found[name]) for name in (method, other))
    return f"{told} ({n_seeds} seed{'s' * (n_seeds > 1)} of each)"


def _points(differing: Mapping[str, NDArray[np.float64]]) -> str:
    """Differences (m,n) by metric, in words."""
    return " and ".join(
        f"{_summary(own):+.1f} points of {HEADINGS[metric]}" for metric, own in differing.items()
    )


def lasting(found: Found) -> str:
    """What becomes of the losses that helped where students train twice as long: a sentence."""
    pairs = {
        loss: (f"longer_with_{loss}", "longer")
        for loss in HELPED
        if min(len(found.get(method, ())) for method in (f"longer_with_{loss}", "longer")) > 1
    }
    if not pairs:
        return "Whether more training leaves anything of it is not known yet."
    differing = {
        loss: {metric: differences(found, own, metric, other) for metric in HEADINGS}
        for loss, (own, other) in pairs.items()
    }
    words = {loss: own.word for loss, own in verdicts(differing).items()}
    agree = len(words) == len(HELPED) and set(words.values()) == {"redundant"}
    told = [
        f"{loss.replace('_', ' ')}{'' if agree else f': {word},'} {apart(found, *pairs[loss])}"
        for loss, word in words.items()
    ]
    start = "all losses that helped are redundant" if agree else "the losses that helped are judged"
    return (
        f"Where students train twice as long, {LONGER * STEPS} steps, {start}: {'; '.join(told)}."
    )


def controls(found: Found) -> str:
    """What the study's other students say of the term, of the start and of the pairing."""
    return (
        f"Where everything is inherited, the term adds "
        f"{apart(found, 'inherited', 'inherited_no_term')}; to the term, the copy adds "
        f"{apart(found, 'inherited', 'slotmatch')}. "
        f"Initial slots of its own, in place of its teacher's, change a student by "
        f"{apart(found, 'own_start', 'slotmatch')}; an order of slots at random in each clip, "
        f"which has to fail, by {apart(found, 'shuffled', 'slotmatch')}."
    )


def not_run(found: Found, methods: Iterable[str]) -> str:
    """A sentence that names the methods without results; empty if all have some."""
    names = [NAMES[method] for method in methods if method not in found]
    return f"Not run yet: {', '.join(names)}." if names else ""


def tried_table(methods: Iterable[str]) -> pd.DataFrame:
    """Validation FG-ARI of the candidates of each method that has made its choice: the best."""
    rows = {}
    for method in methods:
        if _is_tried(method) and (scores := tried(method)):
            texts = [f"{100 * own:.1f} ({setting})" for setting, own in scores.items()]
            rows[NAMES[method]] = dict(zip(("lowest", "middle", "highest"), texts, strict=True))
    return pd.DataFrame(rows).T.rename_axis("method")


def plan_power(found: Found, **options: Any) -> pd.DataFrame:
    """Chances of the plan as run, from the spread among the first three seeds of each added loss.

    In per cent: to show a difference of the margin in FG-ARI after correction, and to end within
    the margin where there is no difference.
    """
    rows = {}
    n_tests = len(choices(Distillation)) * len(HEADINGS)
    for loss in choices(Distillation):
        method = f"with_{loss}"
        if min(len(found.get(method, ())), len(found["slotmatch"])) < PILOT:
            continue
        row = {}
        for metric, heading in HEADINGS.items():
            between = differences(found, method, metric)
            pilot = crossed(between[:PILOT])
            chances = power(
                pilot,
                n_seeds=len(between),
                n_videos=between.shape[1],
                n_tests=n_tests,
                **options,
            )
            row[f"{heading}, spread of seeds"] = f"{pilot.seeds**0.5:.1f}"
            row[f"{heading}, chance to show 3 points"] = f"{100 * chances['shown']:.0f} %"
            row[f"{heading}, chance to end within"] = f"{100 * chances['redundant']:.0f} %"
        rows[NAMES[method]] = row
    return pd.DataFrame(rows).T.rename_axis("loss")


def curves(found: Found, methods: Iterable[str]) -> pd.DataFrame:
    """Validation FG-ARI during training, mean over seeds: a column of each method, in points."""
    columns = {}
    for method in methods:
        if method in found:
            runs = [run["models"]["student"]["curve"] for run in found[method]]
            mean = np.mean([run["validation_video_fg_ari"] for run in runs], axis=0)
            columns[NAMES[method]] = pd.Series(100 * mean, index=runs[0]["step"])
    return pd.DataFrame(columns).rename_axis("step").reset_index()


def steps_saved(found: Found) -> str:
    """How soon SlotMatch is where methods without it end, in sentences."""
    own = curves(found, ["slotmatch"])
    said = []
    for method in ("no_term", "teacher_recipe"):
        if method not in found:
            continue
        other = curves(found, [method])
        best = float(other[NAMES[method]].max())
        reached = own.step[own[NAMES["slotmatch"]] >= best]
        when = f"by step {reached.iloc[0]}" if len(reached) else "at no step"
        said.append(
            f"The best that *{NAMES[method]}* reaches in {other.step.iloc[-1]} steps, "
            f"{best:.1f}, SlotMatch has {when}."
        )
    return " ".join(said)


def beta_curve() -> pd.DataFrame:
    """Validation scores of seed 0 at the end of training for each beta that was run.

    All at SlotMatch's learning rate; 0 is the training without the term.
    """
    own_rate = planned(Condition(), CHOSEN_ON).student.learning_rate
    files = {
        0.0: _tried("no_term", f"{own_rate:g}"),
        0.3: Run(CHOSEN_ON, "beta_0.3", "", 0, "test").path,
        **{float(setting): _tried("slotmatch", setting) for setting in candidates()["slotmatch"]},
        30.0: Run(CHOSEN_ON, "beta_30", "", 0, "test").path,
    }
    rows = {}
    for beta, path in files.items():
        if path.is_file():
            curve = read_results(path)["models"]["student"]["curve"]
            rows[beta] = {
                "FG-ARI": 100 * curve["validation_video_fg_ari"][-1],
                "cosine x 100": 100 * curve["validation_slot_cosine"][-1],
            }
    return pd.DataFrame(rows).T.rename_axis("beta").reset_index()


def _summary(scores: NDArray[np.float64]) -> Interval:
    scored = scores[:, ~np.isnan(scores).any(axis=0)]
    if len(scored) < 2:
        return Interval(float(scored.mean()), np.nan, np.nan)
    return crossed(scored).interval()
