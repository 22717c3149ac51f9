"""Settings with few values, each named once, and the one check that all settings pass.

Importing this takes no torch, so the command line offers the very choices that the code accepts.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = [
    "AT_LEAST_0",
    "AT_LEAST_1",
    "FRACTION",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SEED",
    "SHARE",
    "Added",
    "Axis",
    "Correspondence",
    "Distillation",
    "Disturbance",
    "Empty",
    "GruState",
    "InitialSlots",
    "Interpolation",
    "LogitScale",
    "Masks",
    "Pairing",
    "PositionInit",
    "Precision",
    "ProtocolName",
    "Role",
    "Rule",
    "Size",
    "Split",
    "Square",
    "check",
    "check_choice",
    "choices",
]

Role = Literal["teacher", "student"]
Size = Literal["smoke", "mini", "paper"]
"""Of an experiment: seconds, where numbers mean nothing; two CPU cores; a GPU."""
Split = Literal["train", "validation", "test"]
Masks = Literal["decoder", "attention"]
"""Whose masks segment a video: the decoder's, as SlotContrast scores, or slot attention's."""
Correspondence = Literal["index", "hungarian", "hungarian_per_frame", "shifted"]
"""Which teacher slot a student slot answers to; ``"shifted"``: always the next one."""
Pairing = Literal[Correspondence, "shuffled"]
"""The same in a training; in ``"shuffled"``, wrong on purpose, chance decides for each clip."""
Distillation = Literal[
    "slot_error",
    "slot_lengths",
    "attention_masks",
    "decoder_masks",
    "features",
    "reconstructions",
    "relations",
    "relations_over_time",
]
"""Losses that distil beside the cosine of slots, or in its place."""
Added = Literal[Distillation, "temporal_similarity"]
"""Losses a training may have beside the method's own; the last, VideoSAUR's, needs no teacher."""
Disturbance = Literal["noise", "brightness", "half_size", "shift"]
"""What may happen to frames without a viewer noticing."""
Axis = Literal["earlier", "later", "symmetric"]
"""Of the contrast: which frame's slots its softmax runs over."""
InitialSlots = Literal["learned", "sampled"]
GruState = Literal["normalised", "raw"]
LogitScale = Literal["multiplied", "divided"]
PositionInit = Literal["normal", "sincos"]
Precision = Literal["no", "bf16", "fp16"]
Square = Literal["stretch", "crop"]
Interpolation = Literal["bicubic", "bilinear"]
Empty = Literal["perfect", "skip"]
"""What FG-ARI says of frames and videos without an object."""
ProtocolName = Literal[
    "original",
    "slotcontrast",
    "slotcontrast_all",
    "slotcontrast_skip_first",
    "videosaur",
    "randsfq",
]


def choices(setting: Any) -> tuple[str, ...]:
    """The values of one of the settings above, in order."""
    return get_args(setting)


def check_choice(name: str, value: object, setting: Any) -> None:
    """Refuse, with a ValueError that lists the choices, a value that ``setting`` does not have."""
    if value not in choices(setting):
        raise ValueError(f"{name} must be one of {choices(setting)}, got {value!r}")


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test."""

    what: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


AT_LEAST_1 = Rule("a whole number of 1 or more", lambda v: _is_whole(v) and v >= 1)
AT_LEAST_0 = Rule("a whole number of 0 or more", lambda v: _is_whole(v) and v >= 0)
SEED = Rule("a whole number from 0 to 2**63 - 1", lambda v: _is_whole(v) and 0 <= v < 2**63)
POSITIVE = Rule("a positive number", lambda v: _is_number(v) and v > 0)
NOT_NEGATIVE = Rule("a number of 0 or more", lambda v: _is_number(v) and v >= 0)
SHARE = Rule("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
FRACTION = Rule("a number above 0, up to 1", lambda v: _is_number(v) and 0 < v <= 1)


def check(config: Any, rules: Iterable[tuple[Rule, Iterable[str]]] = ()) -> None:
    """Refuse a dataclass with a field out of its range; for use in ``__post_init__``.

    Fields whose type is a ``Literal`` must have one of its values, those whose type is ``bool``
    must be True or False, and those named must keep their rule. None passes where the type says so.

    Raises:
        ValueError: with the field's name, its value and what it may be.
    """
    hints = get_type_hints(type(config))
    checks = [
        (
            field.name,
            Rule(f"one of {choices(hints[field.name])}", choices(hints[field.name]).__contains__),
        )
        for field in fields(config)
        if get_origin(hints[field.name]) is Literal
    ]
    checks += [
        (field.name, Rule("True or False", lambda value: isinstance(value, bool)))
        for field in fields(config)
        if hints[field.name] is bool
    ]
    checks += [(name, rule) for rule, names in rules for name in names]
    for name, rule in checks:
        value, hint = getattr(config, name), hints[name]
        optional = isinstance(hint, UnionType) and type(None) in get_args(hint)
        if not (rule.holds(value) or (optional and value is None)):
            raise ValueError(
                f"{name} must be {rule.what}{' or None' if optional else ''}, got {value!r}"
            )
