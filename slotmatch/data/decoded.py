"""Videos that are kept on disk as plain frames once they were read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slotmatch import paths
from slotmatch.data.clips import HasVideo, content, digest, video_of

__all__ = ["DecodedClip", "DecodedClips"]


@dataclass(frozen=True)
class DecodedClips(Sequence[HasVideo]):
    """Videos that are kept on disk as plain frames once they were read.

    A step then reads the frames it needs as they are, without decoding any. The files lie under
    ``paths.cache_dir()/"frames"`` and are made one by one, when a video is first asked for; only
    then is it asked what the video holds.

    Attributes:
        clips: the videos; `LazyClips` are not read again as long as their files stay as they are.
        name: of the data set, which tells videos of equal id apart.
    """

    clips: Sequence[HasVideo]
    name: str

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: Any) -> Any:
        """The video at a whole number ``index``: its frames are a memory map (T,H,W,3)."""
        ids = getattr(self.clips, "ids", None)
        name = self.clips[index].id if ids is None else ids[index]
        path = self._paths.get(name)
        if path is None:
            path = self._paths[name] = self._path(name, self.content(index))
        if not path.is_file():
            with paths.atomic(path) as temporary:
                np.save(temporary, video_of(self.clips, index)[:])
        return DecodedClip(np.load(path, mmap_mode="r"), name)

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """Of the videos asked for so far, by id."""
        return {}

    def content(self, position: int) -> str:
        """That of the videos."""
        return content(self.clips, position)

    def _path(self, name: str, held: str) -> Path:
        key = digest((self.name, name, held))
        return paths.cache_dir() / "frames" / key[:2] / f"{key[2:34]}.npy"


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """One video: uint8 (T,H,W,3) and its name."""

    video: np.ndarray
    id: str
