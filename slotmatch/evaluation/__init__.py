"""Scores of a model on the videos of a data set, by the rules of a protocol."""

from slotmatch.evaluation.fidelity import (
    Followed,
    constancy,
    constant_slots,
    cosine_over_time,
    disturbed_clips,
    feature_change,
    fidelity,
    follow,
    score_against,
    score_followed,
)
from slotmatch.evaluation.protocols import ORIGINAL, PROTOCOLS, Protocol, protocol_for, samples
from slotmatch.evaluation.scoring import (
    columns,
    evaluate,
    evaluate_samples,
    grid_oracle,
    joined,
    outputs,
    score_labels,
    score_masks,
    score_on,
)

__all__ = [
    "ORIGINAL",
    "PROTOCOLS",
    "Followed",
    "Protocol",
    "columns",
    "constancy",
    "constant_slots",
    "cosine_over_time",
    "disturbed_clips",
    "evaluate",
    "evaluate_samples",
    "feature_change",
    "fidelity",
    "follow",
    "grid_oracle",
    "joined",
    "outputs",
    "protocol_for",
    "samples",
    "score_against",
    "score_followed",
    "score_labels",
    "score_masks",
    "score_on",
]
