"""DAVIS-2017 with its unsupervised annotations, and DAVIS-2016, as published at 480p.

DAVIS-2017 (Pont-Tuset et al., arXiv 1704.00675) has one id for every object of a sequence; the
unsupervised annotations (Caelles et al., arXiv 1905.00737) cover all objects that stand out.
DAVIS-2016 (Perazzi et al., CVPR 2016) has one foreground::

    davis2017/JPEGImages/480p/<sequence>/00000.jpg
    davis2017/Annotations_unsupervised/480p/<sequence>/00000.png      palette: index = object
    davis2017/ImageSets/2017/{train,val}.txt
    davis2016/JPEGImages/480p/<sequence>/00000.jpg
    davis2016/Annotations/480p/<sequence>/00000.png                   grey: 0 or 255
    davis2016/ImageSets/480p/{train,val}.txt

The archives unpack into a folder ``DAVIS``, which may stay: ``davis2017/DAVIS/JPEGImages`` and so
on are found as well.

**Splits** are the official lists, sorted by name. A list in ``ImageSets`` counts as it is, and all
its sequences must be there. Without one, a split is those sequences of the official list, which
comes with the package in ``splits/``, that are there.

**Labels.** DAVIS-2017 keeps the ids of the file; 255 is void, where the annotators did not decide,
and becomes 0, unlabelled. Foreground ARI does not look there, while a slot that reaches into it
pays in the union of IoU, which the official evaluation spares it. DAVIS-2016 becomes 0 and 1:
whatever is not 0 is the foreground.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from slotmatch import paths
from slotmatch.data.catalogue import Report, not_here
from slotmatch.data.clips import LazyClips, LazyVideo
from slotmatch.data.files import (
    first_existing,
    first_videos,
    picture_size,
    read_frames,
    read_picture,
    some,
)
from slotmatch.data.pictures import picture_files

__all__ = ["VOID", "Davis", "check", "official_sequences", "open_split", "read_ids"]

VOID = 255
"""Index of pixels that the annotators of DAVIS-2017 left open."""

_SPLITS = {"train": "train.txt", "validation": "val.txt"}
_FRAMES = "JPEGImages/480p"


@dataclass(frozen=True)
class _Layout:
    """Where the files of a set are below its folder."""

    masks: str
    lists: tuple[str, ...]
    how: str


_LAYOUTS = {
    "davis2017": _Layout(
        "Annotations_unsupervised/480p",
        ("ImageSets/2017",),
        "download DAVIS-2017-Unsupervised-trainval-480p.zip from davischallenge.org/davis2017/"
        "code.html and unpack it in {folder}",
    ),
    "davis2016": _Layout(
        "Annotations/480p",
        ("ImageSets/480p", "ImageSets/2016"),
        "download DAVIS-data.zip from davischallenge.org/davis2016/code.html and unpack it in "
        "{folder}",
    ),
}


class Davis(LazyClips):
    """Sequences of one split, each read when it is asked for.

    Args:
        name: ``davis2017`` or ``davis2016``.
        split: Part of the ids, such as ``davis2017/validation/camel``.
        folder: Holds ``JPEGImages`` and the masks.
        sequences: Names of folders.
    """

    def __init__(self, name: str, split: str, folder: Path, sequences: Sequence[str]) -> None:
        self.name, self.folder, self.sequences = name, folder, tuple(sequences)
        super().__init__(f"{name}/{split}/{sequence}" for sequence in self.sequences)

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Video uint8 (T,H,W,3) and labels int32 (T,H,W) of one sequence."""
        sequence = self.sequences[position]
        masks = self.folder / _LAYOUTS[self.name].masks / sequence
        files = self.files(position)
        stems = [file.stem for file in files]
        video = read_frames(files)
        labels = np.empty(video.shape[:3], np.int32)
        for t, stem in enumerate(stems):
            path = masks / f"{stem}.png"
            ids = read_ids(path, binary=self.name == "davis2016")
            if ids.shape != labels.shape[1:]:
                mask, frame = picture_size(ids.shape), picture_size(video.shape[1:])
                raise ValueError(f"{path} is {mask}, its frame {frame}")
            labels[t] = ids
        return video, labels

    def video(self, position: int) -> LazyVideo:
        """The frames of one sequence, each of them a file; those of a slice must share a size."""
        return LazyVideo(self.files(position), read_frames)

    def files(self, position: int) -> list[Path]:
        """The frames in order."""
        return picture_files(self.folder / _FRAMES / self.sequences[position], (".jpg",))


def open_split(
    name: str,
    split: str,
    *,
    n_videos: int | None = None,
    root: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Davis:
    """The first ``n_videos`` sequences of a split by name, or all.

    Takes no time, so ``progress`` shows nothing.

    Raises:
        ValueError: no such split, or more sequences than it has.
        FileNotFoundError: the set, or files of these sequences, are not on this machine.
    """
    if split not in _SPLITS:
        raise ValueError(
            f"{name} has no split {split!r}; choose from {', '.join(_SPLITS)}: no other sequence "
            "of it has public masks"
        )
    folder = _folder(name, root)
    how = _how(name, root)
    if not (folder / _FRAMES).is_dir():
        raise not_here(name, how)
    names = _listed(name, folder, split)
    if names is None:
        names = [s for s in official_sequences(name, split) if (folder / _FRAMES / s).is_dir()]
        if not names:
            raise FileNotFoundError(
                f"{folder / _FRAMES} has no sequence of {name} {split}: {how}, or list what is "
                f"there in {_LAYOUTS[name].lists[0]}/{_SPLITS[split]}"
            )
    names = list(first_videos(names, n_videos, f"{name} {split}"))
    problems = [problem for s in names if (problem := _problem(name, folder, s))]
    if problems:
        raise FileNotFoundError(
            f"{len(problems)} sequences of {name} {split} are not whole in {folder}: "
            f"{some(problems)}; {how}"
        )
    return Davis(name, split, folder, names)


def check(name: str, root: str | PathLike[str] | None = None) -> Report:
    """What of a set is there: every sequence, with a mask for each frame. No picture is read."""
    folder = _folder(name, root)
    present, missing = [], []
    for split in _SPLITS:
        listed = _listed(name, folder, split)
        names = official_sequences(name, split) if listed is None else listed
        problems = [problem for s in names if (problem := _problem(name, folder, s))]
        whole = len(names) - len(problems)
        if whole:
            source = "the official list" if listed is None else "its list in ImageSets"
            present.append(f"{split}: {whole} of {len(names)} sequences of {source}")
        if len(problems) == len(names):
            missing.append(f"{split}: all {len(names)} sequences")
        elif problems:
            missing.append(f"{split}: {some(problems, 5)}")
    return Report(name, folder, tuple(present), tuple(missing), _how(name, root))


def official_sequences(name: str, split: str) -> tuple[str, ...]:
    """The sequences of a split by the official list, sorted."""
    path = paths.PACKAGE / "data" / "splits" / f"{name}-{split}.txt"
    return tuple(path.read_text().split())


def read_ids(path: str | PathLike[str], *, binary: bool = False) -> np.ndarray:
    """The ids int32 (H,W) that an annotation stores; void becomes 0.

    Args:
        path: A PNG file: palette, grey of 1, 8 or 16 bits, or, if ``binary``, grey kept as RGB.
        binary: One foreground: whatever is not 0 becomes 1.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file is damaged.
        ValueError: the file has colours in place of ids.
    """
    mode, values = read_picture(Path(path))
    if values.ndim == 3:
        n_colours = values.shape[2] - (mode in ("LA", "RGBA"))
        if not binary or (values[..., :n_colours] != values[..., :1]).any():
            raise ValueError(
                f"{path} is a picture of mode {mode} and has colours in place of ids; use the "
                "published file, which has a palette or shades of grey"
            )
        values = values[..., 0]
    ids = values.astype(np.int32)
    if binary:
        return (ids != 0).astype(np.int32)
    ids[ids == VOID] = 0
    return ids


def _folder(name: str, root: str | PathLike[str] | None) -> Path:
    folder = Path(root or paths.data_dir()) / name
    return folder / "DAVIS" if (folder / "DAVIS" / _FRAMES).is_dir() else folder


def _how(name: str, root: str | PathLike[str] | None) -> str:
    return _LAYOUTS[name].how.format(folder=Path(root or paths.data_dir()) / name)


def _listed(name: str, folder: Path, split: str) -> list[str] | None:
    """The sequences of the list in ``ImageSets``, sorted; None where there is no list.

    A line is a name, or, in the lists of 2016, ``/JPEGImages/480p/<sequence>/00000.jpg`` and the
    path of its mask.
    """
    path = first_existing(folder / place / _SPLITS[split] for place in _LAYOUTS[name].lists)
    if path is None:
        return None
    firsts = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    names = sorted({Path(first).parent.name if "/" in first else first for first in firsts})
    if not names:
        raise ValueError(f"{path} lists no sequence; unpack its archive again")
    return names


def _stems(folder: Path, suffix: str) -> set[str]:
    """Names, without the suffix, of the files of a kind; hidden ones do not count."""
    return {path.stem for path in folder.glob("[!.]*") if path.suffix.lower() == suffix}


def _problem(name: str, folder: Path, sequence: str) -> str:
    """What keeps a sequence from being read, by the names of its files; empty if nothing."""
    frames = _stems(folder / _FRAMES / sequence, ".jpg")
    masks = _stems(folder / _LAYOUTS[name].masks / sequence, ".png")
    if not frames:
        return f"{sequence} has no frames"
    if not masks:
        return f"{sequence} has no masks"
    if frames - masks:
        return f"{sequence} has no mask for frame {some(sorted(frames - masks), 1)}"
    if masks - frames:
        return f"{sequence} has no frame for mask {some(sorted(masks - frames), 1)}"
    return ""
