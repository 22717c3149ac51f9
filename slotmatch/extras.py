"""What an extra of the package brings, asked for by name where it is missing."""

from importlib.util import find_spec

__all__ = ["require"]


def require(extra: str, *modules: str) -> None:
    """Go on only if these modules can be imported.

    Raises:
        RuntimeError: some cannot; the message says how to install the extra that has them.
    """
    missing = [module for module in modules if not _is_there(module)]
    if missing:
        raise RuntimeError(f"this needs {' and '.join(missing)}: pip install 'slotmatch[{extra}]'")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package it would be in
        return False
