"""Half precision by name: where matrix products run in it, and what stays in single precision.

Weights stay as they are, and so do softmaxes over slots and the slots that a frame hands to the
next one: a rounding there would reach all later frames.
"""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from slotmatch.settings import Precision, check_choice

__all__ = ["HALVES", "autocast", "check_precision", "full_precision"]

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FAST_ON_CPUS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What torch calls a CPU's own products in bf16, on x86 and on ARM."""


def autocast(like: Tensor, precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products and convolutions in half precision, on the device of ``like``.

    ``"no"`` is single precision whatever surrounds it. Meta tensors, of no device, know neither.
    """
    if like.is_meta:
        return nullcontext()
    device = like.device.type
    if precision != "no":
        return torch.autocast(device, HALVES[precision])
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def full_precision(tensor: Tensor) -> Tensor:
    """At least single precision, in which every loss and every softmax over slots is computed."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_precision(precision: Precision, device: torch.device, *, name: str = "precision") -> None:
    """Refuse a precision that a device does not have; warn, once, of a CPU that emulates bf16.

    Raises:
        ValueError: an unknown precision, or fp16 without a GPU; ``name`` is the setting's.
    """
    check_choice(name, precision, Precision)
    if device.type != "cpu":
        return
    if precision == "fp16":
        raise ValueError(f'{name} "fp16" needs a GPU: choose "bf16" or "no"')
    if precision == "bf16" and emulates_bf16():
        _warn_of_emulation()


def emulates_bf16() -> bool:
    """Whether this CPU is known to have no products in bf16: an older torch does not tell."""
    told: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told) and not any(told.get(name) for name in FAST_ON_CPUS)


@cache
def _warn_of_emulation() -> None:
    warnings.warn(
        "this CPU has no products in bf16 (AVX512_BF16, AMX): it emulates them, which is slower "
        "than single precision",
        stacklevel=3,
    )
