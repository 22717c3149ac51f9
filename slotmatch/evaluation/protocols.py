"""Evaluation protocols: what of a data set is scored, at which size and by which rules.

Papers differ in this, and scores can only be compared within one protocol.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType

from slotmatch.data import Clip
from slotmatch.data.preprocessing import PREPROCESSING, Preprocessing, clip_starts
from slotmatch.settings import AT_LEAST_1, Empty, Masks, check

__all__ = ["ORIGINAL", "PROTOCOLS", "Protocol", "protocol_for", "samples"]


@dataclass(frozen=True)
class Protocol:
    """What is scored, and by which rules.

    The true labels are scored at the size ``preprocessing`` gives them; the masks are enlarged to
    it. A model of another input size resizes the preprocessed frames to its own.

    Raises:
        ValueError: a field out of its range.
    """

    name: str
    preprocessing: Preprocessing
    masks: Masks = "decoder"
    empty: Empty = "perfect"  # FG-ARI of frames and videos without an object
    background_counts: bool = False  # True: background is one more object of mBO
    skip_first: bool = False  # True: the first frame is seen and not scored
    n_videos: int | None = None  # only the first so many; None: all
    window: int | None = None  # frames that are a sample of their own, from initial slots on
    cover_end: bool = False  # True: frames left over give one more window, which overlaps the last

    def __post_init__(self) -> None:
        check(self, [(AT_LEAST_1, ("n_videos", "window"))])


ORIGINAL = Protocol("original", Preprocessing(None))
"""Labels at their own size, whole frames, whole videos, all of them: what we report on our data."""

PROTOCOLS: Mapping[str, str] = MappingProxyType(
    {
        "original": "labels at their own size, the whole frame squeezed into the model's square",
        "slotcontrast": "SlotContrast's code: the preprocessed square, every frame of a video, of "
        "YTVIS-2021 the first 210 videos",
        "slotcontrast_all": "the same, of YTVIS-2021 all videos",
        "slotcontrast_skip_first": "the same as slotcontrast, first frame of a video not scored, "
        "as its paper says",
        "videosaur": "YTVIS-2021 alone: pieces of 6 frames, labels at 224 x 224, all videos",
        "randsfq": "RandSF.Q, SmoothSA and their successors: frames and labels at 256 x 256, "
        "background an object of mBO, empty videos skipped, YTVIS in pieces of 20 frames",
    }
)
"""Names of the protocols, and what each is."""


def protocol_for(name: str, dataset: str) -> Protocol:
    """A protocol's rules for one data set.

    SlotContrast's rules of MOVi also serve the embedded sets, and those of YTVIS-2021 serve OVIS
    and DAVIS, for which none are published. Unlabelled pixels are background in MOVi, so that an
    empty video scores 1, and unknown elsewhere, so that it is skipped.

    Of ``randsfq`` two things cannot be had: its models see the true boxes of a MOVi video's first
    frame, and its YTVIS labels are those of HQ-YTVIS.

    Raises:
        ValueError: an unknown protocol or data set, or a protocol that has no rules for it.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol is called {name!r}; choose from {', '.join(PROTOCOLS)}")
    if dataset not in PREPROCESSING:
        raise ValueError(
            f"no data set is called {dataset!r}; choose from {', '.join(PREPROCESSING)}"
        )
    rendered = "movi" in dataset
    empty: Empty = "perfect" if rendered else "skip"
    if name == "original":
        return replace(ORIGINAL, empty=empty)
    if name == "randsfq":
        square = Preprocessing(256, "crop", interpolation="bilinear", antialias=True)
        window = None if rendered else 20
        return Protocol(
            name, square, empty="skip", background_counts=True, window=window, cover_end=True
        )
    published = PREPROCESSING[dataset.removeprefix("mini")]
    if name == "videosaur":
        if dataset != "ytvis2021":
            raise ValueError(f"protocol 'videosaur' has rules for ytvis2021 only, not {dataset}")
        return Protocol(name, replace(published, label_size=224), empty=empty, window=6)
    first = 210 if dataset == "ytvis2021" and name != "slotcontrast_all" else None
    skip = name == "slotcontrast_skip_first"
    return Protocol(name, published, empty=empty, skip_first=skip, n_videos=first)


def samples(clips: Iterable[Clip], protocol: Protocol) -> Iterator[Clip]:
    """What a protocol scores, one after the other: labels as scored, frames not yet resized.

    These are the clips, or their windows with ids such as ``a/00012[20:40]``. Windows follow each
    other, and frames left over are left out unless ``cover_end``. A video shorter than the window
    gives none.
    """
    for clip in islice(clips, protocol.n_videos):
        cut = protocol.preprocessing.crop(clip)
        if protocol.window is None:
            yield cut
            continue
        starts = [*clip_starts(len(cut.video), protocol.window, aligned=True)]
        if protocol.cover_end and starts and len(cut.video) % protocol.window:
            starts.append(len(cut.video) - protocol.window)
        for start in starts:
            end = start + protocol.window
            yield Clip(cut.video[start:end], cut.labels[start:end], f"{cut.id}[{start}:{end}]")
