"""Figures of the book: one look, one colour per method, one colour per slot."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from types import MappingProxyType

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from slotmatch import paths
from slotmatch.palette import blend

__all__ = [
    "METHOD_COLORS",
    "align_truth",
    "banner",
    "contact_sheet",
    "cost_scatter",
    "forest",
    "mask_grid",
    "overlay",
    "paired_scatter",
    "score_bars",
    "style",
    "training_curves",
    "write_svg",
]

METHOD_COLORS: Mapping[str, str] = MappingProxyType(
    {
        "teacher": "#0072B2",
        "student": "#D55E00",
        "no_term": "#CC79A7",
        "teacher_recipe": "#E69F00",
        "k-means": "#009E73",
        "block grid": "#8C8C8C",
        "oracle": "#000000",
    }
)
"""The colour of each method, the same in every figure."""

_EXTRA_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP"


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure: white ground, to read on light and dark pages, two spines."""
    settings = sns.plotting_context("notebook", font_scale=0.9) | sns.axes_style(
        "ticks",
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#444444",
            "axes.labelcolor": "#222222",
            "text.color": "#222222",
            "xtick.color": "#444444",
            "ytick.color": "#444444",
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "font.family": ["DejaVu Sans"],
        },
    )
    settings |= {
        "axes.prop_cycle": plt.cycler(color=_EXTRA_COLORS),
        "axes.titleweight": "normal",
        "figure.dpi": 110,
        "legend.frameon": False,
        "savefig.dpi": 160,
        "savefig.facecolor": "white",
        "lines.linewidth": 1.8,
    }
    # Not rc_context: it would also take back what the first figure of a notebook sets up, its
    # backend's interactive mode, and no later figure would show.
    before = {name: mpl.rcParams[name] for name in settings}
    mpl.rcParams.update(settings)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def align_truth(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Object ids (...) renamed to the slots that cover them best, to share colours: int64 (...).

    Objects and slots are paired one to one with the largest total intersection over union, counted
    over the whole array (a video keeps one pairing). Background (0) becomes -1, which stays
    unpainted. Objects without a partner get the numbers after the last slot.

    Raises:
        ValueError: the shapes differ, or a label is negative.
    """
    if truth.shape != labels.shape:
        raise ValueError(
            f"truth and labels must have one shape, got {truth.shape} and {labels.shape}"
        )
    if min(truth.min(initial=0), labels.min(initial=0)) < 0:
        raise ValueError("truth and labels must be 0 or more")
    labels = labels.astype(np.int64)  # small unsigned types overflow in what follows
    objects, index = np.unique(truth, return_inverse=True)
    n_slots = int(labels.max(initial=-1)) + 1
    counts = np.bincount(
        index.ravel() * n_slots + labels.ravel(), minlength=len(objects) * n_slots
    ).reshape(len(objects), n_slots)
    union = counts.sum(1, keepdims=True) + counts.sum(0, keepdims=True) - counts
    rows = np.flatnonzero(objects != 0)
    matched, slots = linear_sum_assignment(counts[rows] / np.maximum(union[rows], 1), maximize=True)
    names = np.full(len(objects), -1)
    names[rows[matched]] = slots
    rest = np.setdiff1d(rows, rows[matched])
    names[rest] = n_slots + np.arange(len(rest))
    return names[index].reshape(truth.shape)


def overlay(
    frame: np.ndarray, labels: np.ndarray, ax: Axes | None = None, *, opacity: float = 0.5
) -> Axes:
    """One frame uint8 (h,w,3) with its label map (h,w) painted over it, drawn without axes.

    Raises:
        ValueError: see ``blend``.
    """
    ax = _axes(ax, figsize=(3, 3))
    ax.imshow(blend(frame, labels, opacity=opacity), interpolation="nearest")
    ax.set_axis_off()
    return ax


def mask_grid(
    frames: np.ndarray,
    maps: Mapping[str, np.ndarray],
    n_frames: int = 6,
    *,
    opacity: float = 0.55,
) -> Figure:
    """A sheet of evenly spaced frames: a row for the video, then one for each named label map.

    A row named ``"truth"`` has background 0, which stays unpainted, and its objects take the
    colours of the slots of the first other row that cover them best. All other rows are coloured by
    slot number.

    Args:
        frames: uint8 (t,h,w,3).
        maps: label maps (t,h,w) by name, in the order of the rows.
        n_frames: columns; fewer if the video is shorter.
        opacity: see ``blend``.

    Raises:
        ValueError: ``n_frames`` is below 1, there is no frame, or a map does not fit the frames.
    """
    if n_frames < 1 or frames.ndim != 4 or not len(frames):
        raise ValueError(
            "need n_frames of 1 or more and frames (t,h,w,3) with t of 1 or more, "
            f"got n_frames={n_frames} and frames {frames.shape}"
        )
    for name, labels in maps.items():
        if labels.shape != frames.shape[:3]:
            raise ValueError(f"map {name!r} must be {frames.shape[:3]}, got {labels.shape}")
    reference = next((labels for name, labels in maps.items() if name != "truth"), None)
    maps = dict(maps)
    if "truth" in maps:
        # Without a segmentation there is nothing to match: every object then keeps its own number.
        maps["truth"] = align_truth(
            maps["truth"], np.zeros_like(maps["truth"]) if reference is None else reference
        )
    times = np.linspace(0, len(frames) - 1, min(n_frames, len(frames))).round().astype(int)
    chosen = {name: labels[times] for name, labels in maps.items()}
    return contact_sheet(plt.figure(), frames[times], chosen, times, opacity=opacity)


def banner(frames: np.ndarray, maps: Mapping[str, np.ndarray], title: str, said: str) -> Figure:
    """A title, a sentence and two rows of five painted frames: 1200 x 630 pixels, at 100 an inch.

    Args:
        frames: uint8 (t,h,w,3) with t of 5 or more, as wide as high.
        maps: the label maps (t,h,w) of the two rows.
        title: large text at the top.
        said: one line under it.
    """
    times = np.linspace(0, len(frames) - 1, 5).round().astype(int)
    painted = [blend(frames[times], labels[times], opacity=0.55) for labels in maps.values()]
    figure = Figure(figsize=(12, 6.3), dpi=100)
    figure.text(0.02, 0.9, title, size=40, va="center")
    figure.text(0.02, 0.805, said, size=19, va="center")
    ax = figure.add_axes((0, 0, 1, 480 / 630))
    sheet = rearrange(np.stack(painted), "r t h w c -> (r h) (t w) c")
    ax.imshow(sheet, interpolation="bilinear", aspect="auto")
    ax.set_axis_off()
    return figure


def contact_sheet(
    figure: Figure,
    frames: np.ndarray,
    maps: Mapping[str, np.ndarray],
    times: np.ndarray,
    *,
    opacity: float = 0.55,
) -> Figure:
    """Fills ``figure`` with a row of frames and a row for each named label map, resizing it.

    Args:
        figure: an empty one.
        frames: uint8 (t,h,w,3), a column each.
        maps: label maps (t,h,w) by name; a negative label stays unpainted. Long names are cut.
        times: the number above each column (t,).
        opacity: see ``blend``.
    """
    rows = {"video": frames} | {
        name: blend(frames, labels, opacity=opacity) for name, labels in maps.items()
    }
    height, width = frames.shape[1:3]
    gap = max(1, width // 40)
    cell = 1.35
    figure.set_size_inches(cell * len(times) + 0.35, cell * height / width * len(rows) + 0.25)
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015)
    # One picture in one axes: an axes for each cell would take most of a second to lay out.
    cells = np.stack(list(rows.values()))
    cells = np.pad(cells, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    sheet = rearrange(cells, "r t h w c -> (r h) (t w) c")[:-gap, :-gap]
    ax = figure.add_subplot()
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    ax.set_xticks(
        (width + gap) * np.arange(len(times)) + (width - 1) / 2, [f"frame {t}" for t in times]
    )
    room = max(8, round(14 * height / width))
    names = [
        name if len(name) <= room else f"{name[: room - 1]}\N{HORIZONTAL ELLIPSIS}" for name in rows
    ]
    ax.set_yticks((height + gap) * np.arange(len(rows)) + (height - 1) / 2, names)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=8, pad=3)
    ax.tick_params(axis="y", labelsize=9, labelrotation=90)
    for label in ax.get_yticklabels():
        label.set(verticalalignment="center", parse_math=False)
    sns.despine(ax=ax, left=True, bottom=True)
    return figure


def training_curves(
    log: pd.DataFrame,
    ax: Axes | None = None,
    *,
    columns: Sequence[str] | None = None,
    x: str = "step",
    xlabel: str = "optimiser step",
    ylabel: str = "loss",
    log_scale: bool = False,
) -> Axes:
    """Logged values against the step, a line for each column.

    A column filled in now and then only (a validation score) is drawn through its entries, with
    points.

    Args:
        log: a row for each logged step.
        ax: where to draw; default a new figure.
        columns: what to draw; default every numeric column but ``x``.
        x: the column of steps, or of frames.
        xlabel: name of these.
        ylabel: name of the values with their unit.
        log_scale: logarithmic vertical axis.

    Raises:
        ValueError: a column is not in the log.
    """
    if columns is None:
        columns = [name for name in log.select_dtypes("number").columns if name != x]
    missing = [name for name in [x, *columns] if name not in log.columns]
    if missing:
        raise ValueError(f"no column {missing} in the log; it has {list(log.columns)}")
    ax = _axes(ax, figsize=(6.5, 3))
    for name, color in zip(columns, _method_colors(columns), strict=True):
        entries = log[[x, name]].dropna()
        marker = "o" if len(entries) < len(log) else ""
        ax.plot(entries[x], entries[name], label=name, color=color, marker=marker, markersize=4)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_scale else "linear")
    if len(columns) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))  # never on a line
    return _despined(ax)


def score_bars(
    intervals: Mapping[str, tuple[float, float, float]],
    ax: Axes | None = None,
    *,
    xlabel: str = "score (%)",
) -> Axes:
    """A horizontal bar for each method with its interval and its value in figures.

    Args:
        intervals: (estimate, lower end, upper end) by method, in the unit that ``xlabel`` names;
            drawn top to bottom.
        ax: where to draw; default a new figure.
        xlabel: name of the score, with its unit and the kind of interval.

    Raises:
        ValueError: nothing to draw, or an estimate outside its interval.
    """
    _check_intervals(intervals)
    ax = _axes(ax, figsize=(5, 0.45 * len(intervals) + 0.8))
    names = list(intervals)
    values = np.array([intervals[name] for name in names], dtype=float)
    ax.barh(
        names,
        values[:, 0],
        xerr=np.abs(values[:, 1:] - values[:, :1]).T,
        color=_method_colors(names),
        alpha=0.85,
        height=0.62,
        error_kw={"elinewidth": 1.4, "capsize": 3, "ecolor": "#222222"},
    )
    for row, (estimate, _, high) in enumerate(values):
        ax.annotate(
            f"{estimate:.1f}",
            (max(estimate, high), row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.axvline(0, color="#444444", linewidth=0.8)
    ax.set_xlabel(xlabel)
    ax.tick_params(axis="y", length=0)
    return _despined(ax, left=True)


def forest(
    intervals: Mapping[str, Mapping[str, tuple[float, float, float]]],
    words: Mapping[str, str] | None = None,
    *,
    narrower: Mapping[str, Mapping[str, tuple[float, float, float]]] | None = None,
    margin: float | None = None,
    xlabel: str = "difference (points)",
) -> Figure:
    """A difference with its interval for each method: a row each, a panel for each metric.

    Args:
        intervals: (estimate, lower end, upper end) by metric and method, drawn top to bottom.
        words: what is said of a method, written at the right.
        narrower: intervals of a lower level, drawn as thick bars.
        margin: differences within it, either way, are shaded.
        xlabel: name of the difference with its unit and the kind of interval.

    Raises:
        ValueError: nothing to draw, other methods in one metric than in another, or an estimate
            outside its interval.
    """
    if not intervals:
        raise ValueError("intervals is empty: give at least one metric")
    for own in intervals.values():
        _check_intervals(own)
    names = list(next(iter(intervals.values())))
    if any(list(own) != names for own in intervals.values()):
        raise ValueError(f"every metric needs the methods {names}, in this order")
    figure, panels = plt.subplots(
        1,
        len(intervals),
        figsize=(3.4 * len(intervals) + 1.6, 0.34 * len(names) + 1.1),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    rows = np.arange(len(names))
    for ax, (metric, own) in zip(panels[0], intervals.items(), strict=True):
        values = np.array([own[name] for name in names], dtype=float)
        if margin is not None:
            ax.axvspan(-margin, margin, color="#8C8C8C", alpha=0.18, linewidth=0)
        ax.axvline(0, color="#444444", linewidth=0.8)
        ax.errorbar(
            values[:, 0],
            rows,
            xerr=np.abs(values[:, 1:] - values[:, :1]).T,
            color=METHOD_COLORS["teacher"],
            marker="o",
            linestyle="",
            markersize=5,
            capsize=3,
            elinewidth=1.4,
        )
        if narrower is not None:
            inner = np.array([narrower[metric][name][1:] for name in names], dtype=float)
            ax.hlines(rows, *inner.T, color=METHOD_COLORS["teacher"], linewidth=4)
        ax.set_title(metric, fontsize="medium")
        ax.set_xlabel(xlabel, fontsize="small")
        ax.tick_params(axis="y", length=0)
        _despined(ax, left=True)
    panels[0, 0].set_yticks(rows, names)
    panels[0, 0].invert_yaxis()
    for name, word in (words or {}).items():
        panels[0, -1].annotate(
            word,
            (1, names.index(name)),
            xycoords=panels[0, -1].get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            annotation_clip=False,
        )
    return figure


def cost_scatter(
    intervals: Mapping[str, tuple[float, float, float]],
    costs: Mapping[str, float],
    ax: Axes | None = None,
    *,
    ylabel: str = "score (%)",
) -> Axes:
    """The score of each model, with its interval, against its time on a logarithmic axis.

    Models differ in marker as well as in colour.

    Args:
        intervals: (estimate, lower end, upper end) by model, in the unit that ``ylabel`` names.
        costs: milliseconds a frame, above 0, of the same models.
        ax: where to draw; default a new figure.
        ylabel: name of the score, with its unit and the kind of interval.

    Raises:
        ValueError: nothing to draw, an estimate outside its interval, other models in ``costs``
            than in ``intervals``, or a cost that is not above 0.
    """
    _check_intervals(intervals)
    if set(costs) != set(intervals) or min(costs.values()) <= 0:
        raise ValueError(f"need a cost above 0 for each of {list(intervals)}, got {dict(costs)}")
    ax = _axes(ax, figsize=(6.4, 3.4))
    colors = _method_colors(list(intervals))
    for i, (name, (estimate, low, high)) in enumerate(intervals.items()):
        ax.errorbar(
            costs[name],
            estimate,
            yerr=[[estimate - low], [high - estimate]],
            label=name,
            color=colors[i],
            marker=_MARKERS[i % len(_MARKERS)],
            linestyle="",
            markersize=8,
            capsize=3,
            elinewidth=1.4,
        )
    ax.set(xlabel="ms per frame (log scale)", ylabel=ylabel, xscale="log")
    ax.margins(x=0.12)
    for axis_formatter in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis_formatter(mpl.ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _despined(ax)


def paired_scatter(
    teacher_scores: ArrayLike,
    student_scores: ArrayLike,
    ax: Axes | None = None,
    *,
    metric: str = "FG-ARI (%)",
) -> Axes:
    """Each video's student score against its teacher's, the line of equal scores and the means.

    Videos without a score on either side (nan) are left out of the picture, the means and the
    counts.

    Args:
        teacher_scores: one a video (n,).
        student_scores: the same videos in the same order (n,).
        ax: where to draw; default a new figure.
        metric: name of the score with its unit.

    Raises:
        ValueError: the lengths differ, or no video has both scores.
    """
    teacher = np.asarray(teacher_scores, dtype=float)
    student = np.asarray(student_scores, dtype=float)
    if teacher.shape != student.shape or teacher.ndim != 1:
        raise ValueError(
            "need one score a video from both models, "
            f"got shapes {teacher.shape} and {student.shape}"
        )
    scored = np.isfinite(teacher) & np.isfinite(student)
    if not scored.any():
        raise ValueError(f"none of the {len(scored)} videos has both scores")
    teacher, student = teacher[scored], student[scored]
    ax = _axes(ax, figsize=(3.6, 3.6))
    low, high = np.min([teacher, student]), np.max([teacher, student])
    margin = 0.06 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="#8C8C8C", linewidth=1, linestyle="--", zorder=1)
    ax.scatter(teacher, student, s=18, color=METHOD_COLORS["student"], alpha=0.6, linewidths=0)
    ax.scatter(teacher.mean(), student.mean(), s=90, marker="+", color="#000000", linewidths=2)
    ax.set(
        xlim=limits,
        ylim=limits,
        aspect="equal",
        xlabel=f"teacher {metric}",
        ylabel=f"student {metric}",
    )
    ax.set_title(
        f"student higher in {np.sum(student > teacher)}, lower in {np.sum(student < teacher)} "
        f"of {len(teacher)} videos\n(+ marks the means)",
        fontsize="small",
    )
    return _despined(ax)


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure with its letters as text: the same bytes for the same figure."""
    with mpl.rc_context(), paths.atomic(path) as temporary:
        mpl.rcParams.update({"svg.hashsalt": path.stem, "svg.fonttype": "none"})
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _check_intervals(intervals: Mapping[str, tuple[float, float, float]]) -> None:
    if not intervals:
        raise ValueError("intervals is empty: give at least one method")
    for name, (estimate, low, high) in intervals.items():
        if not low <= estimate <= high:
            raise ValueError(
                f"{name!r}: estimate {estimate} is outside its interval [{low}, {high}]"
            )


def _axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    return plt.subplots(figsize=figsize, layout="constrained")[1] if ax is None else ax


def _despined(ax: Axes, *, left: bool = False) -> Axes:
    sns.despine(ax=ax, left=left)
    return ax


def _method_colors(names: Sequence[str]) -> list[str]:
    taken = {METHOD_COLORS.get(name) for name in names}
    others = cycle([color for color in _EXTRA_COLORS if color not in taken])
    return [METHOD_COLORS.get(name) or next(others) for name in names]
