from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def oracles() -> Mapping[str, np.ndarray]:
    """Expected values by key; tests/oracles/README.md says where they come from."""
    return np.load(Path(__file__).parent / "oracles" / "oracles.npz")
