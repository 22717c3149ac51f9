"""(a) From RGB to soft masks: plain and fast, teacher and student, and lighter students.

Weights are untrained, which changes no cost. One block of frames, the first of a video. With the
ONNX packages installed the student takes part on onnxruntime too, frame by frame.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.comparison import Comparison, Settings, random_video
from slotmatch.model import ModelConfig, Preset, VideoSlotModel
from slotmatch.model.plain import as_written
from slotmatch.profiling import peak_memory, segmenting, take_turns, time_parts

__all__ = ["measure"]

ONNX = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Contender:
    """One way to get masks: a model, and whether they are the decoder's or slot attention's."""

    config: ModelConfig
    plain: bool = False
    decode: bool = True

    def build(self, device: str = "cpu") -> VideoSlotModel:
        """The model, untrained and in evaluation mode."""
        model = VideoSlotModel(self.config, pretrained=False).eval().to(device)
        return as_written(model) if self.plain else model

    def facts(self, model: VideoSlotModel) -> dict[str, float]:
        """What is known without a clock."""
        needed = segmenting(model, decode=self.decode)
        return {"parameters": needed.parameters, "GFLOP": needed.gflop}


def contenders(preset: Preset) -> dict[str, Contender]:
    """What takes part, by name."""
    teacher, student = preset.teacher, preset.student
    narrow = student.decoder_hidden // 4
    return {
        "plain teacher": Contender(teacher, plain=True),
        "plain student": Contender(student, plain=True),
        "fast teacher": Contender(teacher),
        "fast student": Contender(student),
        f"student, decoder {narrow}": Contender(replace(student, decoder_hidden=narrow)),
        "student, attention masks": Contender(student, decode=False),
    }


def measure(settings: Settings) -> Iterator[Comparison]:
    """A comparison with the plain teacher for each size."""
    for name, preset in settings.sizes.items():
        entries = contenders(preset)
        models = {entry: contender.build(settings.device) for entry, contender in entries.items()}
        facts = {entry: entries[entry].facts(model) for entry, model in models.items()}
        jobs = {
            entry: timing(models[entry], contender, settings.frames)
            for entry, contender in entries.items()
        }
        memory = {
            entry: peak_memory(
                prepare, contender, settings.frames, settings.device, device=settings.device
            )
            for entry, contender in entries.items()
        }
        with tempfile.TemporaryDirectory() as folder:
            if settings.device == "cpu" and all(map(find_spec, ONNX)):
                from slotmatch.sharing.onnx import export_onnx

                file = export_onnx(models["fast student"], Path(folder) / "student.onnx")
                arguments = (file, settings.frames, torch.get_num_threads())
                jobs["student, ONNX"] = prepare_onnx(*arguments)
                memory["student, ONNX"] = peak_memory(prepare_onnx, *arguments)
                facts["student, ONNX"] = facts["fast student"]
            turns = take_turns(jobs, repeats=settings.repeats)
        yield Comparison(
            f"(a) inference, {name}", "ms per frame", "plain teacher", turns, memory, facts
        )


def prepare(contender: Contender, n_frames: int, device: str) -> Callable[[], object]:
    """The job whose memory counts."""
    return timing(contender.build(device), contender, n_frames)


def timing(
    model: VideoSlotModel, contender: Contender, n_frames: int
) -> Callable[[], dict[str, float]]:
    """The job whose time counts, which tells its parts' times itself."""
    assert contender.config.image_size is not None
    video = random_video(n_frames, contender.config.image_size)
    return lambda: time_parts(model, video, decode=contender.decode)


def prepare_onnx(file: Path, n_frames: int, n_threads: int) -> Callable[[], dict[str, float]]:
    """The same job on onnxruntime."""
    from slotmatch.sharing.onnx import OnnxModel

    model = OnnxModel(file, n_threads=n_threads)
    video = random_video(n_frames, model.image_size).transpose(0, 3, 1, 2)

    def job() -> dict[str, float]:
        started = time.perf_counter()
        model(video.astype(np.float32) / 255)
        return {"total": 1000 * (time.perf_counter() - started) / n_frames}

    return job
