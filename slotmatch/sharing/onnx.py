"""A model as one ONNX file that takes a video frame by frame, and the same model on onnxruntime.

The file needs neither this package nor torch: with ``frames`` (T,3,S,S) float32 in [0, 1], RGB,
squares of the size the file's metadata name::

    session = onnxruntime.InferenceSession("student.onnx")
    state = np.zeros(session.get_inputs()[1].shape, np.float32)
    for t, frame in enumerate(frames):
        feed = {"frame": frame[None], "state": state, "first": np.array(t == 0)}
        masks, attention, slots, state = session.run(None, feed)

Shapes: K slots, D slot width, P patches, S image side.
"""

import copy
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from slotmatch import paths
from slotmatch.extras import require
from slotmatch.model import VideoSlotModel
from slotmatch.model.modules import LearnedSlots

__all__ = ["INPUTS", "OUTPUTS", "OnnxModel", "export_onnx"]

FILE_FORMAT = "slotmatch onnx 1"
INPUTS = ("frame", "state", "first")
OUTPUTS = ("masks", "attention", "slots", "next_state")


def export_onnx(model: VideoSlotModel, path: str | os.PathLike[str]) -> Path:
    """Write one step of a model, from frame and state to masks and next state; returns the path.

    Inputs are ``frame`` (1,3,S,S), already a square of the model's size with values in [0, 1];
    ``state`` (1,K,D), the ``next_state`` of the frame before; and ``first``, a bool without axes.
    Where it is true the file's own initial slots take the place of ``state``, and slot attention
    takes the iterations of a first frame. Outputs are ``masks`` and ``attention`` (1,K,P), which
    both sum to one over slots, ``slots`` (1,K,D) and ``next_state`` (1,K,D). All are float32.

    The file's metadata hold ``format``, ``image_size``, ``grid`` (patches a side), ``n_slots``,
    ``slot_dim`` and ``config``, the model's config as JSON.

    Raises:
        ValueError: a model without backbone, or one that draws its initial slots.
        RuntimeError: the packages that write ONNX are not installed.
    """
    config = model.config
    if model.backbone is None:
        raise ValueError(
            "this model has no backbone, so it cannot see a frame: export one that has"
        )
    if not isinstance(model.initial_slots, LearnedSlots):
        raise ValueError(
            f'initial slots "{config.initial_slots}" are drawn anew for every video, which a file '
            'cannot do: export a model with initial_slots="learned"'
        )
    require("onnx", "onnx", "onnxscript")
    side = model.backbone.image_size
    example = (
        torch.zeros(1, 3, side, side),
        torch.zeros(1, config.n_slots, config.slot_dim),
        torch.tensor(True),
    )
    program = torch.onnx.export(
        _Step(model).eval(),
        example,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.model.metadata_props.update(
        format=FILE_FORMAT,
        image_size=str(side),
        grid=str(config.grid),
        n_slots=str(config.n_slots),
        slot_dim=str(config.slot_dim),
        config=json.dumps(asdict(config)),
    )
    path = Path(path)
    with paths.atomic(path) as temporary:
        program.save(temporary)
    return path


class _Step(nn.Module):
    """One frame of a model, in single precision on the CPU; the model itself stays as it is."""

    def __init__(self, model: VideoSlotModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu()
        assert self.model.backbone is not None
        network = self.model.backbone.network
        resamples = isinstance(network, VisionTransformer) and network.dynamic_img_size
        if resamples:
            # Resample the position embedding once: ONNX would do so for every frame, and otherwise.
            side = self.model.backbone.image_size
            network.set_input_size(img_size=(side, side))
            network.dynamic_img_size, network.patch_embed.flatten = False, True

    def forward(self, frame: Tensor, state: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        model, config = self.model, self.model.config
        assert model.backbone is not None
        features = model.transform(model.backbone.patch_features(frame))
        keys, values = model.slot_attention.project(features)
        slots = torch.where(first, model.initial_slots(1), state)
        # Iterations that only one kind of frame takes come before those that both take.
        extra = config.first_iterations - config.later_iterations
        if extra:
            further, _ = model.slot_attention.iterate(slots, keys, values, abs(extra))
            slots = torch.where(first if extra > 0 else ~first, further, slots)
        common = min(config.first_iterations, config.later_iterations)
        slots, attention = model.slot_attention.iterate(slots, keys, values, common)
        masks, _ = model.decoder(slots, reconstruct=False)
        return masks, attention, slots, model.predictor(slots)


class OnnxModel:
    """A file of ``export_onnx`` on onnxruntime, which is how the file is checked and timed.

    Attributes:
        image_size: side S of the frames it takes.
        grid: patches a side, so that P = grid * grid.
        n_slots: K.
        slot_dim: D.

    Raises:
        ValueError: an ONNX file that ``export_onnx`` did not write.
        RuntimeError: onnxruntime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, n_threads: int = 0) -> None:
        """``n_threads``: threads within an operation; 0: one for each core."""
        require("onnx", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        self.session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
        header: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        if header.get("format") != FILE_FORMAT:
            raise ValueError(
                f"{path} was not written by slotmatch.sharing.onnx.export_onnx: its format is "
                f"{header.get('format')!r}, not {FILE_FORMAT!r}"
            )
        self.config: dict[str, Any] = json.loads(header["config"])
        self.image_size, self.grid = int(header["image_size"]), int(header["grid"])
        self.n_slots, self.slot_dim = int(header["n_slots"]), int(header["slot_dim"])

    def step(
        self, frame: NDArray[np.float32], state: NDArray[np.float32] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """The ``OUTPUTS`` for one frame (3,S,S); its ``next_state`` goes in with the next frame.

        Without a ``state`` the frame is a video's first.
        """
        first = state is None
        if state is None:
            state = np.zeros((1, self.n_slots, self.slot_dim), np.float32)
        feed = {"frame": frame[None], "state": state, "first": np.array(first)}
        return dict(zip(OUTPUTS, self.session.run(OUTPUTS, feed), strict=True))

    def __call__(self, frames: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Masks (T,K,P) of a video given as frames (3,S,S)."""
        state, masks = None, []
        for frame in frames:
            output = self.step(frame, state)
            state = output["next_state"]
            masks.append(output["masks"])
        return np.concatenate(masks)
