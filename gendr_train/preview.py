"""A picture of what training will see: originals beside their damaged versions.

Role: called by ``cli``; uses the very rows of ``data.dataset``, from their beginning.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .data.dataset import TrainingCrops, collate
from .degradations import Degradation, SecondOrder
from .errors import TrainingError
from .schema import DataConfig

GAP_PX = 4


def write_preview(
    data: DataConfig, degradation: Degradation | SecondOrder, *, seed: int, images: int, path: Path
) -> None:
    """Write a PNG: for each of the first crops, the original and, to its right, the damaged one enlarged bicubically.

    Args:
        data: which images; damage is done here, with the strengths that either place of it draws.
        degradation: ranges of the damage.
        seed: of the run.
        images: how many crops, at least 1.
        path: the file; it appears whole or not at all.

    Raises:
        TrainingError: fewer than one image is asked for, or the file cannot be written.
    """
    if images < 1:
        raise TrainingError(f"expected at least 1 image to show, got {images}")
    here = dataclasses.replace(data, damage_on="worker", cache=False)
    crops = TrainingCrops(here, degradation, seed=seed, start=0, stop=images)
    batch = collate([crops[index] for index in range(images)])
    original = batch.original.to(torch.float32) / 255.0
    enlarged = functional.interpolate(batch.damaged, size=original.shape[2:], mode="bicubic", align_corners=False)
    # Two crops side by side are twice as wide as high: half as many pairs in a row as in a column make a square.
    columns = max(1, round(math.sqrt(images / 2)))
    grid = _grid(torch.cat([original, enlarged.clamp(0.0, 1.0)], dim=3), columns)
    pixels_hwc = (grid * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels_hwc)).save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        raise TrainingError(f"expected a place to write a picture, got {path}: {error}") from error


def _grid(tiles: Tensor, columns: int) -> Tensor:
    """Lay tiles [N, 3, h, w] out in rows, with white gaps: [3, H, W]."""
    padded = functional.pad(tiles, (0, GAP_PX, 0, GAP_PX), value=1.0)
    missing = -len(padded) % columns
    padded = functional.pad(padded, (0, 0, 0, 0, 0, 0, 0, missing), value=1.0)
    _, channels, height, width = padded.shape
    rows = padded.reshape(-1, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return rows.reshape(channels, -1, columns * width)[:, :-GAP_PX, :-GAP_PX]
