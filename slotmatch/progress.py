"""When a progress bar shows, one rule for everything that has one."""

__all__ = ["hidden"]


def hidden(progress: bool | None) -> bool | None:
    """What tqdm calls ``disable``: None shows a bar in a terminal only."""
    return None if progress is None else not progress
