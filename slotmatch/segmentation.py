"""Your own video in, slot masks out, a few frames at a time.

Shapes: T frames of H x W pixels, K slots.
"""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, zip_longest
from pathlib import Path

import av
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from slotmatch import paths
from slotmatch.data.preprocessing import unit_floats
from slotmatch.data.video import Video, read_frames, show_of, timed_frames
from slotmatch.metrics import label_maps
from slotmatch.model import VideoSlotModel, load
from slotmatch.model.network import CHUNK
from slotmatch.palette import blend, slot_colors
from slotmatch.progress import hidden
from slotmatch.settings import Masks, Precision, check_choice

__all__ = ["segment", "segment_blocks", "write_masks", "write_overlay"]

FORMATS = (".mp4", ".m4v", ".mov", ".mkv")
"""Suffixes of overlays: containers that keep H.264 and a time for each frame."""
LONGEST_SIDE = 16_384
"""Pixels of an overlay's, as its encoder has it."""
RATES = (Fraction(1, 1000), Fraction(1000))
"""Frames a second of an overlay, from and to."""
TICK = Fraction(1, 90_000)
"""Seconds that an overlay's times are whole numbers of, as usual for video."""


def segment(
    video: Video,
    model: VideoSlotModel | str | os.PathLike[str],
    *,
    chunk: int = CHUNK,
    masks: Masks = "decoder",
    precision: Precision = "no",
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> NDArray[np.integer]:
    """Slot that owns each pixel of a video: label maps (T,H,W) at the video's own size.

    Labels are slot numbers 0 to K - 1; a slot keeps its number for the whole video, and no slot is
    background by rule. The maps are uint8, or int32 with more than 256 slots. Masks are enlarged
    bilinearly before the largest is taken (`slotmatch.metrics.label_maps`), as in the evaluation.

    Frames are read, encoded and decoded ``chunk`` at a time and the slots carried on, which gives
    what the whole video gives at once; so memory beyond the result does not grow with T. Where even
    the result is too large, see ``segment_blocks``.

    The backbone sees every frame squeezed into a square, as in training, and the masks are
    stretched back: a frame much wider than high loses detail, so cut it first where that matters.

    Args:
        video: uint8 array (T,H,W,3) in RGB, tensor (T,3,H,W) of uint8 or of floats in [0, 1], a
            folder of images in the natural order of their names, a video file, a file of several
            pictures, or any iterable of frames, each an array, a tensor or a picture's path.
        model: a model with a backbone, or what `slotmatch.model.load` takes.
        chunk: frames at a time; changes speed and memory only.
        masks: ``"decoder"``, as SlotContrast scores, or slot attention's, which need no decoder.
        precision: ``"bf16"`` or, on a GPU, ``"fp16"`` for products in half precision; ``"no"`` for
            single (`slotmatch.precision`). Most pixels keep their slot, not all.
        device: where to compute; the model is moved there. None: where it is.
        seed: draws the initial slots of a model that samples them.
        progress: show a bar; None: in a terminal only.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without images.
        ValueError: a video without frames, of another shape or type, with values outside [0, 1],
            or in a file that is damaged; a model without backbone; a chunk below 1; an unknown
            kind of masks; a precision that is unknown or that the device does not have.
        TypeError: something that is no video at all.
    """
    blocks = segment_blocks(
        video,
        model,
        chunk=chunk,
        masks=masks,
        precision=precision,
        device=device,
        seed=seed,
        progress=progress,
    )
    return np.concatenate(list(blocks))


def segment_blocks(
    video: Video,
    model: VideoSlotModel | str | os.PathLike[str],
    *,
    chunk: int = CHUNK,
    masks: Masks = "decoder",
    precision: Precision = "no",
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Iterator[NDArray[np.integer]]:
    """The label maps of ``segment`` in blocks of at most ``chunk`` frames: (t,H,W) each.

    For videos whose label maps do not fit in memory. Arguments and errors are those of ``segment``.
    """
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number of frames from 1 on, got {chunk!r}")
    check_choice("masks", masks, Masks)
    if not isinstance(model, VideoSlotModel):
        model = load(model)
    if model.backbone is None:
        raise ValueError("this model has no backbone, so it cannot see a video: load one that has")
    model.to(device)
    frames = read_frames(video)
    if (first := next(frames, None)) is None:
        raise ValueError("the video has no frames: give at least one")
    height, width = first.shape[1:]
    dtype: type[np.integer] = np.uint8 if model.config.n_slots <= 256 else np.int32
    outputs = model.stream(
        (frame[None] for frame in chain([first], frames)),
        chunk=chunk,
        decode=masks == "decoder",
        precision=precision,
        generator=torch.Generator().manual_seed(seed),
    )
    with tqdm(total=show_of(video).n_frames, unit="frame", disable=hidden(progress)) as bar:
        for output in outputs:
            labels = label_maps(output.segmentation[0], (height, width)).astype(dtype)
            yield labels
            bar.update(len(labels))


def write_masks(labels: Iterable[np.ndarray], path: str | os.PathLike[str]) -> Path:
    """Write label maps as one ``.npz`` file or as a folder of palette PNGs; returns the path.

    A path that ends in ``.npz`` gets the array ``labels`` (T,H,W), compressed. Any other is a
    folder that gets ``00000.png``, ``00001.png``, ...: 8-bit images whose values are the slots and
    whose palette has the colours of `slotmatch.palette.slot_colors`. Nothing is left half written.

    Args:
        labels: an array (T,H,W) or any other iterable of maps (H,W), such as the frames of
            ``segment_blocks``.
        path: the file or the folder.

    Raises:
        FileExistsError: the folder is there and not empty.
        ValueError: no map, maps that are not integers (H,W), or labels a PNG cannot hold.
    """
    path = Path(path)
    if path.suffix == ".npz":
        maps = [_checked(frame) for frame in labels]
        if not maps:
            raise ValueError("there are no label maps to write")
        with paths.atomic(path) as temporary:
            np.savez_compressed(temporary, labels=np.stack(maps))
        return path
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} is a file or not empty: give a new or an empty folder")
    palette = np.rint(255 * slot_colors(256)).astype(np.uint8).tobytes()
    with paths.atomic(path) as folder:
        folder.mkdir()
        for number, frame in enumerate(labels):
            frame = _checked(frame)
            if frame.min() < 0 or frame.max() > 255:
                raise ValueError(
                    f"a PNG holds labels 0 to 255, frame {number} has {frame.min()} to "
                    f"{frame.max()}: write a .npz file"
                )
            image = Image.fromarray(frame.astype(np.uint8))
            image.putpalette(palette)  # turns grey into palette indices
            image.save(folder / f"{number:05d}.png")
        if not any(folder.iterdir()):
            raise ValueError("there are no label maps to write")
    return path


def write_overlay(
    video: Video,
    labels: Iterable[np.ndarray],
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    opacity: float = 0.5,
    progress: bool | None = None,
) -> Path:
    """Write the video with each slot's region painted in the slot's colour; returns the path.

    H.264 in the container the suffix names: ``.mp4``, ``.m4v``, ``.mov`` or ``.mkv``. Frames keep
    the times and the pixel aspect of the video's file; one without a time follows at the file's
    rate, and one that is not later than the one before right after it. An odd width or height gains
    a repeated column or row, which the format needs.

    Args:
        video: what ``segment`` took; it is read again, frame by frame, so not what can be read
            only once.
        labels: an array (T,H,W) or any other iterable of maps (H,W), one a frame.
        path: the file to write.
        fps: frames a second, all equally long, from 0.001 to 1000; None: the times of the video
            file, 12 a second for other videos.
        opacity: share of the colour in the mix, in [0, 1].
        progress: show a bar; None: in a terminal only.

    Raises:
        IsADirectoryError: a folder is at ``path``.
        ValueError: frames and maps are not equally many or large, or too large for the format, the
            rate is out of its range, the suffix names another format, or the video cannot be read
            (see ``segment``).
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"{path.name!r} names no format of overlays: end it in {known}")
    paths.check_output(path)
    show = show_of(video)
    slowest, fastest = RATES
    if fps is not None and not slowest <= fps <= fastest:
        raise ValueError(f"fps must be from {float(slowest):g} to {float(fastest):g}, got {fps}")
    rate = min(max(Fraction(float(fps or show.rate)).limit_denominator(1001), slowest), fastest)
    pictures = _painted(video, labels, opacity)
    bar = tqdm(pictures, total=show.n_frames, unit="frame", disable=hidden(progress))
    with paths.atomic(path) as temporary:
        try:
            with av.open(str(temporary), "w") as container:
                stream = container.add_stream("libx264", rate)
                stream.options = {"crf": "18"}
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = TICK
                for number, (picture, ticks) in enumerate(_in_ticks(bar, rate, fps is None)):
                    if number == 0:
                        stream.height, stream.width = picture.shape[:2]
                        stream.codec_context.sample_aspect_ratio = show.pixel_aspect
                    frame = av.VideoFrame.from_ndarray(picture)
                    frame.pts, frame.time_base = ticks, TICK
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
        except av.FFmpegError as error:
            raise ValueError(f"{path} could not be written: {error}") from error
    return path


def _in_ticks(
    pictures: Iterable[tuple[NDArray[np.uint8], Fraction | None]], rate: Fraction, timed: bool
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Pictures with their times in ticks, from 0 on and ever later: no container takes others.

    Those without a time, or all if not ``timed``, follow the one before at the rate.
    """
    start, seconds = None, -1 / rate
    for picture, time in pictures:
        after = seconds + 1 / rate
        if time is None or not timed:
            seconds = after
        else:
            start = time - after if start is None else start
            seconds = max(time - start, seconds + TICK)
        yield picture, seconds // TICK


def _painted(
    video: Video, labels: Iterable[np.ndarray], opacity: float
) -> Iterator[tuple[NDArray[np.uint8], Fraction | None]]:
    """Frames (H,W,3) under their label maps, H and W made even, and their times."""
    timed = None
    for number, (timed, owners) in enumerate(zip_longest(timed_frames(video), labels)):
        if timed is None or owners is None:
            short = "video ends" if timed is None else "label maps end"
            raise ValueError(f"the {short} after {number} frames, the other goes on")
        frame, time = timed
        owners = _checked(owners)
        pixels = unit_floats(frame).mul(255).round().to(torch.uint8)
        shown = rearrange(pixels, "c h w -> h w c").cpu().numpy()
        picture = blend(shown, owners, opacity=opacity)
        height, width = owners.shape
        if max(height, width) > LONGEST_SIDE:
            raise ValueError(
                f"an overlay has at most {LONGEST_SIDE} pixels a side, the video {width} x "
                f"{height}: cut or shrink it first"
            )
        yield np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"), time
    if timed is None:
        raise ValueError("the video has no frames: give at least one")


def _checked(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"label maps must be integers (H,W), got {labels.dtype} {labels.shape}")
    return labels
