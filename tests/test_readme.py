"""The numbers in README and the book's prose are those of the committed result files."""

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from slotmatch import data
from slotmatch.backbones import weights_checksum
from slotmatch.experiments import answers
from slotmatch.model import load
from slotmatch.paths import REPOSITORY, RESULTS
from slotmatch.profiling import Ratio, times_faster
from slotmatch.reporting.efficiency import MEASURED, beside_reference, speedups
from slotmatch.reporting.results import (
    comparison_table,
    difference,
    numbers,
    read_results,
    seeds_difference,
)

NOT_RESULTS = {"3.11", "3.6", "2.0"}
"""Decimal numbers in README that are no results: of Python, the paper's own, of a licence."""


@cache
def committed(name: str) -> dict[str, Any]:
    return read_results(RESULTS / f"{name}.json")


def mean(run: str, model: str, metric: str = "video_fg_ari") -> str:
    return f"{numbers(committed(f'{run}/results'))[f'{model}_{metric}_mean']:.1f}"


def main_run() -> list[str]:
    found = committed("03_distill/results")
    quoted, scored = numbers(found), found["data"]
    speed, _, quartiles = quoted["student_speedup"].partition(" ")
    (behind, less), (gained, also) = (
        [difference(found, "student", other, metric) for metric in ("video_fg_ari", "video_mbo")]
        for other in ("teacher", "no_term")
    )
    sizes = [found["config"]["models"][role]["image_size"] for role in ("student", "teacher")]
    return [
        f"(`{scored['name']}`, {len(scored['ids'])} test videos, seed {found['seeds'][0]};",
        f"{quoted['student_fewer_parameters']:.1f} times fewer parameters than its teacher",
        f"is {speed} times faster {quartiles}: the median ratio of the turns",
        f"{sizes[0]} pixels a side; for the teacher they are enlarged to {sizes[1]}.",
        f"Its scores lie {behind} points of FG-ARI and {less} of mBO from its teacher's",
        f"the term adds {gained} points of FG-ARI and {also} of mBO",
        f"a constant that sees nothing has a cosine of "
        f"{quoted['student_constant_cosine_mean']:.2f}",
    ]


@cache
def runs() -> list[dict[str, Any]]:
    """The committed runs of other seeds."""
    return list(json.loads((RESULTS / "student" / "seeds.json").read_text())["runs"].values())


@cache
def by_seed(model: str) -> np.ndarray:
    """Mean video FG-ARI of each committed run."""
    return np.array([100 * np.mean(r["models"][model]["metrics"]["video_fg_ari"]) for r in runs()])


def seeds() -> list[str]:
    student, none, own = (by_seed(name) for name in ("student", "no_term", "teacher_recipe"))
    lead, gain, more = (
        seeds_difference(runs(), "student", other, "video_fg_ari")
        for other in ("teacher", "no_term", "teacher_recipe")
    )
    return [
        f"{student.mean():.1f} in FG-ARI (standard deviation {student.std(ddof=1):.1f})",
        f"without the term it scores {none.mean():.1f} ({none.std(ddof=1):.1f})",
        f"by its teacher's recipe {own.mean():.1f} ({own.std(ddof=1):.1f})",
        f"{lead} from its teacher, {gain} from the one without the term and {more} from the one",
    ]


def scale() -> list[str]:
    kmeans = [mean("02_teacher", f"k-means, per {unit}") for unit in ("frame", "video")]
    names = ("teacher", "student", "grid of blocks", "k-means, per video")
    davis = [mean("davis2016", name, "j") for name in names]
    standings = committed("standings/minimovi_a")
    light = {
        role: " against ".join(
            f"{numbers(standings)[f'{name}_video_fg_ari_mean']:.1f}"
            for name in (f"{role}, attention masks", role)
        )
        for role in ("student", "teacher")
    }
    return [
        f"which sees nothing, scores {mean('02_teacher', 'grid of blocks')}.",
        f"a video FG-ARI of {kmeans[1]} if it clusters a whole video at once, and {kmeans[0]} if "
        "it clusters frames one by one and chains them; the truth on the patch grid scores "
        f"{mean('02_teacher', 'oracle of the patch grid')}.",
        f"on {len(standings['data']['ids'])} test videos of `minimovi_a`, scores higher (FG-ARI of "
        f"`mini-student` {light['student']}, of `mini-teacher` {light['teacher']})",
        f"On {len(committed('davis2016/results')['data']['ids'])} DAVIS sequences",
        f"a mean J of {davis[0]} (teacher) and {davis[1]} (student) against {davis[2]}, and "
        f"{davis[3]} of k-means",
    ]


def benchmark_table() -> list[str]:
    found = committed("benchmarks/results")
    hardware = found["environment"]["hardware"]
    texts = [
        f"{hardware['threads']} threads of an {hardware['cpu']}, medians of "
        f"{found['config']['repeats']} turns"
    ]
    sizes = [comparison["summary"] for comparison in found["measurements"]["a"]]
    singles = ("plain teacher", "fast teacher", "plain student", "fast student")
    light = "student, attention masks"
    for way in (*singles, light, "fast teacher, bf16", "fast student, bf16", f"{light}, bf16"):
        rows = [size[way] for size in sizes]
        cells = [", ".join(f"{row['parameters'] / 1e6:.1f} M" for row in rows)]
        if way.startswith("fast") or way.endswith("bf16"):
            cells = ["the same"]
        for row in rows:
            ratio = str(Ratio(row["times faster"], row["from"], row["to"]))
            cells += [f"{row['total']:,.0f}", "1" if way == "plain teacher" else ratio]
        texts.append(f"| {' | '.join(cells)} |")
    return texts


def beside_theirs() -> list[str]:
    found = beside_reference()["measurements"]["reference"]
    sizes = [comparison["summary"] for comparison in found]

    def faster(way: str) -> str:
        ratios = [(size[way]["times faster"], size[way]["from"], size[way]["to"]) for size in sizes]
        return " and ".join(str(Ratio(*own)) for own in ratios)

    kept = [
        f"{measured['summary'][f'{way}, bf16']['same slot, %']:.1f}"
        for measured in committed("benchmarks/results")["measurements"]["a"]
        for way in ("fast student", "student, attention masks")
    ]
    return [
        f"this package's teacher is {faster('ours, teacher')} times faster in single precision, "
        f"its student {faster('ours, student')} times",
        f"in half precision {faster('ours, student, bf16')} times, with attention masks "
        f"{faster('ours, student, attention masks, bf16')}",
        f"(in order {kept[0]} and {kept[2]} % of the patches, by attention masks {kept[1]} and "
        f"{kept[3]} %)",
    ]


def like_beside_like() -> list[str]:
    ratios, full = speedups(committed("benchmarks/results")), committed("lighter/results")

    def faster(heading: str) -> str:
        return " and ".join(ratios[size][heading] for size in MEASURED)

    def fewer(kind: str) -> str:
        own = [full["full size"][size] for size in MEASURED]
        costs = [[size[role][kind]["total"] for role in ("teacher", "student")] for size in own]
        return " and ".join(f"{teacher / student:.2f}" for teacher, student in costs)

    return [
        f"{faster('times faster')} times faster with both models plain, "
        f"{faster('times faster, both fast')} times with both fast",
        f"The parameters are {fewer('parameters')} times fewer, as the paper's 3.6, and the "
        f"arithmetic is {fewer('flops, plain')} times less (plain; {fewer('flops, fast')} fast)",
    ]


def training() -> list[str]:
    measured = committed("benchmarks/training_and_metrics")["measurements"]
    texts = []
    for kind in ("plain", "fast"):
        for step in measured["c"]:
            cached, frames = (
                [turn["total"] for turn in step["turns"][f"{kind}, {what}"]]
                for what in ("cached features", "frames")
            )
            ratio = times_faster(cached, frames)
            texts += [f"{ratio.median:.1f}", f"[{ratio.low:.1f}, {ratio.high:.1f}]"]
    (scoring,) = measured["d"]
    return [
        "of the mini teacher {} times cheaper {}, of the mini student {} times {}, of a "
        "MOVi-E-sized student {} times {}, all three with the plain model; with the fast model "
        "{} {}, {} {} and {} {} times".format(*texts),
        f"take {scoring['summary']['slotmatch.metrics']['total']:.0f} ms",
    ]


def memory() -> list[str]:
    (found,) = committed("benchmarks/memory")["measurements"]["e"]
    peaks = {name: own["peak"] for name, own in found["memory"].items()}
    more = peaks["segment, 2400 frames"] - peaks["segment, 240 frames"]
    maps = (2400 - 240) * 128 * 128
    assert peaks["segment_blocks, 2400 frames"] <= peaks["segment_blocks, 240 frames"]
    return [
        f"`segment` needs {100 * more / peaks['segment, 240 frames']:.0f} % more memory for 2,400 "
        f"frames than for 240, {100 * maps / more:.0f} % of that for the label maps it returns"
    ]


def shipped() -> list[str]:
    rows = []
    for dataset in data.EMBEDDED:
        name = f"student.mini.{dataset}"
        scores = [
            f"{mean(name, role)} / {mean(name, role, 'video_mbo')}"
            for role in ("teacher", "student")
        ]
        found = numbers(committed(f"{name}/results"))
        cells = [f"[`{dataset}`](book/results/{name}/results.json)", *scores]
        for kind in ("slot_cosine", "slot_cosine_last", "constant_cosine"):
            cells.append(f"{found[f'student_{kind}_mean']:.2f}")
        cells.append(mean(name, "student", "same_slot_objects"))
        rows.append(f"| {' | '.join(cells)} |")
    own, half, none, ten = (
        100 * pd.read_csv(RESULTS / "student" / f"{log}.csv").validation_video_fg_ari.iloc[-1]
        for log in ("log", "log.rate_0.002", "log.beta_0", "log.beta_10")
    )
    return [
        *rows,
        f"ends at {own:.1f} in mean FG-ARI of the four sets, at half its learning rate at "
        f"{half:.1f}. At that rate, and with all else equal, beta 10 ends at {ten:.1f} and beta 0, "
        f"which leaves out the term, at {none:.1f}",
    ]


def in_int8() -> list[str]:
    found = committed("int8/minimovi_a")
    quoted, models = numbers(found), found["models"]
    small, large = (models[name]["bytes"] / 1e6 for name in ("student, int8", "student"))
    ari, mbo = (
        difference(found, "student, int8", "student", metric)
        for metric in ("video_fg_ari", "video_mbo")
    )
    return [
        f"the student's file has {small:.1f} MB instead of {large:.1f}, and on "
        f"{quoted['n_videos']} test videos of `{found['data']['name']}` "
        f"{quoted['student, int8_same_slot']} % of the pixels keep their slot, at a difference of "
        f"{ari} points of FG-ARI and {mbo} of mBO."
    ]


def claim() -> list[str]:
    """What the study has shown so far."""
    found = answers.read_study()
    added = answers.judged(found, "with")
    return [
        answers.claim(added),
        answers.leanings(added),
        answers.left_open(found),
        answers.effort(found),
        answers.lasting(found),
        answers.controls(found),
    ]


def prose(name: str) -> str:
    """A page without code blocks and addresses, single spaces."""
    page = re.sub(r"```.*?```|https?://\S+", "", (REPOSITORY / name).read_text(), flags=re.DOTALL)
    return " ".join(page.replace("M used |", "M |").split())


def test_every_number_of_the_readme_is_that_of_its_file() -> None:
    table = comparison_table(committed("03_distill/results")).rename_axis(None).to_string()
    assert f"```\n{table}\n```" in (REPOSITORY / "README.md").read_text()
    text = prose("README.md")
    parts = (
        main_run,
        seeds,
        scale,
        benchmark_table,
        beside_theirs,
        like_beside_like,
        training,
        memory,
        shipped,
    )
    parts += (in_int8, claim)
    sentences = [sentence for part in parts for sentence in part()]
    assert [sentence for sentence in sentences if sentence not in text] == []
    for sentence in sentences:
        text = text.replace(sentence, "")
    assert set(re.findall(r"\d+\.\d+", text)) <= NOT_RESULTS, "a number that no file is behind"


def test_the_book_says_how_far_seeds_differ() -> None:
    spread = np.ptp(by_seed("student"))
    count = {2: "two", 3: "three", 5: "five"}[len(runs())]
    text = f"{count} students, whose FG-ARI differs by {spread:.1f} points"
    assert text in prose("book/limits.md")


def test_what_was_tried_and_other_seeds_are_of_this_teacher() -> None:
    weights = weights_checksum(load("mini-teacher"))
    assert committed("student/tried")["config"]["teacher"]["weights"] == weights
    metrics = committed("03_distill/results")["models"]
    for name, entry in runs()[0]["models"].items():
        for metric, values in entry["metrics"].items():
            assert values == metrics[name]["metrics"][metric], (name, metric)
