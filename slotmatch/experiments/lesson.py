"""What the page that explains slots shows: attention over its iterations, and telling mistakes.

Shapes: T frames, H and W pixels.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from slotmatch.data.preprocessing import float_frames
from slotmatch.metrics import label_maps
from slotmatch.model import VideoSlotModel

__all__ = ["MISTAKES", "attention_by_iteration"]

Labels = NDArray[np.integer]
HALO = 5
"""Pixels by which a mask that is too large goes beyond its object."""


@torch.no_grad()
def attention_by_iteration(model: VideoSlotModel, frame: NDArray[np.uint8]) -> list[Labels]:
    """Each pixel's slot (H,W) after each iteration of slot attention on a first frame (H,W,3)."""
    features = model.encode(float_frames(frame[None, None]))
    keys, values = model.slot_attention.project(model.transform(features)[:, 0])
    slots, found = model.initial_slots(1), []
    for _ in range(model.config.first_iterations):
        slots, attention = model.slot_attention.iterate(slots, keys, values, 1)
        found.append(label_maps(attention, frame.shape[:2])[0])
    return found


def _floor_in_pieces(labels: Labels) -> Labels:
    height, width = labels.shape[1:]
    rows, columns = np.indices((height, width))
    piece = 2 * (rows >= height // 2) + (columns >= width // 2)
    return np.where(labels == 0, labels.max() + 1 + piece, labels)


def _object_in_two(labels: Labels) -> Labels:
    largest = _by_size(labels)[0]
    columns = np.broadcast_to(np.arange(labels.shape[2]), labels.shape)
    middle = np.median(columns[labels == largest])
    return np.where((labels == largest) & (columns > middle), labels.max() + 1, labels)


def _two_objects_as_one(labels: Labels) -> Labels:
    first, second = _by_size(labels)[:2]
    return np.where(labels == second, first, labels)


def _masks_too_large(labels: Labels) -> Labels:
    found = labels.copy()
    for own in _by_size(labels)[::-1]:
        around = np.stack([binary_dilation(frame == own, iterations=HALO) for frame in labels])
        found[around & (labels == 0)] = own
    return found


def _names_swapped(labels: Labels) -> Labels:
    first, second = _by_size(labels)[:2]
    found, half = labels.copy(), len(labels) // 2
    found[half:][labels[half:] == first] = second
    found[half:][labels[half:] == second] = first
    return found


def _all_in_one(labels: Labels) -> Labels:
    return np.ones_like(labels)


MISTAKES: Mapping[str, Callable[[Labels], Labels]] = {
    "as the truth": np.copy,
    "floor in four": _floor_in_pieces,
    "masks too large": _masks_too_large,
    "one in two": _object_in_two,
    "two as one": _two_objects_as_one,
    "names swapped": _names_swapped,
    "all in one": _all_in_one,
}
"""Segmentations (T,H,W) made from true labels, each wrong in one way."""


def _by_size(labels: Labels) -> list[int]:
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    return [int(own) for own in ids[np.argsort(-counts, kind="stable")]]
