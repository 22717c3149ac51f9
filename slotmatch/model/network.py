"""Teacher and student: one recurrent slot model over frozen features, and its start from another.

A frame's transformed features correct the slots that the previous frame predicted; a decoder turns
corrected slots into features and masks:

    s(t) = attention(prediction(t-1), f(t))        prediction(t) = predictor(s(t))

Shapes: B clips, T frames, K slots, D slot width, P patches, F feature width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

import torch
from einops import rearrange
from torch import Tensor, nn

from slotmatch import backbones
from slotmatch.backbones import resize_frames
from slotmatch.data.files import some
from slotmatch.data.preprocessing import unit_floats
from slotmatch.model.modules import (
    LearnedSlots,
    MLPDecoder,
    SampledSlots,
    SlotAttention,
    SlotPredictor,
    feature_transform,
)
from slotmatch.model.presets import ModelConfig
from slotmatch.precision import autocast, check_precision
from slotmatch.settings import Precision

__all__ = [
    "CHUNK",
    "INHERITABLE",
    "SlotOutput",
    "SlotState",
    "VideoSlotModel",
    "fill",
    "start_from",
]

CHUNK = 24
"""Frames that pass a model at a time: MOVi's videos as a whole."""


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

    The algorithm is `track` followed by `decode`.

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
        if state is None:
            state = SlotState(self.initial_slots(features.shape[0], generator), 0)
        slots, attention, state = self.track(features, state)
        masks = reconstruction = None
        if decode:
            masks, reconstruction = self.decode(slots, patches=patches, reconstruct=reconstruct)
        return SlotOutput(slots, attention, masks, reconstruction, state)

    @torch.inference_mode()
    def stream(
        self,
        frames: Iterable[Tensor],
        *,
        chunk: int = CHUNK,
        decode: bool = True,
        reconstruct: bool = False,
        precision: Precision = "no",
        generator: torch.Generator | None = None,
    ) -> Iterator[SlotOutput]:
        """Outputs of videos of any length, ``chunk`` frames at a time, in constant memory.

        Together they are what the whole videos give at once. A frame is one of each of B videos:
        (B,3,H,W), uint8 or floats in [0, 1], which is squeezed into the backbone's square, or
        features (B,P,F). The model runs where its weights are. No gradient is kept. In a half
        ``precision`` slots, their state and masks are single still (`slotmatch.precision`).

        Raises:
            ValueError: frames without a backbone, a precision that the device does not have, and
                what ``forward_features`` refuses.
        """
        check_precision(precision, self.decoder.positions.device)
        frames, state = iter(frames), None
        while block := [self._square(frame) for frame in islice(frames, chunk)]:
            run = self if block[0].ndim == 4 else self.forward_features
            with autocast(block[0], precision):  # not while a caller has what is yielded
                output = run(
                    torch.stack(block, dim=1),
                    reconstruct=reconstruct,
                    decode=decode,
                    state=state,
                    generator=generator,
                )
            state = output.state
            yield output

    def _square(self, frame: Tensor) -> Tensor:
        """A frame where the weights are and, unless it is features already, as the backbone has it.

        Frames are squeezed one by one: a whole chunk in floats at full size could be gigabytes.
        """
        like = self.decoder.positions
        frame = frame.to(like.device)
        if frame.ndim == 3 or self.backbone is None:
            return frame
        return resize_frames(unit_floats(frame, like.dtype), self.backbone.image_size)

    def decode(
        self, slots: Tensor, *, patches: Tensor | None = None, reconstruct: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Masks (B,T,K,P) and reconstruction (B,T,P,F), if asked, of slots (B,T,K,D).

        A few patches at a time, so that memory beyond the result does not grow with T where no
        gradient is kept (`slotmatch.model.modules.MLPDecoder`).
        """
        batch = slots.shape[0]
        flat = rearrange(slots, "b t k d -> (b t) k d")
        masks, reconstruction = self.decoder(flat, patches=patches, reconstruct=reconstruct)
        masks = rearrange(masks, "(b t) k p -> b t k p", b=batch)
        if reconstruction is not None:
            reconstruction = rearrange(reconstruction, "(b t) p f -> b t p f", b=batch)
        return masks, reconstruction

    def track(self, features: Tensor, state: SlotState) -> tuple[Tensor, Tensor, SlotState]:
        """Slots (B,T,K,D), attention (B,T,K,P) and the state after features (B,T,P,F).

        The recurrence, ``eq-recurrence`` of the book: only this is sequential, all else
        runs on all frames at once. Values are not looked at, for which a GPU would have to
        wait; ``forward_features`` does that.
        """
        features = features.to(self.decoder.positions.dtype)  # cached features are half precision
        keys, values = self.slot_attention.project(self.transform(features))
        predicted = state.predicted
        slots, attention = [], []
        # Cut once: the gradient of keys[:, t] is as large as all keys, and was summed T times.
        for frame, (own_keys, own_values) in enumerate(
            zip(keys.unbind(1), values.unbind(1), strict=True), state.frame
        ):
            first = frame == 0
            iterations = self.config.first_iterations if first else self.config.later_iterations
            corrected, attended = self.slot_attention.iterate(
                predicted, own_keys, own_values, iterations
            )
            predicted = self.predictor(corrected)
            slots.append(corrected)
            attention.append(attended)
        state = SlotState(predicted, state.frame + features.shape[1])
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


def fill(
    model: VideoSlotModel,
    tensors: Mapping[str, Tensor],
    origin: str,
    *,
    may_lack: tuple[str, ...],
    called: Callable[[str], str] = str,
) -> None:
    """Copy tensors and their precision into a model, once names, shapes and types agree.

    ``called`` gives the name that a tensor has where it comes from, for the messages.
    """
    own = model.state_dict()
    missing = [name for name in own.keys() - tensors.keys() if not name.startswith(may_lack)]
    unexpected = tensors.keys() - own.keys()
    misfits = [
        name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
    ]
    mistyped = [
        name
        for name in own.keys() & tensors.keys()
        if own[name].is_floating_point() != tensors[name].is_floating_point()
    ]
    problems = {
        "missing": [called(name) for name in missing],
        "unexpected": [called(name) for name in unexpected],
        "of another shape": [
            f"{called(name)} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
            for name in misfits
        ],
        "of another type": [f"{called(name)} {tensors[name].dtype}" for name in mistyped],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {some(sorted(n), 10)}" for kind, n in problems.items() if n)
        raise ValueError(f"the tensors of {origin} do not fit the model's config: {found}")
    model.to(tensors["decoder.positions"].dtype).load_state_dict(tensors, strict=False)


INHERITABLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "initial_slots": ("initial_slots", "n_slots", "slot_dim"),
        "slot_attention": ("slot_dim", "gru_state"),
        "predictor": ("slot_dim", "n_heads", "predictor_logits"),
        "decoder": ("slot_dim", "n_patches", "decoder_hidden", "decoder_layers"),
    }
)
"""Parts a student can start from, and in what of its config it then has to equal its teacher."""


def start_from(
    student: VideoSlotModel,
    teacher: VideoSlotModel,
    *,
    parts: Sequence[str] = ("initial_slots",),
) -> None:
    """Give a student its teacher's weights in the named parts, before training.

    The initial slots alone let slots of equal index correspond from the start. With all parts of
    ``INHERITABLE`` what is left to learn is reading and writing the student's own features: of the
    decoder's last layer only the row that gives masks is taken over. What the paper's student
    starts from is not known.

    Raises:
        ValueError: an unknown part, or one in which the two models differ.
    """
    if unknown := [part for part in parts if part not in INHERITABLE]:
        raise ValueError(f"parts {unknown} are unknown: choose from {', '.join(INHERITABLE)}")
    for part in parts:
        names = INHERITABLE[part]
        own, wanted = (
            [getattr(model.config, name) for name in names] for model in (student, teacher)
        )
        if own != wanted:
            raise ValueError(
                f"to start from its teacher's {part} a student needs the same "
                f"{', '.join(names)}, got {own} and {wanted}"
            )
    for part in parts:
        weights = getattr(teacher, part).state_dict()
        if part == "decoder":
            last = f"layers.{len(teacher.decoder.layers) - 1}"
            features = student.decoder.state_dict()
            for name in (f"{last}.weight", f"{last}.bias"):
                weights[name] = torch.cat([features[name][:-1], weights[name][-1:]])
        getattr(student, part).load_state_dict(weights)
