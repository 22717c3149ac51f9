"""What a model is made of: its config, and the presets of teacher and student for each data set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from slotmatch import backbones
from slotmatch.settings import AT_LEAST_1, GruState, InitialSlots, LogitScale, PositionInit, check

__all__ = ["PRESETS", "ModelConfig", "Preset"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and variants of one model; everything else follows from the backbone.

    With ``backbone=None`` the model has no encoder and runs from features only; then
    ``feature_shape`` gives (P, F), and ``image_size`` is None as well. The last four fields are
    named variants of the parts in ``slotmatch.model.modules``; their defaults are SlotContrast's.

    Raises:
        ValueError: a size that is not a positive integer, a slot width that the heads do not
            divide, an unknown variant, or a backbone and a feature shape that are both given or
            both missing.
    """

    backbone: str | None  # a name of slotmatch.backbones
    image_size: int | None  # side of the square the backbone sees, in pixels
    n_slots: int
    slot_dim: int
    decoder_hidden: int
    decoder_layers: int = 3  # hidden layers
    n_heads: int = 4
    first_iterations: int = 3  # the first frame starts from slots that have seen nothing
    later_iterations: int = 2
    feature_shape: tuple[int, int] | None = None
    initial_slots: InitialSlots = "learned"
    gru_state: GruState = "normalised"
    predictor_logits: LogitScale = "multiplied"
    position_init: PositionInit = "normal"

    def __post_init__(self) -> None:
        sizes = ("n_slots", "slot_dim", "decoder_hidden", "decoder_layers", "n_heads")
        check(self, [(AT_LEAST_1, (*sizes, "first_iterations", "later_iterations"))])
        if self.slot_dim % self.n_heads:
            raise ValueError(f"slot_dim {self.slot_dim} is not divisible by n_heads {self.n_heads}")
        described = (self.backbone is None, self.image_size is None, self.feature_shape is not None)
        if described not in ((True,) * 3, (False,) * 3):
            raise ValueError(
                "give either backbone and image_size, or feature_shape=(P, F) alone, got "
                f"backbone={self.backbone!r}, image_size={self.image_size!r}, "
                f"feature_shape={self.feature_shape!r}"
            )
        if self.feature_shape is not None:  # a list when it comes from JSON
            n_patches, feature_dim = self.feature_shape
            object.__setattr__(self, "feature_shape", (int(n_patches), int(feature_dim)))

    @property
    def feature_dim(self) -> int:
        """Width F of the features that are encoded and reconstructed."""
        if self.backbone is None:
            assert self.feature_shape is not None
            return self.feature_shape[1]
        return backbones.feature_dim(self.backbone)

    @property
    def n_patches(self) -> int:
        """Patches P of a frame, row by row."""
        if self.backbone is None:
            assert self.feature_shape is not None
            return self.feature_shape[0]
        return self.grid**2

    @property
    def grid(self) -> int:
        """Patches along each side of a frame.

        Raises:
            ValueError: the features of a model without a backbone are no square grid.
        """
        if self.backbone is not None:
            assert self.image_size is not None
            return backbones.grid_side(self.backbone, self.image_size)
        side = math.isqrt(self.n_patches)
        if side**2 != self.n_patches:
            raise ValueError(f"{self.n_patches} patches do not form a square grid")
        return side


@dataclass(frozen=True)
class Preset:
    """A teacher and a student whose slots can be compared: same number, width and patch grid.

    Raises:
        ValueError: they cannot.
    """

    teacher: ModelConfig
    student: ModelConfig
    origin: str  # where the numbers come from

    def __post_init__(self) -> None:
        for name in ("n_slots", "slot_dim", "n_patches"):
            teacher, student = getattr(self.teacher, name), getattr(self.student, name)
            if teacher != student:
                raise ValueError(
                    f"teacher and student need one {name}, got {teacher} and {student}"
                )


def _published(origin: str, *, image_size: int, n_slots: int, slot_dim: int) -> Preset:
    """A ViT-B/14 teacher and the same recipe with ViT-S/14, which reconstructs its own features."""
    teacher = ModelConfig(
        backbone="dinov2_vitb14",
        image_size=image_size,
        n_slots=n_slots,
        slot_dim=slot_dim,
        decoder_hidden=1024,
    )
    return Preset(teacher, replace(teacher, backbone="dinov2_vits14"), origin)


def _mini() -> Preset:
    """Small enough for two CPU cores, with slots for videos of up to 12 objects."""
    teacher = ModelConfig(
        backbone="embedded",
        image_size=256,
        n_slots=11,
        slot_dim=64,
        decoder_hidden=128,
        decoder_layers=2,
        position_init="sincos",
    )
    student = replace(teacher, backbone="embedded_small", image_size=128)
    return Preset(teacher, student, "ours, for the embedded data and backbone")


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "movi_c": _published(
            "SlotContrast's movi_c, which is the student here: its authors used ViT-S/14; "
            "the ViT-B/14 teacher is ours",
            image_size=336,
            n_slots=11,
            slot_dim=64,
        ),
        "movi_d": _published(
            "ours, the sizes of movi_e: no config is published for MOVi-D",
            image_size=336,
            n_slots=15,
            slot_dim=128,
        ),
        "movi_e": _published("SlotContrast's movi_e", image_size=336, n_slots=15, slot_dim=128),
        "ytvis2021": _published("SlotContrast's ytvis2021", image_size=518, n_slots=7, slot_dim=64),
        "davis2017": _published(
            "ours, the sizes of ytvis2021: no config is published for DAVIS 2017",
            image_size=518,
            n_slots=7,
            slot_dim=64,
        ),
        "mini": _mini(),
    }
)
"""Teacher and student by data set.

``movi_e`` and ``ytvis2021`` are SlotContrast's published sizes with a ViT-B/14 teacher; the
ViT-S/14 student is the one whose parameter count gives the 3.6 times fewer of the SlotMatch paper.
The sizes of ``movi_d``, ``davis2017`` and ``mini``, and the ViT-B/14 teacher of
``movi_c``, are ours (``Preset.origin``).
"""
