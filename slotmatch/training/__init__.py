"""How a model is trained: the step, the loop around it, and what both are told."""

from slotmatch.extras import require

require("train", "accelerate", "pandas")

from slotmatch.training.loading import Frames
from slotmatch.training.loop import train
from slotmatch.training.processes import processes
from slotmatch.training.recipe import TrainConfig

__all__ = ["Frames", "TrainConfig", "processes", "train"]
