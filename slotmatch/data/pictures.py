"""Pictures as frames: which files of a folder, in which order, and what their pixels mean."""

import io
import re
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, ImageSequence

__all__ = [
    "ANIMATIONS",
    "IMAGES",
    "UNREADABLE",
    "natural_order",
    "picture_files",
    "pictures_of",
    "rgb",
]

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
"""Suffixes of the files that count as frames of a folder."""
ANIMATIONS = (*IMAGES, ".gif")
"""Suffixes of the files that are read as one picture or several, and not as a video."""

LONGEST_SIDE = 65_535
"""Pixels of a JPEG's; a longer one is a damaged number, and would take long to decode."""

UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError),
    *(RuntimeError, struct.error, ImageCms.PyCMSError),
)
"""What Pillow raises at files that are damaged or no pictures: thousands were tried."""

_LIMITS = {"I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I": 65535, "F": 1}
"""Whitest value of the modes that Pillow would clip to 255 otherwise."""


def natural_order(path: Path) -> tuple[list[tuple[bool, Decimal | str]], str]:
    """A key that puts frame 2 before frame 10, 0.5 before 1.25, and a copy after its original."""
    parts = re.findall(r"[0-9]+(?:\.[0-9]+)?|[^0-9]+", path.stem.casefold())
    numbered = [
        (True, part) if not part[0].isdecimal() else (False, Decimal(part)) for part in parts
    ]
    return numbered, path.name


def picture_files(folder: Path, suffixes: Sequence[str] = IMAGES) -> list[Path]:
    """The pictures of a folder in `natural_order`; what systems hide there does not count.

    Raises:
        FileNotFoundError: there are none.
        ValueError: two have one name but for the suffix, as frames and masks in one folder.
    """
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes and not file.name.startswith(".")
    ]
    if not files:
        raise FileNotFoundError(f"{folder} holds no frames: no file ends in {', '.join(suffixes)}")
    stem, n = Counter(file.stem for file in files).most_common(1)[0]
    if n > 1:
        names = sorted(file.name for file in files if file.stem == stem)
        raise ValueError(
            f"{folder} holds {' and '.join(names)}, which would be one frame: frames, masks and "
            "copies in another format need folders of their own"
        )
    return sorted(files, key=natural_order)


def pictures_of(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """Every picture of a file, uint8 (H,W,3), and the seconds that it is shown; 0: not known.

    Raises:
        ValueError: a file that is damaged or no picture, or values that have no meaning as colours.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if max(image.size) > LONGEST_SIDE:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
                for picture in ImageSequence.Iterator(image):
                    yield rgb(picture), picture.info.get("duration", 0) / 1000
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is far too large for a frame: {error}") from error
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged or no image: {error}") from error


def rgb(image: Image.Image) -> np.ndarray:
    """A picture as it is meant to be seen: upright, in sRGB, uint8 (H,W,3).

    Values of 16 bits and floats in [0, 1] are scaled; colours with a profile are converted to sRGB.

    Raises:
        ValueError: values beyond these ranges, of which nobody can say what is white.
        ImageCms.PyCMSError: a profile that is damaged or does not fit the picture.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _LIMITS:
        values, limit = np.asarray(upright), _LIMITS[upright.mode]
        if not (values.min() >= 0 and values.max() <= limit):
            raise ValueError(
                f"values from {values.min():g} to {values.max():g} where 0 to {limit} were "
                "expected: save it with 8 or 16 bits"
            )
        grey = np.rint(values * (255 / limit)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.array(_in_srgb(upright).convert("RGB"))


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "srgb" in ImageCms.getProfileDescription(source).casefold():
        return image
    if image.mode in ("P", "RGBA", "PA"):
        image = image.convert("RGB")
    srgb: Any = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    assert converted is not None
    return converted
