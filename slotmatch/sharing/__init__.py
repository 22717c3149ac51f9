"""A model for others: with its card in a folder or on a hub, or as an ONNX file."""

from slotmatch.sharing.card import model_card, write_folder
from slotmatch.sharing.push import push_to_hub

__all__ = ["model_card", "push_to_hub", "write_folder"]
