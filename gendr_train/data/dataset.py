"""Image folders as an endless, seekable row of training crops.

Role: built by ``loop``; item ``i`` depends on nothing but (files, config, seed, i), so a run resumes by starting at the
next index, with any number of workers. Right neighbour: ``steps``, through ``Batch``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gendr_core.errors import ImageError

from ..schema import DataConfig, Degradation
from .degrade import degrade_randomly

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


class Batch(NamedTuple):
    """Originals and their damaged versions; without the leading B for a single item."""

    original: Tensor
    """[B, 3, H, W] uint8."""
    damaged: Tensor
    """[B, 3, H/4, W/4] float32, 0..1."""


def find_images(folders: Sequence[str]) -> list[Path]:
    """Return every image file below the folders, sorted by path.

    Args:
        folders: where to look, recursively.

    Raises:
        ImageError: a folder does not exist or no image was found.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ImageError(f"expected a folder of images, got {folder}: set data.folders")
        found += [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise ImageError(f"expected images ({' '.join(IMAGE_SUFFIXES)}) below {', '.join(folders)}, got none")
    return sorted(found)


def read_rgb(path: Path, least_px: int) -> Tensor:
    """Return an image file as [3, H, W] uint8 RGB.

    Args:
        path: an 8-bit image file; other depths are converted.
        least_px: smallest side that is of use.

    Raises:
        ImageError: the file cannot be decoded or a side is shorter than ``least_px``.
    """
    try:
        with Image.open(path) as picture:
            pixels_hwc = np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f"expected a readable image, got {path}: {error}") from error
    height, width = pixels_hwc.shape[:2]
    if min(height, width) < least_px:
        raise ImageError(f"expected images of at least {least_px} pixels a side, got {width}x{height} in {path}")
    return torch.as_tensor(pixels_hwc).permute(2, 0, 1).contiguous()


class TrainingCrops(Dataset[Batch]):
    """Items ``start`` to ``stop`` of the endless row: random crops, flipped, turned and damaged."""

    def __init__(self, data: DataConfig, degradation: Degradation, *, seed: int, start: int, stop: int) -> None:
        """List the files; nothing is decoded yet.

        Args:
            data: folders, crop size and cache.
            degradation: ranges of the damage.
            seed: of order, crops and damage.
            start: first index, i.e. images seen before.
            stop: one past the last index.
        """
        self._paths = find_images(data.folders)
        self._data = data
        self._degradation = degradation
        self._seed = seed
        self._start, self._stop = start, stop
        self._cache: dict[int, Tensor] = {}
        # A permutation is the same for len(paths) neighbouring indices: keep the last one.
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        """Return how many items are left."""
        return self._stop - self._start

    def __getitem__(self, index: int) -> Batch:
        """Return one item.

        Args:
            index: 0 to len - 1, counted from ``start``.
        """
        position = self._start + index
        generator = torch.Generator().manual_seed(_mix(self._seed, position))
        original = _augment(self._image(self._file_at(position)), self._data.crop_px, generator)
        if float(torch.rand((), generator=generator)) < self._data.color_shuffle:
            original = original[torch.randperm(3, generator=generator)]
        image_bchw = original[None].to(torch.float32) / 255.0
        return Batch(original, degrade_randomly(image_bchw, self._degradation, generator)[0])

    def _file_at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._paths))
        if epoch != self._epoch:
            shuffle = torch.Generator().manual_seed(_mix(self._seed, -1 - epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self._paths), generator=shuffle)
        return int(self._order[offset])

    def _image(self, file: int) -> Tensor:
        if file in self._cache:
            return self._cache[file]
        image = read_rgb(self._paths[file], self._data.crop_px)
        if self._data.cache:
            self._cache[file] = image
        return image


def training_batches(
    data: DataConfig, degradation: Degradation, *, seed: int, start: int, stop: int
) -> DataLoader[Batch]:
    """Return batches of whole size from the endless row, in order.

    Args:
        data: folders, crop, batch, workers.
        degradation: ranges of the damage.
        seed: of order, crops and damage.
        start: images seen before.
        stop: one past the last image; a remainder smaller than a batch is left out.
    """
    crops = TrainingCrops(data, degradation, seed=seed, start=start, stop=stop)
    return DataLoader(
        crops,
        batch_size=data.batch,
        num_workers=data.workers,
        drop_last=True,
        prefetch_factor=4 if data.workers else None,
    )


def _augment(image_chw: Tensor, crop_px: int, generator: torch.Generator) -> Tensor:
    """Cut a random square, then one of the eight flips and quarter turns."""
    _, height, width = image_chw.shape
    top = int(torch.randint(height - crop_px + 1, (), generator=generator))
    left = int(torch.randint(width - crop_px + 1, (), generator=generator))
    symmetry = int(torch.randint(8, (), generator=generator))
    crop = image_chw[:, top : top + crop_px, left : left + crop_px]
    if symmetry >= 4:
        crop = crop.flip(2)
    return torch.rot90(crop, symmetry % 4, (1, 2)).contiguous()


def _mix(seed: int, position: int) -> int:
    """Return a 64-bit seed whose neighbours are unrelated (the splitmix64 finaliser)."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
