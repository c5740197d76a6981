"""Tar files of images and captions, laid out as webdataset lays them out, in a shuffled endless row.

Role: used by ``dataset`` in place of folders. The names of shards and the grouping of members are webdataset's own
functions. Its reading is not used: it streams, so the row depends on the number of workers and a run can only resume by
reading everything before. Here one pass over the headers of each tar notes where members lie; then place -> member
is arithmetic, and a member is one seek. Shards must therefore be local files, and not compressed.
"""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gendr_core.errors import ImageError

from ..rng import mix
from .images import caption_text

SHARD_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SHUFFLE_IMAGES = 4096
"""Images shuffled among themselves: few enough that neighbours in the row lie in few shards."""


class ShardImages:
    """Images of tar shards. A round permutes the shards, then the images within blocks of ``shuffle_images``."""

    def __init__(self, shards: Sequence[Path], seed: int, *, shuffle_images: int = SHUFFLE_IMAGES) -> None:
        """Read the headers of every shard.

        Args:
            shards: as from ``find_shards``.
            seed: of the order.
            shuffle_images: length of the blocks.
        """
        self._shards = shards
        self._seed = seed
        self._block_images = shuffle_images
        spans = [_member_spans(path) for path in shards]
        self._spans = torch.cat(spans)
        self._counts = torch.tensor([len(part) for part in spans])
        self._first = self._counts.cumsum(0) - self._counts
        # Both are the same for many neighbouring places: keep the last ones.
        self._round = (-1, torch.empty(0, dtype=torch.int64))
        self._block = ((-1, -1), torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self._spans)

    def at(self, position: int) -> int:
        """Return the index of the image at a place.

        Args:
            position: at least 0.
        """
        epoch, offset = divmod(position, len(self))
        block, inside = divmod(offset, self._block_images)
        shards = self._shard_order(epoch)
        row = block * self._block_images + int(self._block_order(epoch, block)[inside])
        ends = self._counts[shards].cumsum(0)
        place = int(torch.searchsorted(ends, row, right=True))
        shard = shards[place]
        return int(self._first[shard] + row - (ends[place] - self._counts[shard]))

    def read(self, index: int) -> tuple[bytes, str]:
        """Return a member's bytes and its caption.

        Args:
            index: 0 to len - 1.

        Raises:
            ImageError: the shard cannot be read any more.
        """
        path = self._shard_of(index)
        offset, size, caption_offset, caption_size = (int(number) for number in self._spans[index])
        try:
            with path.open("rb") as file:
                file.seek(offset)
                image = file.read(size)
                file.seek(caption_offset)
                caption = file.read(caption_size)
        except OSError as error:
            raise ImageError(f"expected a readable shard, got {path}: {error}") from error
        return image, caption_text(caption, f"the caption of {self.name(index)}") if caption else ""

    def name(self, index: int) -> str:
        """Return the shard and the byte at which the image begins.

        Args:
            index: 0 to len - 1.
        """
        return f"{self._shard_of(index)} at byte {int(self._spans[index, 0])}"

    def _shard_of(self, index: int) -> Path:
        return self._shards[int(torch.searchsorted(self._first, index, right=True)) - 1]

    def _shard_order(self, epoch: int) -> Tensor:
        if epoch != self._round[0]:
            shuffle = torch.Generator().manual_seed(mix(self._seed, -1 - epoch))
            self._round = (epoch, torch.randperm(len(self._shards), generator=shuffle))
        return self._round[1]

    def _block_order(self, epoch: int, block: int) -> Tensor:
        if (epoch, block) != self._block[0]:
            length = min(self._block_images, len(self) - block * self._block_images)
            shuffle = torch.Generator().manual_seed(mix(mix(self._seed, -1 - epoch), block))
            self._block = ((epoch, block), torch.randperm(length, generator=shuffle))
        return self._block[1]


def find_shards(patterns: Sequence[str]) -> list[Path]:
    """Return the tar files that are meant, in the order given.

    Args:
        patterns: paths, with ranges in braces as webdataset writes them (``train-{000..099}.tar``), or folders of tars.

    Raises:
        ImageError: a file does not exist, or a folder holds no tar.
    """
    from webdataset.shardlists import expand_urls

    found: list[Path] = []
    for path in (Path(url) for pattern in patterns for url in expand_urls(pattern)):
        inside = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not inside or not inside[0].is_file():
            raise ImageError(f"expected a tar file or a folder of tar files, got {path}: set data.shards")
        found += inside
    return found


def _member_spans(path: Path) -> Tensor:
    """Return (offset, size, caption's offset, caption's size) [images, 4] int64, sizes 0 where there is no caption."""
    from webdataset.tariterators import group_by_keys

    try:
        samples = list(group_by_keys(_files(path)))
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ImageError(f"expected an uncompressed tar file of unlike members, got {path}: {error}") from error
    spans: list[tuple[int, int, int, int]] = []
    for sample in samples:
        images = [sample[suffix] for suffix in SHARD_IMAGE_SUFFIXES if suffix in sample]
        if len(images) != 1:
            raise ImageError(
                f"expected one image ({' '.join(SHARD_IMAGE_SUFFIXES)}) for each name in {path},"
                f" got {len(images)} for {sample['__key__']}"
            )
        spans.append((*images[0], *sample.get("txt", (0, 0))))
    if not spans:
        raise ImageError(f"expected images in {path}, got none")
    return torch.tensor(spans, dtype=torch.int64)


def _files(path: Path) -> Iterator[dict[str, object]]:
    """Yield every member as webdataset's grouping takes it, with (offset, size) in place of its bytes."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if member.isfile():
                yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": str(path)}
