"""A model as one ONNX file that takes a video frame by frame, and the same model on onnxruntime.

The file needs neither this package nor torch: with ``frames`` (T,3,S,S) float32 in [0, 1], RGB,
squares of the size the file's metadata name::

    session = onnxruntime.InferenceSession("student.onnx")
    state = np.zeros(session.get_inputs()[1].shape, np.float32)
    for t, frame in enumerate(frames):
        feed = {"frame": frame[None], "state": state, "first": np.array(t == 0)}
        masks, attention, slots, state = session.run(None, feed)

Given frames to calibrate it, the backbone's convolutions compute in int8, in a smaller file; its
inputs and outputs are the same.

Shapes: K slots, D slot width, P patches, S image side.
"""

import copy
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from slotmatch import paths
from slotmatch.backbones import resize_frames
from slotmatch.data import Clip
from slotmatch.data.preprocessing import float_frames
from slotmatch.extras import require
from slotmatch.model import VideoSlotModel
from slotmatch.model.modules import LearnedSlots

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["INPUTS", "OUTPUTS", "OnnxModel", "calibration_frames", "export_onnx", "frames_of"]

FILE_FORMAT = "slotmatch onnx 1"
INPUTS = ("frame", "state", "first")
OUTPUTS = ("masks", "attention", "slots", "next_state")
NETWORK = "model.backbone.network."
"""How the names of the backbone network's weights begin in a file."""
N_FLOAT = 6
"""The network's first convolutions, which are float always."""
BOUNDS = ("Clip", "Relu")
"""Activations that a range of int8 can take in: they need no operation of their own."""


def export_onnx(
    model: VideoSlotModel,
    path: str | os.PathLike[str],
    *,
    calibration: NDArray[np.float32] | None = None,
) -> Path:
    """Write one step of a model, from frame and state to masks and next state; returns the path.

    Inputs are ``frame`` (1,3,S,S), already a square of the model's size with values in [0, 1];
    ``state`` (1,K,D), the ``next_state`` of the frame before; and ``first``, a bool without axes.
    Where it is true the file's own initial slots take the place of ``state``, and slot attention
    takes the iterations of a first frame. Outputs are ``masks`` and ``attention`` (1,K,P), which
    both sum to one over slots, ``slots`` (1,K,D) and ``next_state`` (1,K,D). All are float32.

    The file's metadata hold ``format``, ``image_size``, ``grid`` (patches a side), ``n_slots``,
    ``slot_dim`` and ``config``, the model's config as JSON.

    With ``calibration``, frames (N,3,S,S) as the file takes them (``calibration_frames``), the
    convolutions of the backbone's network after the first six compute in int8: weights with a scale
    for each output channel, activations with the range that they have on these frames. All else
    stays float, and the metadata add ``precision``, ``int8``. What that changes in the models that
    come with the package is measured by ``python -m slotmatch.experiments.precision``.

    Raises:
        ValueError: a model without backbone, or one that draws its initial slots; calibration
            frames of another shape, type or range, or for a backbone without convolutions after
            its first six, such as a ViT.
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
    if calibration is not None:
        require("onnx", "onnxruntime")
        _check_calibration(calibration, side)
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
        if calibration is None:
            program.save(temporary)
        else:
            _save_int8(program.model_proto, temporary, calibration)
    return path


def frames_of(video: NDArray[np.uint8], image_size: int) -> NDArray[np.float32]:
    """A video (T,H,W,3) as frames (T,3,S,S), squares that a file of this size takes."""
    return resize_frames(float_frames(np.ascontiguousarray(video)), image_size).numpy()


def calibration_frames(clips: Iterable[Clip], image_size: int) -> NDArray[np.float32]:
    """Two frames of each clip, after a quarter and three quarters of it: (2N,3,S,S).

    Take clips of the kind that the model was trained on, never those it is to be scored on.
    """
    videos = [clip.video for clip in clips]
    places = [[len(video) // 4, 3 * len(video) // 4] for video in videos]
    return np.concatenate(
        [frames_of(video[two], image_size) for video, two in zip(videos, places, strict=True)]
    )


def _check_calibration(frames: NDArray[np.float32], side: int) -> None:
    fits = frames.ndim == 4 and len(frames) and frames.shape[1:] == (3, side, side)
    if frames.dtype != np.float32 or not fits or not (frames.min() >= 0 and frames.max() <= 1):
        raise ValueError(
            f"calibration must be float32 (N,3,{side},{side}) with N of 1 or more and values in "
            f"[0, 1], got {frames.dtype} {frames.shape}: calibration_frames makes them of clips"
        )


def _save_int8(model: "ModelProto", path: Path, frames: NDArray[np.float32]) -> None:
    """Write a file of ``export_onnx`` with its backbone's convolutions in int8.

    The first ``N_FLOAT`` stay float, which for an EfficientNet are stem and two blocks: an error
    there reaches all else, and they have next to no weights. CPUs without VNNI add products of 8
    bits in pairs to 16 bits, which overflow: weights have 7 bits therefore, but for convolutions
    of one channel each, which are added up in 32 bits.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    convolutions = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1].startswith(NETWORK)
    ][N_FLOAT:]
    if not convolutions:
        raise ValueError(
            f"this backbone has no convolutions after its first {N_FLOAT}, which stay float: "
            "export it without calibration"
        )
    outputs = {node.output[0] for node in convolutions}
    bounds = [
        node for node in model.graph.node if node.op_type in BOUNDS and node.input[0] in outputs
    ]
    channels = {
        weight.name: weight.dims[1]
        for weight in model.graph.initializer
        if weight.name.startswith(NETWORK) and len(weight.dims) > 1
    }
    whole = {"quant_type": QuantType.QInt8, "axis": 0, "symmetric": True, "reduce_range": False}
    overrides = {node.input[1]: [whole] for node in convolutions if channels[node.input[1]] == 1}
    model.metadata_props.add(key="precision", value="int8")
    add_pre_process_metadata(model)  # the export has folded and inferred what there is
    quantize_static(
        model,
        path,
        _Feeds(model, frames),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", *BOUNDS],
        nodes_to_quantize=[node.name for node in [*convolutions, *bounds]],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"TensorQuantOverrides": overrides},
    )


class _Feeds:
    """What onnxruntime calibrates with: the inputs for one frame after the other, each a first."""

    def __init__(self, model: "ModelProto", frames: NDArray[np.float32]) -> None:
        (state,) = (given for given in model.graph.input if given.name == "state")
        shape = [axis.dim_value for axis in state.type.tensor_type.shape.dim]
        self.rest = {"state": np.zeros(shape, np.float32), "first": np.array(True)}
        self.frames = iter(frames)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next inputs, or None after the last."""
        frame = next(self.frames, None)
        return None if frame is None else {"frame": frame[None], **self.rest}


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
        precision: ``"int8"`` if its backbone's convolutions are, else ``"no"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that ``export_onnx`` did not write, or that is damaged.
        RuntimeError: onnxruntime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, n_threads: int = 0) -> None:
        """``n_threads``: threads within an operation; 0: one for each core."""
        require("onnx", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            self.session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own, which share no other class
            raise ValueError(f"{path} is damaged or no ONNX file: {error}") from error
        header: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        if header.get("format") != FILE_FORMAT:
            raise ValueError(
                f"{path} was not written by slotmatch.sharing.onnx.export_onnx: its format is "
                f"{header.get('format')!r}, not {FILE_FORMAT!r}"
            )
        self.config: dict[str, Any] = json.loads(header["config"])
        self.image_size, self.grid = int(header["image_size"]), int(header["grid"])
        self.n_slots, self.slot_dim = int(header["n_slots"]), int(header["slot_dim"])
        self.precision = header.get("precision", "no")

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

    def steps(
        self, frames: Iterable[NDArray[np.float32]]
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The ``OUTPUTS`` for each frame (3,S,S) of a video."""
        state = None
        for frame in frames:
            output = self.step(frame, state)
            state = output["next_state"]
            yield output

    def __call__(self, frames: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Masks (T,K,P) of a video given as frames (3,S,S)."""
        return np.concatenate([output["masks"] for output in self.steps(frames)])
