"""Teacher and student: one recurrent slot model over frozen features, and its file format.

A frame's transformed features correct the slots that the previous frame predicted; a decoder turns
corrected slots into features and masks:

    s(t) = attention(prediction(t-1), f(t))        prediction(t) = predictor(s(t))

Shapes: B clips, T frames, K slots, D slot width, P patches, F feature width.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slotmatch import backbones, paths
from slotmatch.data.files import some
from slotmatch.features import weights_checksum
from slotmatch.modules import (
    LearnedSlots,
    MLPDecoder,
    SampledSlots,
    SlotAttention,
    SlotPredictor,
    feature_transform,
)
from slotmatch.presets import PRESETS, ModelConfig, Preset
from slotmatch.slotcontrast import describe, read_tensors, released_name
from slotmatch.slotcontrast import translate as read_released

__all__ = [
    "MASKS",
    "PRESETS",
    "ModelConfig",
    "Preset",
    "SlotOutput",
    "SlotState",
    "VideoSlotModel",
    "from_slotcontrast",
    "load",
    "save",
]

FILE_FORMAT = "slotmatch 1"
MASKS = ("decoder", "attention")
"""Whose masks segment a video: the decoder's, as the paper has it, or slot attention's."""
RELEASED = ".ckpt"
"""Suffix of the files that SlotContrast's authors released."""
HUB = "hf://"
"""Start of the address of a model on the Hugging Face hub, as in ``hf://user/name@revision``."""
FINAL_NORM = "network.norm."
"""A ViT's last layer comes after the features, so it does not count; released files lack it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlotState:
    """What a next frame needs of all before it: slots predicted for it (B,K,D), and its number."""

    predicted: Tensor
    frame: int


@dataclass(frozen=True)
class SlotOutput:
    """What a model says about a clip.

    ``slots`` (B,T,K,D) are the corrected ones, the representation every loss uses. ``attention``
    (B,T,K,P) is slot attention's last softmax; ``masks`` (B,T,K,P) are the decoder's, the
    segmentation. Both sum to one over slots. ``masks`` and ``reconstruction`` (B,T,P,F) are None
    where they were not asked for, and have fewer P where only some patches were. ``state``
    continues the video.
    """

    slots: Tensor
    attention: Tensor
    masks: Tensor | None
    reconstruction: Tensor | None
    state: SlotState

    @property
    def segmentation(self) -> Tensor:
        """The decoder's masks, or slot attention's where the decoder was left out."""
        return self.attention if self.masks is None else self.masks


class VideoSlotModel(nn.Module):
    """Recurrent slots of a video, their masks and the features they explain.

    The algorithm is `_track` followed by `decode`.

    Teacher and student are this one class with different configs. The backbone is frozen and stays
    in evaluation mode; its features are also the reconstruction's target. The remaining weights are
    drawn from ``seed``, and the global generator is left as it was. ``pretrained=False`` builds the
    backbone without its weights, and without a download.
    """

    def __init__(self, config: ModelConfig, *, pretrained: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width, n_slots = config.slot_dim, config.n_slots
        starts = {"learned": LearnedSlots, "sampled": SampledSlots}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.transform = feature_transform(config.feature_dim, width)
            self.initial_slots = starts[config.initial_slots](n_slots, width)
            self.slot_attention = SlotAttention(width, gru_state=config.gru_state)
            self.predictor = SlotPredictor(
                width, n_heads=config.n_heads, logit_scale=config.predictor_logits
            )
            self.decoder = MLPDecoder(
                width,
                config.feature_dim,
                config.n_patches,
                hidden=(config.decoder_hidden,) * config.decoder_layers,
                position_init=config.position_init,
            )
            self.backbone: backbones.Backbone | None = None
            if config.backbone is not None and config.image_size is not None:
                self.backbone = backbones.build(
                    config.backbone, image_size=config.image_size, pretrained=pretrained
                )

    def encode(self, video: Tensor) -> Tensor:
        """Frozen features (B,T,P,F) of a video (B,T,3,H,W) with values in [0, 1], without gradient.

        Raises:
            ValueError: the model was built without a backbone.
        """
        if self.backbone is None:
            raise ValueError("this model has no backbone: give features to forward_features")
        return self.backbone(video)

    def forward(
        self,
        video: Tensor,
        *,
        reconstruct: bool = True,
        decode: bool = True,
        state: SlotState | None = None,
        patches: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SlotOutput:
        """Slots, masks and reconstruction of a video (B,T,3,H,W): see ``forward_features``.

        Raises:
            ValueError: no backbone, or not floating-point values in [0, 1].
        """
        return self.forward_features(
            self.encode(video),
            reconstruct=reconstruct,
            decode=decode,
            state=state,
            patches=patches,
            generator=generator,
        )

    def forward_features(
        self,
        features: Tensor,
        *,
        reconstruct: bool = True,
        decode: bool = True,
        state: SlotState | None = None,
        patches: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SlotOutput:
        """Slots, masks and reconstruction of a video given as backbone features (B,T,P,F).

        A ``state`` returned earlier continues its video: blocks of any length give exactly what the
        whole video gives at once. ``patches``, a vector of indices shared by the batch, decodes
        only those patches. ``decode=False`` stops at the slots, ``reconstruct=False`` at the masks.
        ``generator`` draws sampled initial slots.

        Raises:
            ValueError: features or state of another shape, features with NaN or infinity, or
                sampled slots without a generator.
        """
        self._check(features, state)
        features = features.to(self.decoder.positions.dtype)  # cached features are half precision
        slots, attention, state = self._track(features, state, generator)
        masks = reconstruction = None
        if decode:
            masks, reconstruction = self.decode(slots, patches=patches, reconstruct=reconstruct)
        return SlotOutput(slots, attention, masks, reconstruction, state)

    def decode(
        self, slots: Tensor, *, patches: Tensor | None = None, reconstruct: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Masks (B,T,K,P) and reconstruction (B,T,P,F), if asked, of slots (B,T,K,D).

        A few patches at a time, so that memory beyond the result does not grow with T where no
        gradient is kept (`slotmatch.modules.MLPDecoder`).
        """
        batch = slots.shape[0]
        flat = rearrange(slots, "b t k d -> (b t) k d")
        masks, reconstruction = self.decoder(flat, patches=patches, reconstruct=reconstruct)
        masks = rearrange(masks, "(b t) k p -> b t k p", b=batch)
        if reconstruction is not None:
            reconstruction = rearrange(reconstruction, "(b t) p f -> b t p f", b=batch)
        return masks, reconstruction

    def _track(
        self, features: Tensor, state: SlotState | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, SlotState]:
        """The recurrence: only this is sequential, all else runs on all frames at once."""
        keys, values = self.slot_attention.project(self.transform(features))
        if state is None:
            state = SlotState(self.initial_slots(features.shape[0], generator), 0)
        predicted, frame = state.predicted, state.frame
        slots, attention = [], []
        for t in range(features.shape[1]):
            first = frame + t == 0
            iterations = self.config.first_iterations if first else self.config.later_iterations
            corrected, attended = self.slot_attention.iterate(
                predicted, keys[:, t], values[:, t], iterations
            )
            predicted = self.predictor(corrected)
            slots.append(corrected)
            attention.append(attended)
        state = SlotState(predicted, frame + features.shape[1])
        return torch.stack(slots, dim=1), torch.stack(attention, dim=1), state

    def _check(self, features: Tensor, state: SlotState | None) -> None:
        expected = (self.decoder.n_patches, self.decoder.feature_dim)
        if features.ndim != 4 or features.shape[2:] != expected or 0 in features.shape:
            raise ValueError(
                f"expected features (B,T,{expected[0]},{expected[1]}), got {tuple(features.shape)}"
            )
        # Its extremes tell of any NaN or infinity in one pass, without a copy.
        if not features.is_meta and not torch.stack(features.detach().aminmax()).isfinite().all():
            raise ValueError(
                "features hold NaN or infinity, which would spread to all later frames: "
                "check the video, the cached features and the backbone's weights"
            )
        slots = (features.shape[0], self.config.n_slots, self.config.slot_dim)
        if state is not None and state.predicted.shape != slots:
            raise ValueError(
                f"features {tuple(features.shape)} need a state of slots {slots}, "
                f"got {tuple(state.predicted.shape)}"
            )


def save(
    model: VideoSlotModel, path: str | os.PathLike[str], *, include_backbone: bool = False
) -> None:
    """Write a model as one safetensors file with its config inside; ``load`` reads it back.

    The frozen backbone's weights are left out, since ``backbones.build`` has them, but their
    checksum is kept and compared when loading. ``include_backbone=True`` puts them in: needed for
    an untrained backbone, and useful where they could not be had again. Equal models give equal
    bytes, so a file's checksum is its model's.
    """
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if include_backbone or not name.startswith("backbone.")
    }
    header = {
        "format": FILE_FORMAT,
        "config": json.dumps(asdict(model.config)),
        "backbone_sha256": "" if model.backbone is None else _checksum(model.backbone),
        "backbone_pretrained": json.dumps(model.backbone is not None and model.backbone.pretrained),
    }
    with paths.atomic(path) as temporary:
        save_file(tensors, temporary, metadata=header)
        _sort_header(temporary)


def load(name_or_path: str | os.PathLike[str]) -> VideoSlotModel:
    """A model that ``save`` wrote, on the CPU and in evaluation mode.

    Names such as ``"mini-teacher"`` and ``"mini-student"`` are models that come with the package.
    ``"hf://user/name"`` is a model that was shared on the Hugging Face hub
    (`slotmatch.hub.push_to_hub`), ``"hf://user/name@revision"`` that branch, tag or commit of it. A
    file whose name ends in ``.ckpt`` is read by `from_slotcontrast` with the four heads of every
    release; what it is taken for is logged. No code comes out of any of them.

    Nothing is downloaded when the file holds the backbone.

    Raises:
        FileNotFoundError: neither a name nor a file, or nothing of that name on the hub.
        ConnectionError: the hub does not answer, and no copy is in its cache.
        ValueError: a file that is cut short, not one of ours, whose tensors do not fit its
            config, or that was trained on other backbone weights than those at hand.
        RuntimeError: the file has no backbone, and its weights cannot be had.
    """
    path = _resolve(name_or_path)
    if path.suffix == RELEASED:
        model = from_slotcontrast(path)
        # A warning, since the number of heads is assumed: no tensor tells it.
        _log.warning("%s has %s; its predictor gets 4 heads", path.name, describe(model.config))
        return model
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or not a safetensors file: {error}") from error
    if header.get("format") != FILE_FORMAT:
        raise ValueError(
            f"{path} was not written by slotmatch.model.save: its format is "
            f"{header.get('format')!r}, not {FILE_FORMAT!r}"
        )
    try:
        config = ModelConfig(**json.loads(header["config"]))
        expected = header["backbone_sha256"]
        trained = bool(json.loads(header["backbone_pretrained"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a header this version cannot read: {error}") from error
    complete = any(name.startswith("backbone.") for name in tensors)
    model = VideoSlotModel(config, pretrained=not complete)
    _fill(model, tensors, str(path), may_lack=() if complete else ("backbone.",))
    if model.backbone is not None:
        found = _checksum(model.backbone)
        if found != expected:
            raise ValueError(
                f"{path} was trained on {config.backbone} weights with SHA-256 "
                f"{expected}, but those at hand have {found}"
            )
        model.backbone.pretrained = trained
    return model.eval()


def from_slotcontrast(
    state_dict_or_path: Mapping[str, Any] | str | os.PathLike[str], *, n_heads: int = 4
) -> VideoSlotModel:
    """The model in a checkpoint released by SlotContrast's authors, in evaluation mode.

    Takes a ``.ckpt`` file, of which only tensors are read, its content, or the bare state dict. All
    sizes come from the tensors except the number of the predictor's heads. A backbone among them is
    used when it is DINOv2 ViT-S/14 or ViT-B/14, without any download; otherwise the model runs from
    features. Numbers keep their precision.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is damaged or holds objects besides tensors, or not such a
            checkpoint; the message lists what is missing, does not belong or has another shape.
    """
    released = read_released(read_tensors(state_dict_or_path), n_heads=n_heads)
    if released.unused:
        warnings.warn(
            f"{len(released.unused)} tensors of a backbone other than ViT-S/14 or ViT-B/14 are not "
            f"used, the model runs from features only: {released.unused[0]}, ...",
            stacklevel=2,
        )
    model = VideoSlotModel(released.config, pretrained=False)
    _fill(
        model,
        released.tensors,
        "the checkpoint",
        may_lack=(f"backbone.{FINAL_NORM}",),
        called=released_name,
    )
    if model.backbone is not None:
        model.backbone.pretrained = True
    return model.eval()


def _resolve(name_or_path: str | os.PathLike[str]) -> Path:
    if str(name_or_path).startswith(HUB):
        from slotmatch.hub import fetch  # which needs this module in turn

        return fetch(str(name_or_path))
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = {file.stem: file for file in sorted(paths.WEIGHTS.glob("mini-*.safetensors"))}
    if str(name_or_path) in names:
        return names[str(name_or_path)]
    raise FileNotFoundError(
        f"{str(name_or_path)!r} is neither a file nor a model of the package: "
        f"{', '.join(names) or 'none is installed'}; {HUB}user/name is one on the hub"
    )


def _checksum(backbone: backbones.Backbone) -> str:
    return weights_checksum(backbone, skip=(FINAL_NORM,))


def _sort_header(path: Path) -> None:
    """Put the metadata of a safetensors file in order, which its writer shuffles at every call."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size  # the same characters; the format pads them with spaces
        file.seek(8)
        file.write(text.ljust(size))


def _fill(
    model: VideoSlotModel,
    tensors: Mapping[str, Tensor],
    origin: str,
    *,
    may_lack: tuple[str, ...],
    called: Callable[[str], str] = str,
) -> None:
    """Copy tensors and their precision into a model, once names and shapes agree one to one.

    ``called`` gives the name that a tensor has where it comes from, for the messages.
    """
    own = model.state_dict()
    missing = [name for name in own.keys() - tensors.keys() if not name.startswith(may_lack)]
    unexpected = tensors.keys() - own.keys()
    misfits = [
        name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
    ]
    problems = {
        "missing": [called(name) for name in missing],
        "unexpected": [called(name) for name in unexpected],
        "of another shape": [
            f"{called(name)} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
            for name in misfits
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {some(sorted(n), 10)}" for kind, n in problems.items() if n)
        raise ValueError(f"the tensors of {origin} do not fit the model's config: {found}")
    model.to(tensors["decoder.positions"].dtype).load_state_dict(tensors, strict=False)
