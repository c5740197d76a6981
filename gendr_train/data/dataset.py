"""Images as an endless, seekable row of training crops.

Role: built by ``loop``; item ``i`` depends on nothing but (files, config, seed, i), so a run resumes by starting at the
next index, with any number of workers, and accelerate may deal whole batches to processes. Right neighbour: ``stages``,
through ``Batch``.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gendr_core.errors import ImageError

from ..degradations import Degradation, SecondOrder
from ..rng import mix
from ..schema import DataConfig
from .cut import draw_cut
from .damage import damage_stream
from .degrade import SCALE, degrade_randomly
from .images import FolderImages, ImageSource, TooSmallError, check_size, decode_rgb, find_images
from .pairs import DamagedFolder
from .second_order import degrade_second_order
from .shards import ShardImages, find_shards

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Originals and their damaged versions; without the leading B for a single item."""

    original: Tensor
    """[B, 3, H, W] uint8."""
    damaged: Tensor
    """[B, 3, H/4, W/4] float32, 0..1; [B, 3, 0, 0] where ``damage_batch`` is still to make it."""
    position: Tensor
    """[B] int64: place in the endless row; seeds every draw about the image."""
    caption: list[str]
    """B texts, "" where there is none."""


class Picture(NamedTuple):
    """A decoded image of the row."""

    original: Tensor
    """[3, H, W] uint8."""
    damaged: Tensor | None
    """[3, H/4, W/4] uint8, where it comes from a file."""
    caption: str


class TrainingCrops(Dataset[Batch]):
    """Items ``start`` to ``stop`` of the endless row: random crops, flipped, turned and damaged."""

    def __init__(
        self, data: DataConfig, degradation: Degradation | SecondOrder, *, seed: int, start: int, stop: int
    ) -> None:
        """List the files; nothing is decoded yet.

        Args:
            data: folders or shards, crop size and cache.
            degradation: ranges of the damage.
            seed: of order, crops and damage.
            start: first index, i.e. images seen before.
            stop: one past the last index.
        """
        self._source = _open_source(data, seed)
        self._data = data
        self._degradation = degradation
        self._seed = seed
        self._start, self._stop = start, stop
        self._pairs = None if data.damaged is None else DamagedFolder(data.damaged, data.folders[0])
        self._cache: dict[int, Picture] = {}
        self._small: set[int] = set()

    def __len__(self) -> int:
        """Return how many items are left."""
        return self._stop - self._start

    def __getitem__(self, index: int) -> Batch:
        """Return one item; its caption is the only text of its list.

        Args:
            index: 0 to len - 1, counted from ``start``.
        """
        position = self._start + index
        picture = self._picture_at(position)
        generator = torch.Generator().manual_seed(mix(self._seed, position))
        crop_px = self._data.crop_px
        cut = draw_cut(picture.original, self._data, generator, grid=1 if picture.damaged is None else SCALE)
        original = cut.of(picture.original, crop_px)
        if picture.damaged is None:
            damaged = self._damage(original, position, generator)
        else:
            damaged = cut.of(picture.damaged, crop_px, SCALE).to(torch.float32) / 255.0
        return Batch(original, damaged, torch.tensor(position), [picture.caption])

    def _damage(self, original: Tensor, position: int, generator: torch.Generator) -> Tensor:
        if self._data.damage_on == "device":
            return torch.empty((3, 0, 0))
        image_bchw = original[None].to(torch.float32) / 255.0
        if isinstance(self._degradation, SecondOrder):
            return degrade_second_order(image_bchw, self._degradation, damage_stream(self._seed, position))[0]
        return degrade_randomly(image_bchw, self._degradation, generator)[0]

    def _picture_at(self, position: int) -> Picture:
        """Return the picture at a place of the row; where it is too small and may be, the next that is not."""
        # Twice the length holds a whole round, wherever it begins.
        for place in range(position, position + 2 * len(self._source)):
            index = self._source.at(place)
            if index in self._small:
                continue
            try:
                return self._picture(index)
            except TooSmallError as error:
                if not self._data.skip_small:
                    raise
                self._small.add(index)
                logger.warning("left out: %s", error)
        raise ImageError(f"expected images of at least {self._data.crop_px} pixels a side, got none")

    def _picture(self, index: int) -> Picture:
        if index in self._cache:
            return self._cache[index]
        name = self._source.name(index)
        encoded, caption = self._source.read(index)
        image = decode_rgb(encoded, name, self._data.short_side_px)
        check_size(image, self._data.crop_px, name)
        damaged = None if self._pairs is None else self._pairs.read(name, image)
        picture = Picture(image, damaged, caption)
        if self._data.cache:
            self._cache[index] = picture
        return picture


def training_batches(
    data: DataConfig, degradation: Degradation | SecondOrder, *, seed: int, start: int, stop: int
) -> DataLoader[Batch]:
    """Return batches of whole size from the endless row, in order.

    Args:
        data: folders or shards, crop, batch, workers.
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
        collate_fn=collate,
        drop_last=True,
        prefetch_factor=4 if data.workers else None,
    )


def collate(items: Sequence[Batch]) -> Batch:
    """Return items as one batch.

    Args:
        items: of ``TrainingCrops``, at least one.
    """
    return Batch(
        torch.stack([item.original for item in items]),
        torch.stack([item.damaged for item in items]),
        torch.stack([item.position for item in items]),
        [caption for item in items for caption in item.caption],
    )


def _open_source(data: DataConfig, seed: int) -> ImageSource:
    if data.shards:
        return ShardImages(find_shards(data.shards), seed)
    return FolderImages(find_images(data.folders), seed)
