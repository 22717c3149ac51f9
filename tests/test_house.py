"""The rooms of the package: no circle, no door to another's room, and a page that says so."""

import ast
import importlib
import io
import re
from graphlib import TopologicalSorter

import matplotlib as mpl
import pytest

from slotmatch.paths import PACKAGE, REPOSITORY
from slotmatch.reporting import diagram
from slotmatch.reporting.rooms import FLOORS, PICTURE, module_imports, room_imports
from slotmatch.training.recipe import TERMS

PAGE = (REPOSITORY / "book" / "house.md").read_text()
METHOD = (REPOSITORY / "book" / "method.md").read_text()
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_no_circle() -> None:
    # A face imports its own files; a file that imported a face of its own room would be a circle.
    assert len([*TopologicalSorter(module_imports()).static_order()]) > 60


def test_a_room_imports_from_floors_below_its_own() -> None:
    level = {room: row for row, floor in enumerate(FLOORS) for room in floor}
    imports = room_imports()
    assert imports.keys() == level.keys()
    upwards = [(a, b) for a, others in imports.items() for b in others if level[b] <= level[a]]
    assert upwards == []


def test_the_picture_shows_the_imports() -> None:
    drawn = set(re.findall(r'id="(\w+ to \w+)"', PICTURE.read_text()))
    imports = {
        f"{room} to {other}"
        for room, others in room_imports().items()
        for other in others - {*FLOORS[-1]}
    }
    assert drawn == imports, "run python -m slotmatch.reporting.rooms"


def test_the_picture_of_the_method_shows_the_losses() -> None:
    def texts(picture: str) -> list[str]:
        return re.findall(r">([^<>\n]+)</text>", picture)

    committed, drawn = diagram.PICTURE.read_text(), io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        diagram.draw().savefig(drawn, format="svg")
    assert texts(committed) == texts(drawn.getvalue()), "run python -m slotmatch.reporting.diagram"
    assert len(texts(committed)) > 20
    losses = set(re.findall(r'id="loss (\w+)"', committed))
    assert losses == set(TERMS) - {"attention"}  # the paper's: attention is ours


def test_the_page_names_every_room() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(named) == sorted(room for floor in FLOORS for room in floor)


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_shows_its_own_room(room: str) -> None:
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slotmatch."):
            own = (node.module or "").startswith(f"slotmatch.{room}.")
            shown = set(getattr(importlib.import_module(f"slotmatch.{room}"), "__all__", ()))
            names = {alias.asname or alias.name for alias in node.names}
            assert own or not names & shown, node.module


def labelled_formulas() -> dict[str, str]:
    found = re.findall(
        r"^\$\$ \((eq-\w+)\)\n\nComputed by \{py:\w+\}`[^<]*<([\w.]+)>`", METHOD, re.MULTILINE
    )
    return dict(found)


def test_every_formula_leads_to_its_function() -> None:
    assert sorted(labelled_formulas()) == sorted(re.findall(r"^\$\$ \((eq-\w+)\)", METHOD, re.M))


@pytest.mark.parametrize(("label", "name"), labelled_formulas().items())
def test_the_function_of_a_formula_names_it(label: str, name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        break
    assert f"``{label}``" in (found.__doc__ or "")
