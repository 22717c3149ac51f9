"""What every measurement gives: the same work done in several ways, in turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from slotmatch.model import PRESETS, Preset
from slotmatch.profiling import PeakMemory, times_faster

__all__ = ["INPUTS", "Comparison", "Settings", "random_video"]

INPUTS: dict[str, Any] = {
    "seeds": {"weights": 0, "inputs": 0},
    **{"dataset": "noise", "version": "1", "split": "none", "ids": []},
}
"""What a result file says of the data of a measurement."""

Turn = Mapping[str, float]
"""Milliseconds of one turn, by part; the part ``"total"`` is always there."""


@dataclass(frozen=True)
class Settings:
    """How much is measured. Quick only shows that everything works: its numbers say nothing."""

    repeats: int = 7
    quick: bool = False
    device: str = "cpu"
    bf16: bool = False

    @property
    def sizes(self) -> dict[str, Preset]:
        """Teacher and student by data set: the paper's full size, unless quick."""
        names = ("mini",) if self.quick else ("movi_e", "ytvis2021")
        return {name: PRESETS[name] for name in names}

    @property
    def frames(self) -> int:
        """Frames of a block at full size: a GPU wants many, a CPU has no time for them."""
        return 2 if self.device == "cpu" else 24


@dataclass(frozen=True)
class Comparison:
    """Several ways to do the same work: their times in turns, their memory, what else is known.

    ``turns`` has as many entries for every way, in the order they were run, so that the entries
    of one turn met the same machine.
    """

    title: str
    unit: str  # of the times, such as "ms per frame"
    baseline: str  # the way that the ratios refer to
    turns: Mapping[str, Sequence[Turn]] = field(default_factory=dict)
    memory: Mapping[str, PeakMemory] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def totals(self, name: str) -> list[float]:
        """The times of one way, all parts together, turn by turn."""
        return [turn["total"] for turn in self.turns[name]]

    def summary(self) -> pd.DataFrame:
        """One row a way: facts, median times, ratio with quartiles, memory in MiB."""
        rows = {name: self._row(name) for name in {**self.turns, **self.memory, **self.facts}}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(self.title)

    def _row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = dict(self.facts.get(name, {}))
        if turns := self.turns.get(name):
            for part in turns[0]:
                row[part] = np.median([turn[part] for turn in turns])
            totals = self.totals(name)
            row |= {"fastest": min(totals), "slowest": max(totals)}
            ratio = times_faster(totals, self.totals(self.baseline))
            row |= {"times faster": ratio.median, "from": ratio.low, "to": ratio.high}
        if memory := self.memory.get(name):
            row |= {"MiB before": memory.before / 2**20, "MiB added": memory.added / 2**20}
        return row

    def __str__(self) -> str:
        """The summary as it is printed."""
        table = self.summary().to_string(
            float_format="{:,.1f}".format,
            formatters={
                "parameters": "{:,.0f}".format,
                **dict.fromkeys(("times faster", "from", "to"), "{:.2f}".format),
            },
            na_rep="",
        )
        return "\n".join(filter(None, [table, self.unit and f"times in {self.unit}, medians"]))

    def record(self) -> dict[str, Any]:
        """All of it for a result file: the raw turns, and what is computed from them."""
        return {
            "title": self.title,
            "unit": self.unit,
            "baseline": self.baseline,
            "turns": self.turns,
            "memory": self.memory,
            "facts": self.facts,
            "summary": self.summary().to_dict("index"),
        }


def random_video(n_frames: int, side: int) -> np.ndarray:
    """Noise as frames, uint8 (T,H,W,3): what is in them does not change the cost."""
    return np.random.default_rng(0).integers(0, 256, (n_frames, side, side, 3), np.uint8)
