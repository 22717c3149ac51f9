"""What is committed of the models that come with the package is what they would give today."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slotmatch.data import EMBEDDED
from slotmatch.experiments.shipped import picture, social_picture
from slotmatch.paths import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "path"),
    [(picture, "book/figures/slots.png"), (social_picture, "_static/social.png")],
)
def test_a_committed_picture_is_what_would_be_drawn_today(
    draw: Callable[[str, Path], None], path: str, tmp_path: Path
) -> None:
    draw(EMBEDDED[0], tmp_path / "picture.png")
    committed, today = (
        np.asarray(Image.open(found).convert("RGB"), float)
        for found in (REPOSITORY / path, tmp_path / "picture.png")
    )
    assert committed.shape == today.shape
    # Rounding that differs between processors can move the edge of a mask.
    assert np.abs(committed - today).mean() < 1
