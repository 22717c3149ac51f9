"""The slot-mask browser: a video with its slots painted on, to step through in a page."""

import base64
import hashlib
import html
import io
import json
import math
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import anywidget
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from slotmatch import palette, paths
from slotmatch.reporting import plots

__all__ = ["SlotBrowser", "SlotWidget", "asset"]

_NO_SLOT = 255  # in a stored label picture; JavaScript knows the same number
_MAX_FRAME_SIDE = 320
_MAX_MASK_SIDE = 48
_CANVAS_SIDE = 384
_PNG_BUDGET = 1_000_000  # bytes of all frames; above it they become JPEG
_CONTACT_FRAMES = 6
_STATE = ("frame", "selected", "opacity")


@dataclass(frozen=True)
class _Panel:
    """One picture of the browser: 8-bit masks and the colour group of each slot.

    ``values`` is uint8: soft masks (t,k,h,w), 255 for 1, or label maps (t,h,w), 255 for no slot.
    ``groups[k]`` is the colour and the checkbox of slot k.
    """

    name: str
    values: np.ndarray
    groups: tuple[int, ...]
    is_truth: bool = False

    @property
    def is_soft(self) -> bool:
        return self.values.ndim == 4

    def groups_at(self, frame: int, size: tuple[int, int]) -> np.ndarray:
        """Colour group of each pixel of a frame at ``size`` (h, w), -1 for none: int64 (h,w)."""
        values = self.values[frame]
        groups = np.append(self.groups, -1)
        if self.is_soft:
            masks = torch.from_numpy(values).float()[None]
            large = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
            return groups[large[0].argmax(0).numpy()]
        resized = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
        return groups[np.where(resized == _NO_SLOT, len(self.groups), resized)]


def asset(name: str) -> str:
    """The text of a file of this package that goes into pages."""
    return (files("slotmatch.browser") / name).read_text(encoding="utf-8")


class _State(traitlets.HasTraits):
    """What the reader and Python set in turn: ``frame``, ``selected`` and ``opacity``, checked."""

    frame = traitlets.Int(0).tag(sync=True)
    selected = traitlets.List(traitlets.Int()).tag(sync=True)
    opacity = traitlets.Float(0.55).tag(sync=True)

    def __init__(self, n_frames: int, n_slots: int, **values: object) -> None:
        self._n_frames = n_frames
        self._n_slots = n_slots
        super().__init__(**values)

    @property
    def values(self) -> dict[str, int | float | list[int]]:
        """All of it by name."""
        return {name: getattr(self, name) for name in _STATE}

    @traitlets.validate("frame")
    def _checked_frame(self, proposal: traitlets.Bunch) -> int:
        if not 0 <= proposal.value < self._n_frames:
            raise traitlets.TraitError(
                f"frame must be 0 to {self._n_frames - 1}, got {proposal.value}"
            )
        return proposal.value

    @traitlets.validate("selected")
    def _checked_selected(self, proposal: traitlets.Bunch) -> list[int]:
        slots = proposal.value
        if len(set(slots)) < len(slots) or not set(slots) <= set(range(self._n_slots)):
            raise traitlets.TraitError(
                f"selected must be slots 0 to {self._n_slots - 1}, each once, got {slots}"
            )
        return sorted(slots)

    @traitlets.validate("opacity")
    def _checked_opacity(self, proposal: traitlets.Bunch) -> float:
        if not 0 <= proposal.value <= 1:
            raise traitlets.TraitError(f"opacity must be in [0,1], got {proposal.value}")
        return proposal.value


class SlotWidget(_State, anywidget.AnyWidget):
    """A ``SlotBrowser`` in a running kernel, made by ``SlotBrowser.widget``.

    It can be linked with other widgets, such as a slider of ipywidgets, and laid out among them.
    """

    _esm = asset("browser.mjs")
    _css = asset("browser.css")
    content = traitlets.Dict().tag(sync=True)


class SlotBrowser(_State):
    """A video and its slot masks as a figure to operate, without a kernel and without a network.

    Panels stand side by side, share one time slider, one opacity slider and one checkbox for each
    slot, and one colour for each slot. In a notebook or a book the object shows itself; a static
    sheet of frames stands in wherever scripts don't run. The same content gives the same bytes.

    In a running kernel ``widget()`` shows the same, and what its reader does can be read here, or
    set: ``frame``, a position among the kept frames; ``selected``, the slots to see alone, an empty
    list where all are to be seen; and ``opacity``, in [0,1]. They can be observed, as traits can,
    and are where a static page starts. Other values raise ``traitlets.TraitError``.

    Frames are stored at up to 320 pixels a side, as PNG, or as JPEG when the PNGs of all frames
    exceed 1 MB. Soft masks are stored as 8-bit grey PNGs at their own resolution, up to 48 pixels a
    side (averaged down from above), and enlarged bilinearly in the page before the largest is
    taken, as the evaluation does. Label maps are stored as they are and enlarged by nearest
    neighbour.

    Args:
        frames: the video, uint8 (T,H,W,3).
        masks: soft masks, float in [0,1] (T,K,h,w), as on the patch grid; or label maps, integers
            (T,h,w), each number from 0 a slot; or a dict of these by panel name, the first being
            the one that names the colours (the teacher).
        label: a title above the panels.
        truth: true objects, integers (T,h,w) with 0 for background, which stays unpainted. They get
            a panel of their own in which each object has the colour of the slot of the first panel
            that covers it best.
        correspondence: for each slot of the panels after the first, the slot of the first panel it
            answers to, as `slotmatch.losses.match_slots` returns for one clip; -1 for none.
            Default: slots with equal numbers correspond.
        max_frames: longer videos are thinned out by an even step to at most this many; None keeps
            all.

    Raises:
        ValueError: shapes, types or values that don't fit, with what was given and what to do.
    """

    def __init__(
        self,
        frames: ArrayLike,
        masks: ArrayLike | Mapping[str, ArrayLike],
        label: str = "",
        *,
        truth: ArrayLike | None = None,
        correspondence: ArrayLike | None = None,
        max_frames: int | None = 24,
    ) -> None:
        video = _checked_frames(frames)
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames must be 1 or more, or None for all, got {max_frames}")
        step = 1 if max_frames is None else math.ceil(len(video) / max_frames)
        given = dict(masks) if isinstance(masks, Mapping) else {"slots": masks}
        if not given:
            raise ValueError(
                "masks is an empty dict: give at least one panel, such as {'teacher': masks}"
            )
        if truth is not None and "truth" in given:
            raise ValueError(
                "two panels named 'truth': rename the one in masks, or drop the argument truth"
            )
        values = {
            name: _checked_masks(name, item, len(video))[::step] for name, item in given.items()
        }
        self._widget: SlotWidget | None = None
        self.label = label
        self.n_total = len(video)
        self.times = np.arange(0, self.n_total, step)
        self.frames = _shrunk(video[::step])
        groups = _groups([_n_slots(item) for item in values.values()], correspondence)
        self.n_slots = 1 + max(max(panel) for panel in groups)
        super().__init__(len(self.frames), self.n_slots)
        self.panels = [
            _Panel(name, _stored(item, self._size), panel)
            for (name, item), panel in zip(values.items(), groups, strict=True)
        ]
        if truth is not None:
            self.panels.insert(
                0, self._truth_panel(_checked_labels("truth", truth, self.n_total)[::step])
            )

    @property
    def _size(self) -> tuple[int, int]:
        return self.frames.shape[1], self.frames.shape[2]

    def _truth_panel(self, truth: np.ndarray) -> _Panel:
        reference = np.stack([self.panels[0].groups_at(t, self._size) for t in range(len(truth))])
        named = plots.align_truth(_resized_labels(truth, self._size), reference)
        # Objects without a partner come after all slots, also those that only later panels have.
        lonely = int(reference.max()) + 1
        named[named >= lonely] += self.n_slots - lonely
        n_groups = int(named.max(initial=0)) + 1
        if n_groups > _NO_SLOT:
            raise ValueError(
                f"truth holds too many objects ({n_groups} colours; at most {_NO_SLOT})"
            )
        values = np.where(named < 0, _NO_SLOT, named).astype(np.uint8)
        return _Panel("truth", values, tuple(range(n_groups)), is_truth=True)

    def picture(
        self,
        frame: int,
        *,
        opacity: float = 0.55,
        slots: Sequence[int] | None = None,
        side: int = _CANVAS_SIDE,
    ) -> Image.Image:
        """All panels of one of the kept frames side by side, as the page draws them.

        Args:
            frame: position among the kept frames.
            opacity: see ``palette.blend``.
            slots: the ones to paint; default all. The truth is always painted.
            side: pixels of a panel's longer side, rounded to a multiple of the frame's.

        Raises:
            ValueError: no such frame, or an opacity outside [0,1].
        """
        if not 0 <= frame < len(self.frames):
            raise ValueError(f"frame must be 0 to {len(self.frames) - 1}, got {frame}")
        height, width = _canvas_size(self._size, side)
        image = Image.fromarray(self.frames[frame])
        # Bilinear, as a canvas enlarges.
        ground = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        gap = np.full((height, 8, 3), 255, np.uint8)
        row = []
        for panel in self.panels:
            groups = panel.groups_at(frame, (height, width))
            if slots is not None and not panel.is_truth:
                groups = np.where(np.isin(groups, list(slots)), groups, -1)
            row += [gap, palette.blend(ground, groups, opacity=opacity)]
        return Image.fromarray(np.concatenate(row[1:], axis=1))

    @cached_property
    def png(self) -> bytes:
        """A sheet of up to six frames, a row for each panel: what shows where no script runs."""
        chosen = np.linspace(0, len(self.frames) - 1, min(_CONTACT_FRAMES, len(self.frames)))
        chosen = chosen.round().astype(int)
        rows = {
            panel.name: np.stack([panel.groups_at(t, self._size) for t in chosen])
            for panel in self.panels
        }
        with plots.style():
            figure = Figure(facecolor="white")
            FigureCanvasAgg(figure)
            plots.contact_sheet(figure, self.frames[chosen], rows, self.times[chosen])
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=96, metadata={"Software": None})
        # 256 colours are plenty for a stand-in, at a third of the bytes.
        sheet = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        return _encoded(sheet, "PNG")

    @cached_property
    def _content(self) -> dict[str, object]:
        """What a page gets to draw from; JavaScript reads these names."""
        n_groups = max(max(panel.groups) for panel in self.panels) + 1
        colors = np.rint(255 * palette.slot_colors(n_groups)).astype(int).tolist()
        return {
            "label": self.label,
            "canvas": _canvas_size(self._size, _CANVAS_SIDE)[::-1],
            "times": self.times.tolist(),
            "nTotal": self.n_total,
            "nSlots": self.n_slots,
            "frames": _frame_uris(self.frames),
            "groups": [
                {"name": str(k), "rgb": rgb, "color": "#{:02x}{:02x}{:02x}".format(*rgb)}
                for k, rgb in enumerate(colors)
            ],
            "panels": [
                {
                    "name": panel.name,
                    "soft": panel.is_soft,
                    "isTruth": panel.is_truth,
                    "size": panel.values.shape[:-3:-1],
                    "groups": panel.groups,
                    "images": [
                        _uri(
                            _encoded(Image.fromarray(item.reshape(-1, item.shape[-1])), "PNG"),
                            "png",
                        )
                        for item in panel.values
                    ],
                }
                for panel in self.panels
            ],
        }

    @property
    def html(self) -> str:
        """The browser as a fragment that can stand in any page, several times over."""
        names = ", ".join(panel.name for panel in self.panels)
        values = {"content": self._content} | self.values
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]
        # A "<" inside the script could end it early ("</script>") or hide its end ("<!--").
        payload = json.dumps({"id": digest} | values, separators=(",", ":")).replace("<", "\\u003c")
        title = f'<p class="sb-title">{html.escape(self.label)}</p>\n' if self.label else ""
        name = html.escape(self.label or f"slot masks: {names}")
        description = html.escape(
            f"Frames of the video with the slot masks of these panels: {names}"
        )
        return (
            f'<div class="slotmatch-browser" data-slotmatch="{digest}" '
            f'role="group" aria-label="{name}">\n'
            f"<style>\n{asset('browser.css')}</style>\n{title}"
            f'<img class="sb-static" alt="{description}" src="{_uri(self.png, "png")}">\n'
            f'</div>\n<script type="module">\n{asset("browser.mjs")}fill({payload});\n</script>\n'
        )

    def widget(self) -> SlotWidget:
        """The same for a running kernel, an anywidget: Jupyter, VS Code, Colab and marimo show it.

        There is one, so every place that shows it shows the same. It needs its kernel, so a saved
        notebook shows nothing of it: let the browser show itself there.
        """
        if self._widget is None:
            self._widget = SlotWidget(
                len(self.frames), self.n_slots, content=self._content, **self.values
            )
            for name in _STATE:
                traitlets.link((self, name), (self._widget, name))
        return self._widget

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page of its own that opens from disk, replacing ``path`` in one step."""
        page = string.Template(asset("page.html")).substitute(
            title=html.escape(self.label or "Slot masks"), body=self.html
        )
        with paths.atomic(path) as temporary:
            temporary.write_text(page, encoding="utf-8", newline="\n")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            "text/html": self.html,
            "image/png": base64.b64encode(self.png).decode("ascii"),
            "text/plain": repr(self),
        }

    def __repr__(self) -> str:
        names = ", ".join(panel.name for panel in self.panels)
        return (
            f"SlotBrowser({self.label!r}: {len(self.frames)} of {self.n_total} frames, "
            f"{self.n_slots} slots, panels {names})"
        )


def _checked_frames(frames: ArrayLike) -> np.ndarray:
    video = np.asarray(frames)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(
            f"frames must be uint8 (T,H,W,3), got {video.dtype} {video.shape}; "
            "for a float video (T,3,H,W) in [0,1] use "
            "(255 * video).round().astype('uint8').transpose(0, 2, 3, 1)"
        )
    if not video.size:
        raise ValueError(f"frames is empty {video.shape}: give at least one frame")
    return video


def _checked_masks(name: str, masks: ArrayLike, n_frames: int) -> np.ndarray:
    array = np.asarray(masks)
    if array.dtype == bool and array.ndim == 4:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.integer) and array.ndim == 3:
        return _checked_labels(name, array, n_frames)
    if not (np.issubdtype(array.dtype, np.floating) and array.ndim == 4):
        raise ValueError(
            f"masks of {name!r} must be soft masks, float (T,K,h,w), or label maps, integers "
            f"(T,h,w), got {array.dtype} {array.shape}; masks over patches (T,K,P) become "
            "(T,K,h,w) by einops.rearrange(masks, 't k (h w) -> t k h w', h=grid)"
        )
    _check_length(name, array, n_frames)
    if array.shape[1] > _NO_SLOT:
        raise ValueError(
            f"masks of {name!r} hold {array.shape[1]} slots, at most {_NO_SLOT} can be shown"
        )
    # Half precision leaves a softmax up to a thousandth above one.
    if not (array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
        raise ValueError(
            f"soft masks of {name!r} {array.shape} must be finite and in [0,1], got values from "
            f"{array.min()} to {array.max()} (nan if any is); take a softmax over the slots first"
        )
    return array


def _checked_labels(name: str, labels: ArrayLike, n_frames: int) -> np.ndarray:
    array = np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 3:
        raise ValueError(
            f"{name!r} must be label maps, integers (T,h,w), got {array.dtype} {array.shape}"
        )
    _check_length(name, array, n_frames)
    if array.min() < 0 or (name != "truth" and array.max() >= _NO_SLOT):
        raise ValueError(
            f"labels of {name!r} {array.shape} must be 0 to {_NO_SLOT - 1}, "
            f"got {array.min()} to {array.max()}; renumber them with "
            "np.unique(labels, return_inverse=True)"
        )
    return array


def _check_length(name: str, array: np.ndarray, n_frames: int) -> None:
    if len(array) != n_frames or not array.size:
        raise ValueError(
            f"{name!r} has shape {array.shape} but there are {n_frames} frames: "
            "give one non-empty mask set a frame"
        )


def _n_slots(masks: np.ndarray) -> int:
    return masks.shape[1] if masks.ndim == 4 else int(masks.max()) + 1


def _groups(n_slots: list[int], correspondence: ArrayLike | None) -> list[tuple[int, ...]]:
    """The colour group of each slot of each panel; slots that answer to none get new ones."""
    if correspondence is None:
        return [tuple(range(n)) for n in n_slots]
    if len(n_slots) == 1:
        raise ValueError("correspondence needs two panels: masks={'teacher': ..., 'student': ...}")
    answers = np.asarray(correspondence)
    first = n_slots[0]
    if answers.ndim != 1 or not np.issubdtype(answers.dtype, np.integer):
        raise ValueError(
            "correspondence must be integers (K,), one a slot, "
            f"got {answers.dtype} {answers.shape}; "
            "of match_slots(student, teacher) give the row of this clip"
        )
    if len(answers) < max(n_slots[1:]) or answers.min() < -1 or answers.max() >= first:
        raise ValueError(
            f"correspondence {answers.tolist()} must name, for each of {max(n_slots[1:])} slots, "
            f"one of the first panel's slots 0 to {first - 1}, or -1"
        )
    alone = np.flatnonzero(answers < 0)
    groups = answers.copy()
    groups[alone] = first + np.arange(len(alone))
    return [tuple(range(first)), *(tuple(groups[:n].tolist()) for n in n_slots[1:])]


def _shrunk(frames: np.ndarray) -> np.ndarray:
    """Frames of at most ``_MAX_FRAME_SIDE`` pixels a side: uint8 (t,h,w,3)."""
    height, width = frames.shape[1:3]
    factor = _MAX_FRAME_SIDE / max(height, width)
    if factor >= 1:
        return frames
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


def _stored(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks in 8 bits at the resolution that goes into the page."""
    if masks.ndim == 3:
        return _resized_labels(masks, size).astype(np.uint8)
    height, width = (min(side, _MAX_MASK_SIDE) for side in masks.shape[2:])
    small = np.stack(
        [
            F.interpolate(
                torch.from_numpy(item.astype(np.float32))[None], (height, width), mode="area"
            )[0]
            for item in masks
        ]
    )
    return np.rint(255 * np.clip(small, 0, 1)).astype(np.uint8)


def _resized_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label maps no larger than ``size`` (h, w), by nearest neighbour: same type (t,h,w)."""
    height, width = (min(pair) for pair in zip(labels.shape[1:], size, strict=True))
    rows = ((np.arange(height) + 0.5) * labels.shape[1] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[2] / width).astype(int)
    return labels[:, rows[:, None], columns]


def _canvas_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    factor = max(1, round(side / max(size)))
    return size[0] * factor, size[1] * factor


def _frame_uris(frames: np.ndarray) -> list[str]:
    images = [Image.fromarray(frame) for frame in frames]
    lossless = [_encoded(image, "PNG") for image in images]
    if sum(map(len, lossless)) <= _PNG_BUDGET:
        return [_uri(item, "png") for item in lossless]
    return [_uri(_encoded(image, "JPEG", quality=88, subsampling=0), "jpeg") for image in images]


def _encoded(image: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **({"optimize": True} | options))
    return buffer.getvalue()


def _uri(data: bytes, subtype: str) -> str:
    return f"data:image/{subtype};base64,{base64.b64encode(data).decode('ascii')}"
