"""(a) From RGB to soft masks: plain and fast, teacher and student, and lighter students.

Weights are untrained, which changes no cost. One block of frames, the first of a video. With the
ONNX packages installed the student takes part on onnxruntime too, frame by frame. With ``--bf16``
the fast models take part in half precision too, and how many patches keep their slot is told; what
that costs trained models is measured by ``slotmatch.experiments.precision``.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.comparison import Comparison, Settings, random_video
from slotmatch.model import ModelConfig, Preset, VideoSlotModel
from slotmatch.model.plain import as_written
from slotmatch.profiling import milliseconds, peak_memory, segmenting, take_turns, time_parts
from slotmatch.reporting.results import FIDELITY
from slotmatch.settings import Precision

__all__ = ["measure"]

ONNX = ("onnx", "onnxscript", "onnxruntime")
SAME = FIDELITY["same_slot"]


@dataclass(frozen=True)
class Contender:
    """One way to get masks: a model, whose masks they are, and the precision."""

    config: ModelConfig
    plain: bool = False
    decode: bool = True
    precision: Precision = "no"

    def build(self, device: str = "cpu") -> VideoSlotModel:
        """The model, untrained and in evaluation mode."""
        model = VideoSlotModel(self.config, pretrained=False).eval().to(device)
        return as_written(model) if self.plain else model

    def facts(self, model: VideoSlotModel) -> dict[str, float]:
        """What is known without a clock."""
        needed = segmenting(model, decode=self.decode)
        return {"parameters": needed.parameters, "GFLOP": needed.gflop}


def contenders(preset: Preset, *, bf16: bool = False) -> dict[str, Contender]:
    """What takes part, by name, in half precision too if asked."""
    teacher, student = preset.teacher, preset.student
    narrow = student.decoder_hidden // 4
    found = {
        "plain teacher": Contender(teacher, plain=True),
        "plain student": Contender(student, plain=True),
        "fast teacher": Contender(teacher),
        "fast student": Contender(student),
        f"student, decoder {narrow}": Contender(replace(student, decoder_hidden=narrow)),
        "student, attention masks": Contender(student, decode=False),
    }
    halves = ("fast teacher", "fast student", "student, attention masks") if bf16 else ()
    return found | {f"{name}, bf16": replace(found[name], precision="bf16") for name in halves}


def measure(settings: Settings) -> Iterator[Comparison]:
    """A comparison with the plain teacher for each size."""
    for name, preset in settings.sizes.items():
        entries = contenders(preset, bf16=settings.bf16)
        models = {entry: contender.build(settings.device) for entry, contender in entries.items()}
        facts = {entry: entries[entry].facts(model) for entry, model in models.items()}
        for entry, contender in entries.items():
            if contender.precision != "no":
                facts[entry][SAME] = same_slot(models[entry], contender, settings.frames)
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
    video = frames_of(contender, n_frames)
    return lambda: time_parts(model, video, decode=contender.decode, precision=contender.precision)


def frames_of(contender: Contender, n_frames: int) -> np.ndarray:
    """Noise of the size that a model sees."""
    assert contender.config.image_size is not None
    return random_video(n_frames, contender.config.image_size)


def same_slot(model: VideoSlotModel, contender: Contender, n_frames: int) -> float:
    """Percentage of patches whose slot is that of the same model in single precision."""
    video = torch.from_numpy(frames_of(contender, n_frames).transpose(0, 3, 1, 2))
    owners = []
    for precision in ("no", contender.precision):
        (output,) = model.stream(
            video[:, None], chunk=n_frames, decode=contender.decode, precision=precision
        )
        owners.append(output.segmentation.argmax(dim=2))
    return 100 * float((owners[0] == owners[1]).float().mean())


def prepare_onnx(file: Path, n_frames: int, n_threads: int) -> Callable[[], dict[str, float]]:
    """The same job on onnxruntime."""
    from slotmatch.sharing.onnx import OnnxModel

    model = OnnxModel(file, n_threads=n_threads)
    video = random_video(n_frames, model.image_size).transpose(0, 3, 1, 2)
    return lambda: {"total": milliseconds(lambda: model(video.astype(np.float32) / 255)) / n_frames}
