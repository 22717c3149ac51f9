"""A frozen feature extractor: a video becomes one feature vector for each patch."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from slotmatch.backbones.spec import BackboneSpec

__all__ = ["Backbone", "TimmBackbone", "resize_frames", "weights_checksum"]


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
        return self.encode(video)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """``forward`` without a look at the values, for which a GPU would have to wait."""
        frames = rearrange(video, "b t c h w -> (b t) c h w").to(self.mean.dtype)
        features = self.patch_features(resize_frames(frames, self.image_size))
        return rearrange(features, "(b t) p f -> b t p f", b=len(video))

    def fingerprint(self) -> str:
        """A digest of everything that shapes a feature: what it is, image size and weights."""
        what = {"backbone": asdict(self.spec), "image_size": self.image_size}
        text = json.dumps(what | {"weights": weights_checksum(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

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
        """See ``Backbone``."""
        (last,) = self.network.forward_intermediates(
            self.normalise(images), indices=1, norm=False, intermediates_only=True
        )
        return rearrange(last, "n f h w -> n (h w) f")


def weights_checksum(module: nn.Module, *, skip: tuple[str, ...] = ()) -> str:
    """SHA-256 over the names, types, shapes and bytes of a module's state, as hex digits.

    Tensors whose names start with one of ``skip`` are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(skip):
            continue
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
