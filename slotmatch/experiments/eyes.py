"""The constants of the embedded backbones, fitted to training videos and what disturbs them."""

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from slotmatch import data, paths
from slotmatch.backbones import RECIPES, resize_frames
from slotmatch.backbones.embedded import constants_path, fit_constants
from slotmatch.data.disturbances import disturb
from slotmatch.model import PRESETS
from slotmatch.settings import Disturbance

__all__ = ["fit_all"]

N_VIDEOS, EVERY = 16, 6
"""Videos of each embedded data set's train split, and the step between their frames."""
FITTED: tuple[Disturbance, ...] = ("noise", "brightness", "half_size")


def fit_all() -> None:
    """Fit and write the constants of the steady backbones, at the patch grid of ``mini``."""
    grid = PRESETS["mini"].teacher.grid
    frames = torch.cat([_frames(name) for name in data.EMBEDDED])
    disturbed = [disturb(frames, kind) for kind in FITTED]
    for recipe in RECIPES.values():
        if recipe.steady:
            images = [resize_frames(some, grid * recipe.stride) for some in (frames, *disturbed)]
            with paths.atomic(constants_path(recipe)) as temporary:
                save_file(fit_constants(recipe, images[0], images[1:]), temporary)


def _frames(name: str) -> Tensor:
    """Frames (N,3,H,W) in [0, 1] of training videos of a data set."""
    clips = data.open(name, "train", n_videos=N_VIDEOS)
    videos = torch.stack([torch.from_numpy(clip.video[::EVERY].copy()) for clip in clips])
    return rearrange(videos, "n t h w c -> (n t) c h w") / 255


if __name__ == "__main__":
    fit_all()
