"""The colours of slots, and frames painted with them: numpy alone."""

import numpy as np

__all__ = ["SLOT_COLORS", "blend", "slot_colors"]

# The seven colours of Okabe and Ito without black, then nine found greedily: each is the one
# farthest from those before it in OKLab, over normal sight and simulated protanopia, deuteranopia
# and tritanopia.
SLOT_COLORS = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#660000"),
    *("#331177", "#77FFFF", "#993300", "#0000DD", "#664466", "#AA66FF", "#99CCAA", "#BBEEAA"),
)


def slot_colors(n: int) -> np.ndarray:
    """Colours of slots 0 to ``n - 1``, red, green and blue in [0,1]: float64 (n,3).

    The order is fixed, so a slot has one colour everywhere, and the 16 colours stay apart for
    readers with a colour vision deficiency. From the 17th on they repeat.

    Raises:
        ValueError: ``n`` is negative.
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more slots, got {n}")
    palette = np.array([[*bytes.fromhex(color[1:])] for color in SLOT_COLORS]) / 255
    return palette[np.arange(n) % len(palette)]


def blend(
    frames: np.ndarray,
    labels: np.ndarray,
    *,
    opacity: float = 0.5,
    colors: np.ndarray | None = None,
) -> np.ndarray:
    """Frames with each region painted in its slot's colour and outlined: uint8 (...,h,w,3).

    A pixel with a neighbour above, below or beside it in another region is its region's outline.

    Args:
        frames: uint8 (...,h,w,3).
        labels: slot of each pixel (...,h,w); a negative label leaves the pixel as it is.
        opacity: share of the colour in the mix, in [0,1]; outlines get 1.8 times as much,
            at most 1.
        colors: float in [0,1] (k,3); default ``slot_colors``.

    Raises:
        ValueError: the shapes disagree, frames are not uint8, labels are not integers or the
            opacity is outside [0,1].
    """
    if frames.dtype != np.uint8 or frames.shape[-1:] != (3,):
        raise ValueError(f"frames must be uint8 (...,h,w,3), got {frames.dtype} {frames.shape}")
    if labels.shape != frames.shape[:-1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers {frames.shape[:-1]} to fit the frames, "
            f"got {labels.dtype} {labels.shape}; resize them first"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0,1], got {opacity}")
    slots = np.maximum(labels, 0)
    if colors is None:
        colors = slot_colors(len(SLOT_COLORS))
        slots = slots % len(SLOT_COLORS)
    edge = np.zeros(labels.shape, bool)
    across = labels[..., :, 1:] != labels[..., :, :-1]
    down = labels[..., 1:, :] != labels[..., :-1, :]
    edge[..., :, 1:] |= across
    edge[..., :, :-1] |= across
    edge[..., 1:, :] |= down
    edge[..., :-1, :] |= down
    alpha = np.where(edge, min(1.0, 1.8 * opacity), opacity) * (labels >= 0)
    paint = 255 * colors[slots]
    mixed = frames + alpha[..., None] * (paint - frames)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
