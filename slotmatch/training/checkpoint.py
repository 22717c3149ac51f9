"""A run as it stands after some steps, on disk: written whole, read back, told from other runs."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slotmatch import paths
from slotmatch.tensors import UNREADABLE

__all__ = ["CHECKPOINT", "Checkpoint", "last_good", "read", "remove_unfinished", "write"]

CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in a run's output folder."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        run: its identity, a dictionary of plain values: what shapes its result.
        step: steps done.
        rows: of the log so far.
        weights: of what trains, without frozen backbones.
        optimiser: its state.
        scaler: state of the loss scale of fp16; None in other precisions.
    """

    run: dict[str, Any]
    step: int
    rows: Sequence[dict[str, float]]
    weights: dict[str, Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any] | None


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the one before; ``torch.load`` reads it, weights_only."""
    with paths.atomic(path) as temporary:
        torch.save(vars(checkpoint) | {"run": json.dumps(checkpoint.run)}, temporary)


def read(path: Path, run: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint at ``path``, on the CPU; None if there is none.

    Args:
        path: of the file.
        run: the identity that it has to have.

    Raises:
        ValueError: it cannot be read, or belongs to another run.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = Checkpoint(**content | {"run": json.loads(content["run"])})
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is damaged or not a checkpoint of slotmatch: delete it to start afresh"
        ) from error
    if differences := _differences(found.run, json.loads(json.dumps(run))):
        raise ValueError(
            f"{path} belongs to another run ({'; '.join(differences)}): train into another "
            "folder, or delete the checkpoint to start afresh"
        )
    return found


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def last_good(path: Path) -> str:
    """Where a run that failed can go on from, in words."""
    if not path.is_file():
        return "no checkpoint was written yet"
    step = torch.load(path, map_location="cpu", weights_only=True)["step"]
    return f"the last good checkpoint, of step {step}, is {path}"


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Where two nested dictionaries disagree, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            line
            for key in dict.fromkeys((*ours, *theirs))
            for line in _differences(theirs.get(key), ours.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if theirs == ours else [f"{name} is {ours!r} here and {theirs!r} there"]
