"""Files of tensors: written whole, and read with one sentence for whatever is wrong with them."""

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slotmatch import paths

__all__ = ["UNREADABLE", "read_tensors", "what_it_is", "write_tensors"]

UNREADABLE = (
    *(RuntimeError, OSError, LookupError, EOFError, ValueError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, MemoryError, RecursionError),
    *(pickle.PickleError, struct.error, zipfile.BadZipFile),
)
"""What ``torch.load`` raises at files that it cannot or must not read: thousands were tried."""


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut short or something else; the message says what.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is {what_it_is(path)} ({error})") from error


def what_it_is(path: Path) -> str:
    """A file that should hold safetensors and does not, in words."""
    if not path.is_file():
        return "a folder, not a file"
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the file: fetch the file itself, with git lfs pull"
    if start.startswith((b"PK", b"\x80")):
        return "a file of torch.save, not of safetensors"
    return "cut short or not a safetensors file: copy it again"


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    header: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, with metadata if any: for those to read who read its neighbours.

    Raises:
        OSError: no room, or no right to write there.
    """
    try:
        save_file(dict(tensors), path, metadata=None if header is None else dict(header))
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    os.chmod(path, paths.usual_mode(Path(path).parent))
