"""Which part of an image is seen, which way round, and in which colours.

Role: drawn by ``dataset`` for every item; the same cut serves an original and its damaged version.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..schema import DataConfig


class Cut(NamedTuple):
    """A square of an image and one of the eight symmetries of a square."""

    top: int
    left: int
    symmetry: int
    """Quarter turns, 0 to 3, and 4 more where left and right are exchanged first."""
    colors: Tensor | None
    """[3] int64: where each channel comes from; None leaves them."""

    def of(self, image_chw: Tensor, side_px: int, shrunk: int = 1) -> Tensor:
        """Return the cut of an image, [3, side/shrunk, side/shrunk].

        Args:
            image_chw: [3, H/shrunk, W/shrunk].
            side_px: of the square in the full-size image.
            shrunk: size of the full-size image over size of this one; divides the cut's corner and side.
        """
        top, left, side = (length // shrunk for length in (self.top, self.left, side_px))
        crop = image_chw[:, top : top + side, left : left + side]
        if self.symmetry >= 4:
            crop = crop.flip(2)
        crop = torch.rot90(crop, self.symmetry % 4, (1, 2)).contiguous()
        return crop if self.colors is None else crop[self.colors]


def draw_cut(image_chw: Tensor, data: DataConfig, generator: torch.Generator, grid: int = 1) -> Cut:
    """Return a random cut: without turns, only left and right are exchanged.

    Args:
        image_chw: [3, H, W].
        data: size of the crop, turns and how often colours are shuffled.
        generator: source of every draw; its state advances.
        grid: what the corner is a multiple of.
    """
    _, height, width = image_chw.shape
    top = grid * int(torch.randint((height - data.crop_px) // grid + 1, (), generator=generator))
    left = grid * int(torch.randint((width - data.crop_px) // grid + 1, (), generator=generator))
    if data.turns:
        symmetry = int(torch.randint(8, (), generator=generator))
    else:
        symmetry = 4 * int(torch.randint(2, (), generator=generator))
    shuffled = float(torch.rand((), generator=generator)) < data.color_shuffle
    return Cut(top, left, symmetry, torch.randperm(3, generator=generator) if shuffled else None)
