"""What models cost, as tables: parameters and arithmetic are counted, times come from files."""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from slotmatch import paths
from slotmatch.model import PRESETS
from slotmatch.model.plain import as_written
from slotmatch.profiling import (
    Ratio,
    Segmenting,
    count_flops,
    count_parameters,
    segmenting,
    times_faster,
    without_memory,
)
from slotmatch.reporting import results
from slotmatch.settings import Role, choices

__all__ = [
    "MEASURED",
    "SIZES",
    "Counts",
    "benchmark_table",
    "benchmarks",
    "beside_reference",
    "claims",
    "claims_table",
    "count",
    "decoder_share",
    "flops_table",
    "lighter_table",
    "machine",
    "narrower",
    "narrower_table",
    "parameter_table",
    "reported",
    "speedups",
]

SIZES = tuple(name for name in PRESETS if name != "mini")
MEASURED = ("movi_e", "ytvis2021")
"""The sizes whose speed is measured."""
SPEEDUPS = {
    "times faster": ("plain student", "plain teacher"),
    "times faster, both fast": ("fast student", "fast teacher"),
    "times faster, fast student, plain teacher": ("fast student", "plain teacher"),
    "times faster, fast student in bf16, plain teacher": ("fast student, bf16", "plain teacher"),
}
"""What is compared: like with like, and then this package's student with the usual teacher."""
FACTS = {
    "parameters": ",",
    "GFLOP": ",.1f",
    results.FIDELITY["same_slot"]: ".1f",
    "largest difference of a mask": ".0e",
}
"""What else is told of a way to do the work where it is known, and how it is written."""

Costs = Mapping[tuple[str, str], Mapping[str, int]]
"""By size and role: of each part and in all (``"total"``)."""


@dataclass(frozen=True)
class Counts:
    """What teacher and student of some sizes cost.

    ``parameters`` also has ``"trainable"``, those outside the frozen backbone. FLOPs a frame are
    of the model as it is usually written (``plain``) and of this package's, asked for masks alone.
    """

    parameters: Costs
    plain: Costs
    fast: Costs

    @property
    def sizes(self) -> list[str]:
        """Names of the presets, in order."""
        return list(dict.fromkeys(name for name, _ in self.parameters))

    def record(self) -> dict[str, Any]:
        """All of it for a result file: by size and role."""
        kinds = {
            "parameters": self.parameters,
            "flops, plain": self.plain,
            "flops, fast": self.fast,
        }
        return {
            name: {
                role: {kind: costs[name, role] for kind, costs in kinds.items()}
                for role in choices(Role)
            }
            for name in self.sizes
        }


def times_fewer(costs: Costs, size: str, what: str = "total") -> float:
    """How many times as much the teacher has as its student."""
    return costs[size, "teacher"][what] / costs[size, "student"][what]


def count(sizes: Iterable[str] = SIZES) -> Counts:
    """Count both models of each preset; nothing is computed or loaded."""
    models = {
        (name, role): without_memory(getattr(PRESETS[name], role))
        for name in sizes
        for role in choices(Role)
    }
    counted = {key: count_parameters(model) for key, model in models.items()}
    return Counts(
        {
            key: {part: every for part, (every, _) in own.items()} | {"trainable": own["total"][1]}
            for key, own in counted.items()
        },
        {key: count_flops(as_written(model)) for key, model in models.items()},
        {key: count_flops(model, reconstruct=False) for key, model in models.items()},
    )


def parameter_table(counts: Counts) -> pd.DataFrame:
    """Parameters of each part, a column for each model of the sizes that are measured."""
    columns = {
        (name, role): counts.parameters[name, role] for name in MEASURED for role in choices(Role)
    }
    return pd.DataFrame(columns).map("{:,}".format)


def flops_table(counts: Counts) -> pd.DataFrame:
    """GFLOP a frame, and how many times fewer parameters and FLOPs the student has, by size."""
    columns = {
        f"GFLOP, {how} {role}": {name: costs[name, role]["total"] / 1e9 for name in counts.sizes}
        for how, costs in (("plain", counts.plain), ("fast", counts.fast))
        for role in choices(Role)
    }
    ratios = {
        "times fewer parameters": (counts.parameters, "total"),
        "times fewer trainable parameters": (counts.parameters, "trainable"),
        "times fewer FLOPs, plain": (counts.plain, "total"),
        "times fewer FLOPs, fast": (counts.fast, "total"),
    }
    for heading, (costs, what) in ratios.items():
        columns[heading] = {name: times_fewer(costs, name, what) for name in counts.sizes}
    return pd.DataFrame(columns)


def decoder_share(counts: Counts) -> pd.DataFrame:
    """The decoder's share of the plain student's FLOPs, in percent, by size."""
    costs = {name: counts.plain[name, "student"] for name in counts.sizes}
    share = {name: 100 * own["decoder"] / own["total"] for name, own in costs.items()}
    return pd.DataFrame({"decoder, % of the student's FLOPs": share})


def narrower(sizes: Iterable[str] = MEASURED) -> dict[str, dict[str, Segmenting]]:
    """What masks of lighter students cost: narrower decoders, or none; the paper's width first."""
    found = {}
    for name in sizes:
        student = PRESETS[name].student
        widths = (student.decoder_hidden // shrunk for shrunk in (1, 2, 4))
        found[name] = {
            f"decoder width {width}": segmenting(replace(student, decoder_hidden=width))
            for width in widths
        } | {"attention masks, no decoder": segmenting(student, decode=False)}
    return found


def narrower_table(
    students: Mapping[str, Mapping[str, Segmenting]], counts: Counts
) -> pd.DataFrame:
    """What ``narrower`` counted, beside the plain teacher of the same size."""
    rows = {
        (name, way): {
            "parameters": f"{own.parameters:,}",
            "GFLOP a frame": own.gflop,
            "times fewer parameters": counts.parameters[name, "teacher"]["total"] / own.parameters,
            "times fewer FLOPs": counts.plain[name, "teacher"]["total"] / 1e9 / own.gflop,
        }
        for name, ways in students.items()
        for way, own in ways.items()
    }
    return pd.DataFrame(rows).T


def benchmarks(output: Path, *, quick: bool = False) -> tuple[dict[str, Any], str]:
    """Results of ``python -m benchmarks``, and where they come from.

    With a GPU they are measured now, into ``output``; without one they are the committed ones.
    """
    if not torch.cuda.is_available():
        return results.read_results(paths.RESULTS / "benchmarks" / "results.json"), "committed"
    command = [sys.executable, "-m", "benchmarks", "--only", "a,b", "--bf16"]
    command += ["--output", str(output)]
    subprocess.run([*command, *["--quick"] * quick], cwd=paths.REPOSITORY, check=True)
    return results.read_results(output), "measured now"


def beside_reference() -> dict[str, Any]:
    """Results of ``python -m benchmarks.reference``: SlotContrast's released code beside ours."""
    return results.read_results(paths.RESULTS / "benchmarks" / "reference.json")


def machine(measured: Mapping[str, Any]) -> str:
    """What a result file was measured on: processor, threads, torch."""
    hardware, packages = (measured["environment"][key] for key in ("hardware", "packages"))
    device = hardware["gpu"] if measured["config"].get("device") == "cuda" else hardware["cpu"]
    threads = f"{hardware['threads']} threads of {hardware['cores']} cores"
    return f"{device}, {threads}, torch {packages['torch']}"


def benchmark_table(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """One comparison of ``python -m benchmarks``: a row for each way to do the work.

    A ratio is to the comparison's baseline, turn by turn. Where half precision took part, its rows
    tell how many patches keep their slot; where SlotContrast's code did, its how far masks differ.
    """
    rows = {
        way: {
            name: format(row[name], how) for name, how in FACTS.items() if row.get(name) is not None
        }
        | {
            comparison["unit"]: f"{row['total']:,.1f}",
            f"times faster than {comparison['baseline']}": str(
                Ratio(row["times faster"], row["from"], row["to"])
            ),
            "memory added, MiB": f"{row['MiB added']:,.1f}",
        }
        for way, row in comparison["summary"].items()
    }
    return results.dashed(pd.DataFrame.from_dict(rows, orient="index"))


def speedups(measured: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """How many times faster the student is, by size, for each of the pairs that are compared."""
    found = {}
    for comparison in measured["measurements"]["a"]:
        totals = {
            way: [turn["total"] for turn in turns] for way, turns in comparison["turns"].items()
        }
        found[comparison["title"].rpartition(", ")[2]] = {
            heading: str(times_faster(totals[quick], totals[slow]))
            for heading, (quick, slow) in SPEEDUPS.items()
            if {quick, slow} <= totals.keys()
        }
    return found


def reported() -> dict[str, str]:
    """What the paper's abstract says of both ratios, for all its data sets at once."""
    rows = pd.read_csv(paths.RESULTS / "reported" / "efficiency.csv")
    value = rows.set_index(["version", "metric"])["value"]
    return {
        "times fewer parameters": f"{value['v3', 'parameter_reduction_x']}",
        "times faster": f"up to {value['v3', 'inference_speedup_up_to_x']} "
        f"({value['v1', 'inference_speedup_x']} in version 1)",
    }


def claims(counts: Counts, measured: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The abstract's ratios as they were counted and measured here, by size."""
    found = speedups(measured)
    return {
        name: {"times fewer parameters": f"{times_fewer(counts.parameters, name):.2f}"}
        | found.get(name, {})
        for name in MEASURED
    }


def claims_table(here: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """What ``claims`` found, beside what the paper reports and apart from it."""
    columns = {("reported", "arXiv 2508.03411, abstract"): reported()}
    columns |= {("counted and measured here", name): dict(own) for name, own in here.items()}
    rows = ["times fewer parameters", *SPEEDUPS]
    table = pd.DataFrame(columns).reindex(rows)
    return results.dashed(table.rename(index={"times faster": "times faster, both plain"}))


def lighter_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Scores and costs of the lighter students (``slotmatch.experiments.decoders``)."""
    entries, texts = found["models"], results.numbers(found)
    rows = {
        name: {heading: texts[f"{name}_{key}"] for key, heading in results.HEADINGS.items()}
        | {
            f"{heading} against the student": results.difference(found, name, "student", key)
            for key, heading in results.HEADINGS.items()
            if name != "student"
        }
        | {
            "parameters": f"{entry['parameters']:,}",
            "GFLOP a frame": entry["gflop"],
            "ms per frame": entry["ms_per_frame"],
            "times faster than the teacher": texts.get(f"{name}_speedup"),
        }
        for name, entry in entries.items()
    }
    return results.dashed(pd.DataFrame(rows).T)
