"""What both ends of a restoration take: ``prepare`` and ``finish``, which run no network.

Role: ``planner`` asks here as it asks ``sketch`` about the stages in between.
"""

from functools import lru_cache

import torch

from .color import LOW_PASS_REACH
from .config import ColorMethod, RestoreOptions
from .cost import measure
from .finish import feather, mask_rows, resize_mask
from .geometry import Extent
from .prepare import prepare
from .sketch import REMEMBERED, meta_tensor
from .tensors import BAND_BYTES

COLOR_BANDS: dict[ColorMethod, tuple[float, float]] = {
    "none": (0.0, 0.0),
    "wavelet": (3.5, 5.1),
    "adain": (6.0, 6.0),
    "ycbcr": (7.0, 7.0),
    "lab": (24.8, 24.8),
}
"""Bands that ``match_color`` holds of a frame whose planes are one band, and of a larger one."""
LAYOUT_BANDS = (1.0, 2.0)
"""Bands of all channels that the change of layout holds: in place, and from other pixels."""
LAB_BYTES_PER_PIXEL = 36
"""Of the stable sort of one channel: values, places and their ranks."""


@lru_cache(maxsize=REMEMBERED)
def prepare_bytes(source: Extent, channels: int, output: Extent, multiple: int) -> int:
    """Return the peak of ``prepare`` on one frame, without the frame itself; alpha is counted as one more channel."""
    image = meta_tensor(1, source.height, source.width, min(channels, 3))
    _, cost = measure(lambda: prepare(image, output, multiple), held=[])
    return cost.peak_bytes + alpha_bytes(channels, output)


def alpha_bytes(channels: int, output: Extent) -> int:
    """Return what the alpha of one frame takes."""
    return torch.float32.itemsize * output.area if channels == 4 else 0


def color_bytes(
    output: Extent, channels: int, options: RestoreOptions, mask: Extent | None = None, frames: int = 1
) -> int:
    """Return the scratch of ``finish``, beside pixels, input, colour reference and result.

    A formula, because hundreds of bands would take longer to sketch than all the rest: so many bands of a plane, and
    for lab the sort of one channel. Measured with torch's allocator from 256x256 to 4000x3000.

    Args:
        output: size of the frame.
        channels: of the image.
        options: how colours are matched, how much detail is added, how wide the border of the mask is.
        mask: its size; None where there is none.
        frames: finished together.
    """
    plane = frames * torch.float32.itemsize * output.area
    touched = options.detail != 1.0 or mask is not None
    # Gray has no room for matched colours in its own image, and no colours to be laid out.
    matched = 3 * plane if channels == 1 and (options.color != "none" or touched) else 0
    in_place = channels > 1 and (options.color != "none" or touched)
    layout = int(LAYOUT_BANDS[not in_place] * min(3 * plane, BAND_BYTES))
    detail = 0 if options.detail == 1.0 else _match_bytes(output, "wavelet", 1)
    masking = 0 if mask is None else frames * mask_bytes(output, mask, options.feather_px)
    return matched + max(layout, _match_bytes(output, options.color, frames), detail, masking)


def _match_bytes(output: Extent, method: ColorMethod, frames: int) -> int:
    """Return the scratch of ``match_color``, which takes frames one by one only with wavelets."""
    plane = torch.float32.itemsize * output.area * (1 if method == "wavelet" else frames)
    halo = 2 * LOW_PASS_REACH * torch.float32.itemsize * output.width
    if plane <= BAND_BYTES + halo:
        return int(COLOR_BANDS[method][0] * plane)
    matching = int(COLOR_BANDS[method][1] * (BAND_BYTES + halo))
    return max(matching, LAB_BYTES_PER_PIXEL * output.area if method == "lab" else 0)


@lru_cache(maxsize=REMEMBERED)
def mask_bytes(output: Extent, mask: Extent, reach: int) -> int:
    """Return the peak of resizing a mask, of smoothing it by ``reach`` pixels and of blending with it one frame."""
    _, resizing = measure(lambda: resize_mask(meta_tensor(1, mask.height, mask.width), output), held=[])
    rows = min(output.height, mask_rows(output, reach))
    band = Extent(min(output.height, rows + 2 * reach), output.width)
    _, smoothing = measure(lambda: feather(meta_tensor(1, 1, band.height, band.width), reach), held=[])
    # The weights of the band before stay until there are new ones.
    blending = smoothing.peak_bytes + torch.float32.itemsize * band.area
    return max(resizing.peak_bytes, torch.float32.itemsize * output.area + blending)
