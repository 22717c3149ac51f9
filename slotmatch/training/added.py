"""The added losses of a step by name: what each takes of student and teacher.

None is part of SlotMatch, which claims to need none. Those that distil are in
`slotmatch.distillation`; the last is VideoSAUR's, which learns without a teacher.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from slotmatch.distillation import (
    mask_divergence,
    slot_error,
    slot_length_error,
    slot_relations,
    slot_relations_over_time,
)
from slotmatch.losses import feature_reconstruction, temporal_similarity
from slotmatch.settings import Added
from slotmatch.training.student import Student, View

__all__ = ["ADDED", "DECODED"]

ADDED: Mapping[Added, Callable[[Student, View, View], Tensor]] = MappingProxyType(
    {
        "slot_error": lambda _, own, theirs: slot_error(own.slots, theirs.slots),
        "slot_lengths": lambda _, own, theirs: slot_length_error(own.slots, theirs.slots),
        "attention_masks": lambda _, own, theirs: mask_divergence(own.attention, theirs.attention),
        "decoder_masks": lambda _, own, theirs: mask_divergence(own.masks, theirs.masks),
        "features": lambda student, own, theirs: feature_reconstruction(
            student.project("features", student.model.transform(own.features)), theirs.features
        ),
        "reconstructions": lambda student, own, theirs: feature_reconstruction(
            student.project("reconstructions", own.reconstruction), theirs.reconstruction
        ),
        "relations": lambda _, own, theirs: slot_relations(own.slots, theirs.slots),
        "relations_over_time": lambda _, own, theirs: slot_relations_over_time(
            own.slots, theirs.slots
        ),
        "temporal_similarity": lambda _, own, theirs: temporal_similarity(
            own.similarity, own.features, patches=own.patches
        ),
    }
)
DECODED = frozenset({"decoder_masks", "reconstructions", "temporal_similarity"})
"""Those that look at what is decoded."""
