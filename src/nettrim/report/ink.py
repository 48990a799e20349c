"""A weight matrix as a picture that reads on light and dark paper alike: hue is the sign, opacity the magnitude."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POSITIVE = (52, 126, 214)
NEGATIVE = (219, 70, 98)
_FAINTEST = 0.15  # a weight that is kept is always visible
_LEVELS = 15
_MIXES = 8


def magnitude_scale(weight: NDArray[np.floating]) -> float:
    """The magnitude drawn at full strength: the 99.5th percentile of the nonzero ones."""
    magnitudes = np.abs(weight[weight != 0])
    return float(np.quantile(magnitudes, 0.995)) if magnitudes.size else 1.0


def weight_image(weight: NDArray[np.floating], scale: float, pixels: int = 320) -> NDArray[np.uint8]:
    """RGBA picture of a matrix (rows, columns), at most `pixels` a side; zeros are transparent.

    Where several weights share a pixel their ink is averaged, and faint averages are lifted so that
    a matrix with few weights left does not vanish.
    """
    pooled = max(weight.shape) > pixels
    positive = _pool(_strength(np.maximum(weight, 0), scale), pixels)
    negative = _pool(_strength(np.maximum(-weight, 0), scale), pixels)
    total = positive + negative
    opacity = np.minimum(total, 1.0) ** (0.6 if pooled else 1.0)
    share = np.divide(positive, total, out=np.zeros_like(total), where=total > 0)
    # few levels make few colours, and few colours a small file
    opacity = np.ceil(opacity * _LEVELS) / _LEVELS
    share = np.where(opacity > 0, np.round(share * _MIXES) / _MIXES, 0.0)[..., None]
    colour = share * np.array(POSITIVE) + (1 - share) * np.array(NEGATIVE)
    return np.concatenate([np.round(colour), np.round(255 * opacity[..., None])], axis=-1).astype(np.uint8)


def _strength(magnitude: NDArray[np.floating], scale: float) -> NDArray[np.floating]:
    inked = _FAINTEST + (1 - _FAINTEST) * np.sqrt(np.minimum(magnitude / scale, 1.0))
    return np.where(magnitude > 0, inked, 0.0)


def _pool(values: NDArray[np.floating], pixels: int) -> NDArray[np.floating]:
    """Means over near-equal blocks, at most `pixels` a side."""
    for axis in (0, 1):
        length = values.shape[axis]
        if length > pixels:
            edges = np.linspace(0, length, pixels + 1).astype(int)
            sizes = np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
            values = np.add.reduceat(values, edges[:-1], axis=axis) / sizes
    return values
