"""Teacher and student: one recurrent slot model over frozen features, its presets and its files."""

from slotmatch.model.files import load, save
from slotmatch.model.network import (
    INHERITABLE,
    SlotOutput,
    SlotState,
    VideoSlotModel,
    start_from,
)
from slotmatch.model.presets import PRESETS, ModelConfig, Preset
from slotmatch.model.slotcontrast import from_slotcontrast

__all__ = [
    "INHERITABLE",
    "PRESETS",
    "ModelConfig",
    "Preset",
    "SlotOutput",
    "SlotState",
    "VideoSlotModel",
    "from_slotcontrast",
    "load",
    "save",
    "start_from",
]
