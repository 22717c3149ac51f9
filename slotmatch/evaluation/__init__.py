"""Scores of a model on the videos of a data set, by the rules of a protocol."""

from slotmatch.evaluation.protocols import ORIGINAL, PROTOCOLS, Protocol, protocol_for, samples
from slotmatch.evaluation.scoring import (
    columns,
    evaluate,
    evaluate_samples,
    grid_oracle,
    joined,
    score_labels,
    score_masks,
    score_on,
)

__all__ = [
    "ORIGINAL",
    "PROTOCOLS",
    "Protocol",
    "columns",
    "evaluate",
    "evaluate_samples",
    "grid_oracle",
    "joined",
    "protocol_for",
    "samples",
    "score_labels",
    "score_masks",
    "score_on",
]
