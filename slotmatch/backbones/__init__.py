"""Frozen feature extractors by name: a video becomes one feature vector for each patch."""

from slotmatch.backbones.base import Backbone, resize_frames, weights_checksum
from slotmatch.backbones.cache import Features, cached_features, encode_frames
from slotmatch.backbones.registry import build
from slotmatch.backbones.spec import (
    NAMES,
    RECIPES,
    BackboneSpec,
    EmbeddedRecipe,
    feature_dim,
    grid_side,
    spec,
)

__all__ = [
    "NAMES",
    "RECIPES",
    "Backbone",
    "BackboneSpec",
    "EmbeddedRecipe",
    "Features",
    "build",
    "cached_features",
    "encode_frames",
    "feature_dim",
    "grid_side",
    "resize_frames",
    "spec",
    "weights_checksum",
]
