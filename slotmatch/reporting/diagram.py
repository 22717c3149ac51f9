"""The method as a picture: teacher, student, and what each of the three losses compares.

``python -m slotmatch.reporting.diagram`` writes the picture of the book's page on the method.
"""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from slotmatch import paths
from slotmatch.palette import SLOT_COLORS
from slotmatch.reporting.plots import write_svg

__all__ = ["LOSSES", "PICTURE", "draw"]

PICTURE = paths.REPOSITORY / "book" / "figures" / "method.svg"
LOSSES = {"match": "#D55E00", "contrast": "#0072B2", "reconstruction": "#009E73"}
"""Colours of the terms of `slotmatch.training.step.slotmatch_step`."""
INK, LINE, FROZEN, TRAINED = "#102030", "#8899AA", "#EEEEEE", "#E8F1FA"
FLOOR = "#B8B0A4"
COLORS = (FLOOR, *SLOT_COLORS[:3])
TIMES = {"frame t": 2.9, "frame t + 1": 6.3}
TEACHER, STUDENT = 4.35, 3.05  # heights of the slots; all else is above the one, below the other


def draw() -> Figure:
    """Two frames through teacher (above) and student (below), with the losses between them."""
    figure = Figure(figsize=(10, 7.4), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set(xlim=(0, 10), ylim=(0, 7.4), aspect="equal")
    for number, (name, x) in enumerate(TIMES.items()):
        for slots, way in ((TEACHER, 1), (STUDENT, -1)):
            _column(ax, x, slots, way, moved=0.22 * number)
            ax.text(x, slots + 2.87 * way, name, **_TEXT, va="center")
    first, second = TIMES.values()
    for slots, way in ((TEACHER, 1), (STUDENT, -1)):
        _slots(ax, 0.95, slots + 0.75 * way)
        _arrow(ax, (1.32, slots + 0.75 * way), (first - 0.62, slots + 0.75 * way))
        _arrow(
            ax,
            (first + 0.55, slots + 0.15 * way),
            (second - 0.62, slots + 0.75 * way),
            label="predictor",
        )
    ax.text(0.95, 3.7, "initial slots:\nthe teacher's,\nfor both", **_TEXT, va="center")
    _losses(ax, first, second)
    ax.text(0.15, 7.05, "Teacher, frozen", **_HEADING)
    ax.text(0.15, 0.25, "Student, trained", **_HEADING)
    return figure


_TEXT: dict[str, Any] = {"ha": "center", "fontsize": 10, "color": INK}
_HEADING: dict[str, Any] = {"ha": "left", "fontsize": 13, "color": INK, "weight": "bold"}


def _column(ax: Axes, x: float, slots: float, way: int, moved: float) -> None:
    """One frame through backbone and slot attention, away from its slots."""
    attention, backbone, frame = (slots + way * step for step in (0.75, 1.5, 2.35))
    trained = TRAINED if way < 0 else FROZEN
    _frame(ax, x, frame, moved)
    _box(ax, x, backbone, "large backbone" if way > 0 else "small backbone", FROZEN)
    _box(ax, x, attention, "slot attention", trained)
    _slots(ax, x, slots)
    for start, end in ((2.0, 1.74), (1.26, 0.99), (0.51, 0.2)):
        _arrow(ax, (x, slots + way * start), (x, slots + way * end))


def _losses(ax: Axes, first: float, second: float) -> None:
    for x in (first, second):
        for offset in (-0.36, -0.12, 0.12, 0.36):
            ends = ((x + offset, TEACHER - 0.16), (x + offset, STUDENT + 0.16))
            _arrow(ax, *ends, color=LOSSES["match"], style="<|-")
    _name(ax, (first + second) / 2, 3.83, "SlotMatch: equal directions,\nslot by slot", "match")
    ends = ((first + 0.55, STUDENT), (second - 0.55, STUDENT))
    _arrow(ax, *ends, color=LOSSES["contrast"], style="<|-|>")
    _name(ax, (first + second) / 2, STUDENT + 0.2, "contrast: itself in the next frame", "contrast")
    decoder, backbone = (8.6, STUDENT), (8.6, STUDENT - 1.5)
    _arrow(ax, (second + 0.55, STUDENT), (decoder[0] - 0.62, STUDENT))
    _box(ax, *decoder, "decoder", TRAINED)
    _arrow(ax, (second + 0.62, backbone[1]), (decoder[0] - 0.62, backbone[1]))
    _box(ax, *backbone, "features", "white")
    ends = ((decoder[0], STUDENT - 0.24), (decoder[0], backbone[1] + 0.24))
    _arrow(ax, *ends, color=LOSSES["reconstruction"], style="<|-|>")
    _name(ax, decoder[0] + 0.68, STUDENT - 0.75, "reconstruction:\nsquared error", "reconstruction")
    ax.text(decoder[0], STUDENT + 0.32, "its claims are the masks", **_TEXT)


def _name(ax: Axes, x: float, y: float, text: str, loss: str) -> None:
    ax.text(x, y, text, **{**_TEXT, "color": LOSSES[loss]}, va="center", gid=f"loss {loss}")


def _box(ax: Axes, x: float, y: float, text: str, color: str) -> None:
    style: dict[str, Any] = {"boxstyle": "round,pad=0.01", "fc": color, "ec": LINE, "zorder": 3}
    ax.add_patch(FancyBboxPatch((x - 0.6, y - 0.22), 1.2, 0.44, **style))
    ax.text(x, y, text, **_TEXT, va="center", zorder=4)


def _slots(ax: Axes, x: float, y: float) -> None:
    for offset, color in zip((-0.36, -0.12, 0.12, 0.36), COLORS, strict=True):
        ax.add_patch(Circle((x + offset, y), 0.1, fc=color, ec=INK, lw=0.8, zorder=3))


def _frame(ax: Axes, x: float, y: float, moved: float) -> None:
    """Three things on a floor, in the colours of their slots."""
    ax.add_patch(Rectangle((x - 0.6, y - 0.35), 1.2, 0.7, fc=FLOOR, ec=INK, lw=0.8))
    ball, box, wedge = COLORS[1:]
    ax.add_patch(Circle((x - 0.38 + moved, y + 0.12), 0.13, fc=ball))
    ax.add_patch(Rectangle((x + 0.2, y - 0.2 + moved / 3), 0.24, 0.24, fc=box))
    corners = [(x - 0.2, y - 0.28), (x + 0.08, y - 0.28), (x - 0.06, y - 0.02)]
    ax.add_patch(Polygon(corners, fc=wedge))


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    color: str = LINE,
    style: str = "-|>",
    label: str = "",
) -> None:
    look: dict[str, Any] = {"arrowstyle": style, "color": color, "lw": 1.2}
    ax.add_patch(FancyArrowPatch(start, end, mutation_scale=10, shrinkA=0, shrinkB=0, **look))
    if label:
        x, y = ((a + b) / 2 for a, b in zip(start, end, strict=True))
        ax.text(x, y, label, **_TEXT, va="center", bbox={"fc": "white", "ec": "none", "pad": 1})


def main() -> None:
    """Write the picture, the same bytes each time."""
    write_svg(draw(), PICTURE)


if __name__ == "__main__":
    main()
