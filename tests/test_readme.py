"""The numbers in README and the book's prose are those of the committed result files."""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from slotmatch.paths import REPOSITORY, RESULTS
from slotmatch.profiling import Ratio, times_faster
from slotmatch.reporting.efficiency import MEASURED, speedups
from slotmatch.reporting.results import comparison_table, difference, numbers, read_results

NOT_RESULTS = {"3.11", "3.6"}
"""Decimal numbers in README that are no results: of Python, and the paper's own."""


@cache
def committed(name: str) -> dict[str, Any]:
    return read_results(RESULTS / f"{name}.json")


def shown(ratio: Ratio) -> tuple[str, str]:
    """A ratio with one decimal, and its quartiles."""
    return f"{ratio.median:.1f}", f"[{ratio.low:.1f}, {ratio.high:.1f}]"


def main_run() -> list[str]:
    found = committed("03_distill/results")
    quoted, scored = numbers(found), found["data"]
    speed, _, quartiles = quoted["student_speedup"].partition(" ")
    fg_ari, mbo = "video_fg_ari", "video_mbo"
    teacher = [difference(found, "student", "teacher", metric) for metric in (fg_ari, mbo)]
    control = [difference(found, "student", "undistilled", metric) for metric in (fg_ari, mbo)]
    sizes = [found["config"]["models"][role]["image_size"] for role in ("student", "teacher")]
    return [
        f"(`{scored['name']}`, {len(scored['ids'])} test videos, seed {found['seeds'][0]};",
        f"{quoted['student_fewer_parameters']:.1f} times fewer parameters than its teacher",
        f"is {speed} times faster {quartiles}: the median ratio of the turns",
        f"{sizes[0]} pixels a side; for the teacher they are enlarged to {sizes[1]}.",
        f"In FG-ARI the two cannot be told apart ({teacher[0]})",
        f"in mBO the student is ahead ({teacher[1]})",
        f"it gains {control[0]} points of FG-ARI and {control[1]} of mBO",
    ]


def seeds() -> list[str]:
    runs = read_runs()
    means = {
        name: np.array(
            [100 * np.mean(run["models"][name]["metrics"]["video_fg_ari"]) for run in runs]
        )
        for name in ("teacher", "student", "undistilled")
    }
    student, control = (
        (means[name].mean(), means[name].std(ddof=1)) for name in ("student", "undistilled")
    )
    lead = means["student"] - means["teacher"]
    gains = [f"{gain:.1f}" for gain in means["student"] - means["undistilled"]]
    return [
        f"the student scores {student[0]:.1f} in FG-ARI (standard deviation {student[1]:.1f})",
        f"between {-lead.min():.1f} points behind its teacher and {lead.max():.1f} ahead",
        f"the one without the term {control[0]:.1f} ({control[1]:.1f})",
        f"by {', '.join(gains[:-1])} and {gains[-1]} points",
    ]


def read_runs() -> list[dict[str, Any]]:
    return list(json.loads((RESULTS / "student" / "seeds.json").read_text())["runs"].values())


def scale() -> list[str]:
    teacher, light = numbers(committed("02_teacher/results")), numbers(committed("lighter/results"))
    davis = numbers(committed("davis2016/results"))

    def mean(quoted: dict[str, Any], name: str, metric: str = "video_fg_ari") -> str:
        return f"{quoted[f'{name}_{metric}_mean']:.1f}"

    return [
        f"an FG-ARI of {mean(teacher, 'k-means, per frame')} frame by frame and "
        f"{mean(teacher, 'k-means, per video')} on whole videos; the best the patch grid allows is "
        f"{mean(teacher, 'oracle of the patch grid')}.",
        f"(the student {mean(light, 'student, attention masks')} for {mean(light, 'student')} in "
        f"FG-ARI, the teacher {mean(teacher, 'teacher, attention masks')} for "
        f"{mean(teacher, 'teacher')})",
        f"On {davis['n_videos']} DAVIS sequences the mini models do no better than a fixed grid of "
        f"blocks: a mean J of {mean(davis, 'teacher', 'j')} (teacher) and "
        f"{mean(davis, 'student', 'j')} (student) for {mean(davis, 'grid of blocks', 'j')}.",
    ]


def benchmark_rows() -> list[str]:
    found = committed("benchmarks/results")
    hardware = found["environment"]["hardware"]
    inference = [comparison["summary"] for comparison in found["measurements"]["a"]]
    rows = {
        "plain teacher (ViT-B/14)": "plain teacher",
        "fast teacher": "fast teacher",
        "plain student (ViT-S/14)": "plain student",
        "fast student": "fast student",
        "student, attention masks": "student, attention masks",
    }
    texts = []
    for title, way in rows.items():
        own = [summary[way] for summary in inference]
        parameters = ", ".join(f"{row['parameters'] / 1e6:.1f} M" for row in own)
        parameters += " used" if "attention" in title else ""
        if title.startswith("fast"):
            parameters = "the same"
        cells = [title, parameters]
        for row in own:
            ratio = str(Ratio(row["times faster"], row["from"], row["to"]))
            cells += [f"{row['total']:,.0f}", "1" if way == "plain teacher" else ratio]
        texts.append(f"| {' | '.join(cells)} |")
    return [
        f"{hardware['threads']} threads of an {hardware['cpu']}, medians of "
        f"{found['config']['repeats']} turns",
        *texts,
    ]


def like_beside_like() -> list[str]:
    ratios = speedups(committed("benchmarks/results"))
    plain, fast = (
        " and ".join(ratios[size][heading] for size in MEASURED)
        for heading in ("times faster", "times faster, both fast")
    )
    full = committed("lighter/results")["full size"]

    def fewer(kind: str) -> str:
        costs = [
            [full[size][role][kind]["total"] for role in ("teacher", "student")]
            for size in MEASURED
        ]
        return " and ".join(f"{teacher / student:.2f}" for teacher, student in costs)

    return [
        f"the student is {plain} times faster with both models plain, {fast} times with both fast",
        f"The parameters are {fewer('parameters')} times fewer, as the paper's 3.6, and the "
        f"arithmetic is {fewer('flops, plain')} times less (plain; {fewer('flops, fast')} fast)",
    ]


def training() -> list[str]:
    measured = committed("benchmarks/training_and_metrics")["measurements"]

    def ratios(kind: str) -> list[tuple[str, str]]:
        totals = [
            [
                [turn["total"] for turn in step["turns"][f"{kind}, {what}"]]
                for what in ("cached features", "frames")
            ]
            for step in measured["c"]
        ]
        return [shown(times_faster(cached, frames)) for cached, frames in totals]

    plain, fast = ratios("plain"), [" ".join(ratio) for ratio in ratios("fast")]
    (scoring,) = measured["d"]
    return [
        f"of the mini teacher {plain[0][0]} times cheaper {plain[0][1]}, of the mini student "
        f"{plain[1][0]} times {plain[1][1]}, of a MOVi-E-sized student {plain[2][0]} times "
        f"{plain[2][1]}, all three with the plain model; with the fast model {fast[0]}, {fast[1]} "
        f"and {fast[2]} times",
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


TIED = (main_run, seeds, scale, benchmark_rows, like_beside_like, training, memory)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def missing(text: str, sentences: Sequence[str]) -> list[str]:
    return [sentence for sentence in sentences if sentence not in text]


def test_every_number_of_the_readme_is_that_of_its_file() -> None:
    page = (REPOSITORY / "README.md").read_text()
    table = comparison_table(committed("03_distill/results")).rename_axis(None).to_string()
    assert f"```\n{table}\n```" in page
    prose = squeezed(re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    sentences = [sentence for own in TIED for sentence in own()]
    assert missing(prose, sentences) == []
    for sentence in sentences:
        prose = prose.replace(sentence, "")
    prose = re.sub(r"https?://\S+", "", prose)
    assert set(re.findall(r"\d+\.\d+", prose)) <= NOT_RESULTS, "a number that no file is behind"


def test_the_book_says_how_far_seeds_differ() -> None:
    means = [
        100 * np.mean(run["models"]["student"]["metrics"]["video_fg_ari"]) for run in read_runs()
    ]
    said = f"the scores of three students, which differ by {max(means) - min(means):.0f} points"
    assert said in squeezed((REPOSITORY / "book" / "limits.md").read_text())
