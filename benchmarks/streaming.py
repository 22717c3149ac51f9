"""(e) Memory of ``segment`` against the length of the video, which is read from a file."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from benchmarks.comparison import Comparison, Settings
from slotmatch.model import PRESETS, VideoSlotModel
from slotmatch.profiling import peak_memory
from slotmatch.segmentation import segment, segment_blocks

__all__ = ["measure"]


def measure(settings: Settings) -> Iterator[Comparison]:
    """Memory of the mini student for three lengths, block by block and with all label maps kept."""
    lengths = (4, 8, 16) if settings.quick else (24, 240, 2400)
    config = PRESETS["mini"].student
    assert config.image_size is not None
    memory = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            file = Path(folder) / f"{length}.mp4"
            write_video(file, length, config.image_size)
            for way in ("segment_blocks", "segment"):
                memory[f"{way}, {length} frames"] = peak_memory(
                    prepare, file, way, settings.device, device=settings.device
                )
    size = f"{config.image_size} x {config.image_size}"
    yield Comparison(f"(e) memory, mini student, {size}", "", "", memory=memory)


def prepare(file: Path, way: str, device: str) -> Callable[[], object]:
    """The job that segments a video, its label maps dropped one block after the other or kept."""
    model = VideoSlotModel(PRESETS["mini"].student, pretrained=False).eval().to(device)

    def job() -> None:
        if way == "segment":
            segment(file, model, progress=False)
        else:
            for _ in segment_blocks(file, model, progress=False):
                pass

    return job


def write_video(path: Path, n_frames: int, side: int) -> None:
    """A video file of a bright square that wanders over a grey background."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 12)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for t in range(n_frames):
            frame = np.full((side, side, 3), 90, np.uint8)
            left = t % (side - side // 4)
            frame[left : left + side // 4, left : left + side // 4] = (230, 160, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
