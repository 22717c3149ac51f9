"""How still the embedded backbones hold when frames are disturbed, and what their features tell.

``python -m slotmatch.experiments.eyes fit`` writes their constants, from training
videos and what disturbs them; ``... eyes measure`` the result files of the table in ``01_data``.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from slotmatch import data, paths
from slotmatch.backbones import RECIPES, build, cached_features, resize_frames
from slotmatch.backbones.embedded import constants_path, fit_constants
from slotmatch.data import Clip
from slotmatch.data.clips import ids_of
from slotmatch.data.disturbances import disturb
from slotmatch.data.preprocessing import float_frames
from slotmatch.evaluation import feature_change, grid_oracle
from slotmatch.evaluation.baselines import kmeans_per_video
from slotmatch.experiments.select import SIZES
from slotmatch.model import PRESETS
from slotmatch.reporting import results
from slotmatch.settings import Disturbance
from slotmatch.tensors import write_tensors

__all__ = ["eyes_table", "fit_all", "measure"]

N_VIDEOS, EVERY = 16, 6
"""Videos of each embedded data set's train split, and the step between their frames."""
N_DISTURBED = 8
"""Validation videos, every ``EVERY``-th frame of them, whose features are disturbed."""
FITTED: tuple[Disturbance, ...] = ("noise", "brightness", "half_size")


def fit_all() -> None:
    """Fit and write the constants of both backbones, at the patch grid of ``mini``."""
    grid = PRESETS["mini"].teacher.grid
    frames = torch.cat([_frames(name) for name in data.EMBEDDED])
    views = [frames, *(disturb(frames, kind) for kind in FITTED)]
    recipes = list(RECIPES.values())
    sides = [grid * recipe.stride for recipe in recipes]
    fitted = fit_constants(
        recipes, [[resize_frames(view, side) for view in views] for side in sides]
    )
    for recipe, constants in zip(recipes, fitted, strict=True):
        with paths.atomic(constants_path(recipe)) as temporary:
            write_tensors(constants, temporary)


def _frames(name: str) -> Tensor:
    """Frames (N,3,H,W) in [0, 1] of training videos of a data set."""
    clips = data.open(name, "train", n_videos=N_VIDEOS)
    return float_frames(np.concatenate([clip.video[::EVERY] for clip in clips]))


def measure(dataset: str, output: Path) -> dict[str, Any]:
    """Write the result file of all embedded backbones on the validation videos of a data set.

    ``change``: ``evaluation.feature_change`` under each disturbance, of ``N_DISTURBED`` videos.
    ``metrics``: k-means per video of the features, told the true number of segments, beside the
    oracle of the patch grid.
    """
    started = time.monotonic()
    grid = PRESETS["mini"].teacher.grid
    clips = data.open(dataset, "validation", n_videos=SIZES["mini"]["validation"])
    few = [Clip(clip.video[::EVERY], clip.labels[::EVERY], clip.id) for clip in clips[:N_DISTURBED]]
    models: dict[str, Any] = {"oracle": {"metrics": grid_oracle(clips, grid)}}
    for name, recipe in RECIPES.items():
        backbone = build(name, image_size=grid * recipe.stride)
        features = cached_features(clips, backbone, name=f"{dataset}/validation")
        models[name] = {
            "metrics": kmeans_per_video(clips, features, "true"),
            "change": feature_change(backbone, few),
        }
    content = results.run_results(
        config={"grid": grid, "recipes": RECIPES, "disturbed videos": N_DISTURBED},
        seeds=[0],
        dataset=dataset,
        split="validation",
        ids=ids_of(clips),
        models=models,
        started=started,
    )
    return results.write_results(output, content)


def eyes_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """What ``measure`` wrote: change under each disturbance in %, and scores of k-means."""
    scores = results.score_table(found, results.HEADINGS)
    change = {
        name: {kind.replace("_", " "): f"{100 * value:.0f}" for kind, value in own.items()}
        for name, entry in found["models"].items()
        if (own := entry.get("change"))
    }
    table = pd.DataFrame(change).T.reindex(scores.index)
    return results.dashed(pd.concat([table, scores], axis=1))


if __name__ == "__main__":
    if sys.argv[1:] == ["fit"]:
        fit_all()
    elif sys.argv[1:] == ["measure"]:
        for name in data.EMBEDDED:
            measure(name, paths.RESULTS / f"eyes.{name}" / "results.json")
    else:
        raise SystemExit("give fit or measure")
