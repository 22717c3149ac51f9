from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def oracles() -> Iterator[Mapping[str, np.ndarray]]:
    """Expected values by key; tests/oracles/README.md says where they come from."""
    with np.load(Path(__file__).parent / "oracles" / "oracles.npz") as arrays:
        yield arrays
