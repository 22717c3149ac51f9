"""SlotMatch: a small video segmentation model that learns slots from a large one."""

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slotmatch.segmentation import segment

    __version__: str

__all__ = ["__version__", "segment"]


def __getattr__(name: str) -> Any:
    # On demand, so that importing the package, or a light part of it, does not import torch.
    if name == "segment":
        from slotmatch.segmentation import segment

        return segment
    if name == "__version__":
        return metadata.version("slotmatch")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
