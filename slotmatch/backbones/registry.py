"""Frozen feature extractors by name, with their weights."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg

from slotmatch import paths
from slotmatch.backbones.base import Backbone, TimmBackbone
from slotmatch.backbones.embedded import build_embedded
from slotmatch.backbones.spec import NAMES, RECIPES, BackboneSpec, EmbeddedRecipe, grid_side, spec
from slotmatch.data.files import some
from slotmatch.tensors import read_tensors

__all__ = ["build"]

HUB_TIMEOUT = 5.0
"""Seconds to wait for a first answer of the Hugging Face hub before giving up."""


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
        return build_embedded(what, image_size, pretrained)
    options: dict[str, Any] = {}
    if what.native_size not in (None, image_size):
        options["dynamic_img_size"] = True
    if pretrained:
        options["pretrained_cfg_overlay"] = _weights_source(what, weights)
    try:
        network = timm.create_model(what.network, pretrained=pretrained, num_classes=0, **options)
    except OSError as error:
        raise _no_weights(what) from error
    except (RuntimeError, ValueError, SafetensorError, UnpicklingError, KeyError) as error:
        file = options.get("pretrained_cfg_overlay", {}).get("file")
        if file is None:
            raise
        raise RuntimeError(_misfit(what, Path(file), error)) from error
    backbone = TimmBackbone(what, network, image_size, pretrained)
    if what.name not in NAMES:
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


def _misfit(what: BackboneSpec, file: Path, error: Exception) -> str:
    """Why a file does not serve as a backbone's weights."""
    try:
        tensors, _ = read_tensors(file)
    except ValueError as unreadable:
        return f"{unreadable}; it should hold the weights of {what.network}"
    reason = (
        f"its {len(tensors)} tensors ({some(sorted(tensors))}) are of another network or naming"
    )
    detail = str(error).splitlines()[0][:200]
    return f"{file} does not hold the weights of {what.network}: {reason} ({detail})"


def _no_weights(what: BackboneSpec) -> RuntimeError:
    return RuntimeError(
        f"the weights of {what.name} could not be had ({what.provenance}; no answer, and no copy "
        f"in the local cache). Put its model.safetensors at {_local_weights(what)}, use backbone "
        "'embedded', whose weights come with the installation, or ask for pretrained=False, which "
        "is untrained"
    )
