"""Samples as files store them: turned upright, alpha straightened, to unit floats and back.

Role: the arithmetic under ``image_io``. numpy only; all arrays are [H, W, C].
"""

from logging import getLogger
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError

BitDepth = Literal[8, 16, 32]
"""Bits per channel; 32 is floating point."""
Samples = NDArray[Any]
"""[H, W, C] as stored: uint8, uint16 or floating point."""

_log = getLogger(__name__)


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
    color, alpha = samples[..., :-1], samples[..., -1:].astype(np.float64) / full
    divided = np.divide(color, alpha, out=np.zeros(color.shape), where=alpha > 0.0)
    if samples.dtype.kind == "u":
        divided = divided.clip(max=full).round()
    return np.concatenate([divided.astype(samples.dtype), samples[..., -1:]], axis=2)


def to_unit(samples: Samples, name: str) -> tuple[NDArray[np.float32], BitDepth]:
    """Return ``samples`` as float32 in 0 to 1 with 1, 3 or 4 channels, and the bits that they had.

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
    if samples.dtype == np.uint8:
        return samples.astype(np.float32) / 255.0, 8
    if samples.dtype == np.uint16:
        return samples.astype(np.float32) / 65535.0, 16
    if samples.dtype.kind != "f":
        raise ImageError(f"expected 8-bit, 16-bit or floating point samples, got {samples.dtype} in {name}: convert it")
    if not np.isfinite(samples).all():
        raise ImageError(f"expected finite values, got NaN or infinity in {name}: repair it")
    low, high = float(samples.min()), float(samples.max())
    if low < 0.0 or high > 1.0:
        _log.warning("%s has values from %g to %g: clipped to 0 to 1", name, low, high)
    return samples.clip(0.0, 1.0).astype(np.float32), 32


def to_stored(values: NDArray[np.float32], bit_depth: BitDepth) -> Samples:
    """Return ``values`` (clamped to 0 to 1) as uint8, uint16 rounded to nearest, or float32 for 32.

    8 bits are cut off, floor(255 v), as ComfyUI's Save Image does it: the same restoration then gives the same bytes
    there and here (docs/decisions/0010). Values read from an 8-bit file come back exactly.
    """
    values = values.clip(0.0, 1.0)
    if bit_depth == 32:
        return values
    if bit_depth == 16:
        return np.rint(values * 65535.0).astype(np.uint16)
    return (values * 255.0).astype(np.uint8)
