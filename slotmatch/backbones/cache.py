"""Features of a frozen backbone on disk: computed once, opened in an instant afterwards."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from slotmatch import paths
from slotmatch.backbones.base import Backbone, weights_checksum
from slotmatch.data.clips import HasVideo, content, ids_of
from slotmatch.data.preprocessing import float_frames
from slotmatch.precision import autocast
from slotmatch.progress import hidden

__all__ = ["Features", "cached_features", "encode_frames"]

FORMAT = 2
"""Goes up when the same inputs would give other bytes."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of videos, with the fingerprint of the backbone that made them.

    Features of teacher and student often have one shape, so only ``encoder`` tells them apart; ""
    where it is not known. Indexing gives plain arrays.
    """

    array: np.ndarray  # (N,T,P,F), often a memory map
    encoder: str = ""  # Backbone.fingerprint

    @classmethod
    def of(cls, features: "Features | np.ndarray | Tensor") -> Self:
        """An array as features of an unknown encoder; features as they are."""
        if isinstance(features, cls):
            return features
        return cls(np.asarray(features))  # a plain array: indexing a memmap costs more

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: object) -> np.ndarray:
        return self.array[index]  # type: ignore[call-overload]

    def check_made_by(self, backbone: Backbone | None, name: str = "features") -> None:
        """Refuse, with a ValueError, features that another backbone than this one made."""
        if self.encoder and backbone is not None and self.encoder != backbone.fingerprint():
            raise ValueError(
                f"{name} were made by another backbone than the model's own, "
                f"{backbone.spec.name} at {backbone.image_size} px: encode the videos with it"
            )


def cached_features(
    clips: Sequence[HasVideo],
    backbone: Backbone,
    *,
    name: str,
    batch_size: int = 4,
    progress: bool | None = False,
) -> Features:
    """Features of every clip, from disk if they were computed before: float16.

    The file lies under ``paths.cache_dir()/"features"``; its name is a digest of ``name``, the
    ids of the clips, what they hold (`slotmatch.data.clips.content`), and everything about the
    backbone that changes a feature, weights included. It is written beside its place and renamed
    when complete. Half precision rounds to about three decimal digits (relative 5e-4), far below
    what a frame's noise does to a feature.

    Args:
        clips: clips of equal length and size. Of lazily read ones only the first is loaded when the
            features are there already.
        backbone: runs where its weights are.
        name: the data set with its version and split; clips of another name never match.
        batch_size: frames encoded at a time. Four stay in a CPU's cache; with 48, which take twice
            the time there, one value in 300 is rounded otherwise.
        progress: shows a bar; None: if the output is a terminal.

    Raises:
        OSError: the disk has no room for the features.
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
    return Features(np.load(path, mmap_mode="r"), backbone.fingerprint())


def _key(clips: Sequence[HasVideo], backbone: Backbone, name: str) -> str:
    what = {
        "format": FORMAT,
        "data": name,
        "ids": list(ids_of(clips)),
        "shape": list(clips[0].video.shape),
        "content": [content(clips, i) for i in range(len(clips))],
        "backbone": asdict(backbone.spec),
        "image_size": backbone.image_size,
        "weights": weights_checksum(backbone),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _write(
    path: Path,
    clips: Sequence[HasVideo],
    backbone: Backbone,
    batch_size: int,
    progress: bool | None,
) -> None:
    first = clips[0].video
    n_frames = len(first)
    n_patches, width = backbone.grid**2, backbone.spec.feature_dim
    out = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float16, shape=(len(clips), n_frames, n_patches, width)
    )
    _reserve(path)
    flat = out.reshape(-1, n_patches, width)
    done = 0
    frames = _frames(clips, first.shape)
    with tqdm(total=len(flat), unit="frame", disable=hidden(progress)) as bar:
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


def _reserve(path: Path) -> None:
    """Fill the holes of a new file, or a full disk would end a write into mapped memory in SIGBUS.

    Raises:
        OSError: the disk has no room for it.
    """
    n_bytes, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    try:
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        raise OSError(
            error.errno,
            f"features need {n_bytes / 1e9:.3g} GB and {path.parent} has {free / 1e9:.3g} GB left: "
            "make room, or set SLOTMATCH_CACHE to a folder on another disk",
        ) from error


@torch.inference_mode()
def encode_frames(frames: np.ndarray, backbone: Backbone) -> Tensor:
    """Features (N,P,F) in float16 on the CPU of uint8 frames (N,H,W,3).

    Computed in single precision whatever surrounds it, so that what is kept is always the same.
    """
    device = next(backbone.buffers()).device
    pixels = torch.from_numpy(frames).to(device)
    with autocast(pixels, "no"):
        return backbone.encode(float_frames(pixels)[None])[0].half().cpu()


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
