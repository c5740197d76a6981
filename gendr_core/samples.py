"""Samples as files store them: turned upright, alpha straightened, to unit floats and back.

Role: the arithmetic under ``image_io``. numpy only; all arrays are [H, W, C].
"""

from logging import getLogger
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .geometry import Span, partition

BitDepth = Literal[8, 16, 32]
"""Bits per channel; 32 is floating point."""
Samples = NDArray[Any]
"""[H, W, C] as stored: uint8, uint16 or floating point."""

_INTEGERS: dict[str, BitDepth] = {"uint8": 8, "uint16": 16}
_BAND_VALUES = 4 * 2**20  # Little beside a frame, and much for a single call.

_log = getLogger(__name__)


def _bands(samples: Samples) -> list[Span]:
    """Return bands of rows of about ``_BAND_VALUES`` each; at least one row."""
    return partition(len(samples), max(1, _BAND_VALUES // samples[0].size))


def upright(samples: Samples, orientation: int) -> Samples:
    """Return a view of ``samples`` as it is meant to be seen.

    Args:
        samples: [H, W, C].
        orientation: the EXIF or TIFF tag 274, 1 to 8; any other number counts as 1.
    """
    if orientation in (5, 6, 7, 8):
        samples = samples.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples


def straight_alpha(samples: Samples) -> Samples:
    """Return premultiplied ``samples`` with the colour divided by alpha (the last channel), type kept; 0 under 0."""
    full = np.iinfo(samples.dtype).max if samples.dtype.kind == "u" else 1.0
    straight = samples.copy()
    for band in _bands(samples):
        rows = samples[band.places]
        color, alpha = rows[..., :-1], rows[..., -1:].astype(np.float64) / full
        divided = np.divide(color, alpha, out=np.zeros(color.shape), where=alpha > 0.0)
        if samples.dtype.kind == "u":
            divided = divided.clip(max=full).round()
        straight[band.places, :, :-1] = divided
    return straight


def to_unit(samples: Samples, name: str) -> tuple[NDArray[np.float32], BitDepth]:
    """Return ``samples`` as contiguous float32 in 0 to 1 with 1, 3 or 4 channels, and the bits that they had.

    8 and 16-bit values are divided by 255 and 65535; floating point is clipped, with a warning. Gray with alpha
    becomes RGBA.

    Args:
        samples: [H, W, 1 to 4].
        name: of the file, for messages.

    Raises:
        ImageError: another type or number of channels, or values that are not finite.
    """
    channels = samples.shape[2]
    if not 1 <= channels <= 4:
        raise ImageError(f"expected 1 to 4 channels, got {channels} in {name}: convert it to gray, RGB or RGBA")
    if channels == 2:
        samples = np.concatenate([samples[..., :1].repeat(3, axis=2), samples[..., 1:]], axis=2)
    bit_depth = _INTEGERS.get(samples.dtype.name)
    if bit_depth is not None:
        values = samples.astype(np.float32, order="C")
        values /= 2.0**bit_depth - 1.0
        return values, bit_depth
    if samples.dtype.kind != "f":
        raise ImageError(f"expected 8-bit, 16-bit or floating point samples, got {samples.dtype} in {name}: convert it")
    low, high = float(samples.min()), float(samples.max())
    if not (isfinite(low) and isfinite(high)):  # A single NaN is the least and the largest.
        raise ImageError(f"expected finite values, got NaN or infinity in {name}: repair it")
    if low < 0.0 or high > 1.0:
        _log.warning("%s has values from %g to %g: clipped to 0 to 1", name, low, high)
    values = np.empty(samples.shape, np.float32)
    return np.clip(samples, 0.0, 1.0, out=values, casting="same_kind"), 32


def to_stored(values: NDArray[np.float32], bit_depth: BitDepth) -> Samples:
    """Return ``values`` (clamped to 0 to 1) as uint8, uint16 rounded to nearest, or float32 for 32.

    8 bits are cut off, floor(255 v), as ComfyUI's Save Image does it: the same restoration then gives the same bytes
    there and here (docs/decisions/0010). Values read from an 8-bit file come back exactly.
    """
    if bit_depth == 32:
        return values.clip(0.0, 1.0)
    stored = np.empty(values.shape, np.uint8 if bit_depth == 8 else np.uint16)
    for band in _bands(values):
        part = values[band.places].clip(0.0, 1.0)
        part *= 2.0**bit_depth - 1.0
        stored[band.places] = part if bit_depth == 8 else np.rint(part, out=part)
    return stored
