"""The rooms of this package and who imports whom, as read from the source and as a picture.

``python -m slotmatch.reporting.rooms`` writes the picture of the book's page on this repository.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from slotmatch import paths
from slotmatch.reporting.plots import write_svg

__all__ = ["FLOORS", "PICTURE", "draw", "module_imports", "room_imports"]

PICTURE = paths.REPOSITORY / "book" / "figures" / "rooms.svg"
FLOORS = (
    ("__main__",),
    ("experiments",),
    ("sharing", "browser"),
    ("training", "reporting"),
    ("evaluation", "segmentation", "profiling", "distillation"),
    ("model",),
    ("backbones", "losses", "metrics"),
    ("data", "precision", "tensors", "contingency", "palette"),
    ("paths", "settings", "progress", "extras"),
)
"""The rooms from the top floor down: a room imports from floors below its own."""


def module_imports() -> dict[str, set[str]]:
    """The modules of this package that each of its modules imports, late imports included."""
    files = {_name(path): path for path in paths.PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= (inner & files.keys()) or {node.module}
        found[name] = (wanted & files.keys()) - {name}
    return found


def room_imports() -> dict[str, set[str]]:
    """The rooms that each room imports from: a room is a package or a module of its own."""
    rooms: dict[str, set[str]] = {}
    for name, wanted in module_imports().items():
        if name == "slotmatch":
            continue
        room = name.split(".")[1]
        others = {other.split(".")[1] for other in wanted if "." in other}
        rooms.setdefault(room, set()).update(others - {room})
    return rooms


def draw(imports: Mapping[str, set[str]]) -> Figure:
    """The rooms on their floors, with a line down from each room to those it imports from.

    All rooms may import from the ground floor: those lines are left out.
    """
    figure = Figure(figsize=(9, 7), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    places = {
        room: ((column + 0.5) / len(floor) + 0.03 * (-1) ** row, len(FLOORS) - row)
        for row, floor in enumerate(FLOORS)
        for column, room in enumerate(floor)
    }
    for room, others in sorted(imports.items()):
        for other in sorted(others - {*FLOORS[-1]}):
            (x, y), (to_x, to_y) = places[room], places[other]
            ax.add_patch(
                FancyArrowPatch(
                    (x, y - 0.2),
                    (to_x, to_y + 0.2),
                    arrowstyle="-|>",
                    mutation_scale=9,
                    color="#8899AA",
                    lw=0.8,
                    gid=f"{room} to {other}",
                )
            )
    for room, (x, y) in places.items():
        box = FancyBboxPatch(
            (x - 0.075, y - 0.17),
            0.15,
            0.34,
            boxstyle="round,pad=0.01",
            fc="#E8F1FA",
            ec="#0072B2",
            zorder=3,
        )
        ax.add_patch(box)
        ax.text(x, y, room, ha="center", va="center", fontsize=11, color="#102030", zorder=4)
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(0.5, len(FLOORS) + 0.5)
    return figure


def _name(path: Path) -> str:
    parts = path.relative_to(paths.REPOSITORY).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def main() -> None:
    """Write the picture, the same bytes for the same rooms."""
    write_svg(draw(room_imports()), PICTURE)


if __name__ == "__main__":
    main()
