"""MiniMovi: four small simulated data sets in the manner of MOVi, made on the spot.

PyBullet simulates rigid bodies that are tossed onto a floor, and its CPU renderer draws RGB and
instance ids in one pass. Nothing is downloaded. These are **simulated toys**: numbers measured on
them say how methods compare here, never what they score on MOVi.

=============  ===============================  ======================  ===========
name           objects                          floor                   camera
=============  ===============================  ======================  ===========
minimovi_a     3-8 boxes, spheres, cylinders,   one plain colour        still
               plain colours, all tossed
minimovi_c     3-8 of 1,000 procedural shapes,  photographic texture    still
               half textured, all tossed
minimovi_d     6-12 as in c, most at rest,      photographic texture    still
               1-3 tossed
minimovi_e     as in d                          photographic texture    on a line
=============  ===============================  ======================  ===========

Beside the MOVi set of the same letter:

==================  ==========================  =================================
                    MOVi                        MiniMovi
==================  ==========================  =================================
simulation          PyBullet through Kubric     PyBullet, slowed down
renderer            Blender Cycles, path traced TinyRenderer, one light with shadow
objects (c, d, e)   1,028 scanned household     1,000 procedural shapes that ship
                    objects                     with PyBullet, photographs on half
background (c-e)    photographed panoramas      photographs tiled on a floor
objects per video   3-10 (a, c), 11-23 (d, e)   3-8 (a, c), 6-12 (d, e), and larger
frames              24 at 12 per second         24 at 12 per second
size                128x128 (also 256x256)      128x128
train videos        9,750 (about)               2,000, or as many as asked for
==================  ==========================  =================================

Objects are large because slot masks live on a grid of 16x16 to 24x24 patches: small ones could not
be drawn there by any model.

Licences: PyBullet and the shapes and pictures of ``pybullet_data`` come with its wheel under the
zlib licence (pictures of robots and furniture with terms of their own beside them there); videos
are rendered on the user's machine and none is distributed here.
"""

import hashlib
import os
import warnings
import zipfile
import zlib
from os import PathLike
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from slotmatch import paths
from slotmatch.data.clips import LazyClips
from slotmatch.data.scenes import Recipe, render_scene
from slotmatch.progress import hidden

__all__ = ["NAMES", "SIZES", "VERSION", "MiniMovi", "open_split", "render"]

VERSION = 1
"""Part of every seed and path: a change that alters a single pixel needs the next number."""

SIZES = {"train": 2000, "validation": 50, "test": 100}
"""Videos per split when no number is asked for."""
MOST_VIDEOS = 100_000
"""Videos that a split can have: as many as five digits name."""

_RECIPES = {
    "minimovi_a": Recipe(n_objects=(3, 8), meshes=False, n_tossed=None, coverage=(0.29, 0.38)),
    "minimovi_c": Recipe(n_objects=(3, 8), meshes=True, n_tossed=None, coverage=(0.28, 0.36)),
    "minimovi_d": Recipe(n_objects=(6, 12), meshes=True, n_tossed=(1, 3), coverage=(0.30, 0.38)),
    "minimovi_e": Recipe(
        n_objects=(6, 12), meshes=True, n_tossed=(1, 3), coverage=(0.30, 0.38), camera_moves=True
    ),
}
NAMES = tuple(_RECIPES)


def render(name: str, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Video uint8 (T, H, W, 3) and labels uint8 (T, H, W): a pure function of its arguments.

    Raises:
        ValueError: a name of no simulated set.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is not simulated; choose from {', '.join(NAMES)}")
    key = f"{name}/v{VERSION}/{split}/{index}".encode()
    seed = np.random.SeedSequence(list(hashlib.sha256(key).digest()))
    return render_scene(_RECIPES[name], np.random.default_rng(seed))


class MiniMovi(LazyClips):
    """One split of a MiniMovi set: renders what is missing when built, reads lazily afterwards.

    The cache is ``root/minimovi/v<VERSION>/<name>/<split>/<index>.npz``; the first ``n`` videos of
    a split are the same ones for every ``n``. A damaged file is rendered again, with a warning.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        n_videos: int | None = None,
        root: str | PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        if n_videos is not None and n_videos > MOST_VIDEOS:
            raise ValueError(f"n_videos is {n_videos} and a split of {name} has {MOST_VIDEOS}")
        super().__init__(f"{name}/{split}/{i:05d}" for i in range(n_videos or SIZES[split]))
        self.name, self.split = name, split
        self.folder = Path(root or paths.data_dir()) / "minimovi" / f"v{VERSION}" / name / split
        missing = [i for i in range(len(self.ids)) if not self.path(i).is_file()]
        if missing:
            self._render(missing, progress)

    def path(self, index: int) -> Path:
        """The cache file of video ``index``."""
        return self.folder / f"{index:05d}.npz"

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Video uint8 (T,H,W,3) and labels int32 (T,H,W) of one clip; made again if damaged."""
        path = self.path(position)
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            warnings.warn(f"{path} is damaged ({error}); rendering it again", stacklevel=2)
            self._render([position], progress=False)
            return _read(path)

    def files(self, position: int) -> list[Path]:
        """The cache file."""
        return [self.path(position)]

    def content(self, position: int) -> str:
        """Of the file's bytes, which are the same wherever the video is rendered."""
        return paths.checksum(self.path(position))

    def _render(self, indices: list[int], progress: bool | None) -> None:
        bar = tqdm(
            total=len(indices),
            desc=f"rendering {self.name} {self.split}",
            unit="video",
            disable=hidden(progress),
        )
        # Loky's workers, unlike spawned ones, need no main guard in the script that asks.
        parallel = Parallel(
            min(os.cpu_count() or 1, len(indices)), backend="loky", return_as="generator_unordered"
        )
        with bar:
            for _ in parallel(
                delayed(_write)(self.name, self.split, i, self.path(i)) for i in indices
            ):
                bar.update()


open_split = MiniMovi


def _write(name: str, split: str, index: int, path: Path) -> None:
    video, labels = render(name, split, index)
    # Differences along time (modulo 256) are mostly zero, so they pack three times smaller.
    steps = np.diff(video, axis=0, prepend=np.zeros_like(video[:1]))
    with paths.atomic(path) as temporary:
        np.savez_compressed(temporary, steps=steps, labels=labels)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        video = np.cumsum(file["steps"], axis=0, dtype=np.uint8)
        return video, file["labels"].astype(np.int32)
