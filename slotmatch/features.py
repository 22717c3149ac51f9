"""Features of a frozen backbone on disk: computed once, opened in an instant afterwards."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm.auto import tqdm

from slotmatch import paths

if TYPE_CHECKING:
    from slotmatch.backbones import Backbone

__all__ = ["Projection", "cached_features", "fit_projection", "weights_checksum"]

FORMAT = 1
"""Goes up when the same inputs would give other bytes."""


class HasVideo(Protocol):
    """What is needed of a clip: uint8 frames (T,H,W,3) and a name."""

    @property
    def video(self) -> np.ndarray: ...
    @property
    def id(self) -> str: ...


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


def cached_features(
    clips: Sequence[HasVideo],
    backbone: "Backbone",
    *,
    name: str,
    batch_size: int = 48,
    progress: bool = False,
) -> np.memmap:
    """Features of every clip, from disk if they were computed before: (N,T,P,F) float16.

    The file lies under ``paths.cache_dir()/"features"``; its name is a digest of ``name``, the
    ids of the clips, the frames of the first one, and everything about the backbone that
    changes a feature, weights included. It is written beside its place and renamed when
    complete. Half precision rounds to about three decimal digits (relative 5e-4), far below
    what a frame's noise does to a feature.

    Args:
        clips: clips of equal length and size. With an attribute ``ids``, only the first clip is
            loaded when the features are there already.
        backbone: runs where its weights are.
        name: the data set with its version and split; clips of another name never match.
        batch_size: frames encoded at a time, from several clips.
        progress: shows a bar.

    Raises:
        ValueError: no clips, clips of unequal length or size, frames that are not uint8
            (T,H,W,3), or a feature beyond the range of float16.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if len(clips) == 0:
        raise ValueError(f"no clips of {name}: nothing to encode")
    path = paths.cache_dir() / "features" / f"{_key(clips, backbone, name)}.npy"
    if not path.is_file():
        with paths.atomic(path) as temporary:
            _write(temporary, clips, backbone, batch_size, progress)
    return np.load(path, mmap_mode="r")


def _key(clips: Sequence[HasVideo], backbone: "Backbone", name: str) -> str:
    ids = getattr(clips, "ids", None) or [clip.id for clip in clips]
    first = clips[0].video
    what = {
        "format": FORMAT,
        "data": name,
        "ids": list(ids),
        "shape": list(first.shape),
        "first": hashlib.sha256(np.ascontiguousarray(first).tobytes()).hexdigest(),
        "backbone": asdict(backbone.spec),
        "image_size": backbone.image_size,
        "weights": weights_checksum(backbone),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _write(
    path: Path, clips: Sequence[HasVideo], backbone: "Backbone", batch_size: int, progress: bool
) -> None:
    first = clips[0].video
    n_frames = len(first)
    n_patches, width = backbone.grid**2, backbone.spec.feature_dim
    out = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float16, shape=(len(clips), n_frames, n_patches, width)
    )
    flat = out.reshape(-1, n_patches, width)
    done = 0
    frames = _frames(clips, first.shape)
    with tqdm(total=len(flat), unit="frame", disable=not progress) as bar:
        while batch := list(islice(frames, batch_size)):
            features = encode_frames(np.stack(batch), backbone)
            if not torch.isfinite(features).all():
                raise ValueError(
                    f"features of {backbone.spec.name} pass the range of float16 or are not "
                    "finite: check the weights"
                )
            flat[done : done + len(batch)] = features.numpy()
            done += len(batch)
            bar.update(len(batch))
    out.flush()


@torch.inference_mode()
def encode_frames(frames: np.ndarray, backbone: "Backbone") -> Tensor:
    """Features (N,P,F) in float16 on the CPU of uint8 frames (N,H,W,3)."""
    device = next(backbone.buffers()).device
    video = rearrange(torch.from_numpy(frames).to(device), "n h w c -> 1 n c h w")
    return backbone(video.float() / 255)[0].half().cpu()


def _frames(clips: Sequence[HasVideo], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    for clip in clips:
        video = clip.video
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
            raise ValueError(
                f"clip {clip.id} is {video.dtype} {video.shape}: frames must be uint8 (T,H,W,3)"
            )
        if video.shape != shape:
            raise ValueError(
                f"clip {clip.id} is {video.shape} and the first one {shape}: features are cached "
                "for clips of one shape; cut or group them first"
            )
        yield from video
