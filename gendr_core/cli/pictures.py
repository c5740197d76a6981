"""Side-by-side pictures for the eye: input, bicubic, restored and original in one row, with labels.

Role: used by ``evaluate``.
"""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LABEL_HEIGHT_PX = 24
GAP_PX = 4


def enlarge_nearest(image: Tensor, factor: int) -> Tensor:
    """Return [1, factor H, factor W, C] of ``image`` [1, H, W, C] with every pixel repeated."""
    return image.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def side_by_side(panels: Mapping[str, Tensor]) -> Tensor:
    """Return one image [1, H + 24, W', 3] in 0 to 1: the panels from left to right, each under its label.

    Args:
        panels: label -> [1, H, W, 3] in 0 to 1, all of one size.
    """
    height, width = next(iter(panels.values())).shape[1:3]
    sheet = Image.new("RGB", (len(panels) * (width + GAP_PX) - GAP_PX, height + LABEL_HEIGHT_PX))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for index, (label, panel) in enumerate(panels.items()):
        left = index * (width + GAP_PX)
        draw.text((left + GAP_PX, GAP_PX), label, fill="white", font=font)
        samples = (panel[0].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()
        sheet.paste(Image.fromarray(samples), (left, LABEL_HEIGHT_PX))
    return torch.as_tensor(np.array(sheet)).to(torch.float32)[None] / 255.0
