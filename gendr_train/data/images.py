"""Image files below folders, in a shuffled endless row, and the decoding that tar shards share.

Role: used by ``dataset``; ``shards`` is the other source of images. Left neighbour: the disk.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gendr_core.errors import ImageError

from ..rng import mix

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
CAPTION_SUFFIX = ".txt"


class TooSmallError(ImageError):
    """An image is smaller than a crop."""


class ImageSource(Protocol):
    """Encoded images with captions, and the order in which training sees them."""

    def __len__(self) -> int:
        """Return how many images there are."""
        ...

    def at(self, position: int) -> int:
        """Return the image at a place of the endless row, by its index.

        Args:
            position: at least 0; every image comes once in each run of ``len`` places.
        """
        ...

    def read(self, index: int) -> tuple[bytes, str]:
        """Return the encoded image and its caption, "" where it has none.

        Args:
            index: 0 to len - 1.
        """
        ...

    def name(self, index: int) -> str:
        """Return what an error calls the image.

        Args:
            index: 0 to len - 1.
        """
        ...


class FolderImages:
    """Image files; a text file of the same name beside one is its caption."""

    def __init__(self, paths: Sequence[Path], seed: int) -> None:
        """Note the files; nothing is read yet.

        Args:
            paths: as from ``find_images``.
            seed: of the order.
        """
        self._paths = paths
        self._seed = seed
        # A permutation is the same for len(paths) neighbouring places: keep the last one.
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        """Return how many files there are."""
        return len(self._paths)

    def at(self, position: int) -> int:
        """Return the index of the file at a place; every round has an order of its own.

        Args:
            position: at least 0.
        """
        epoch, offset = divmod(position, len(self._paths))
        if epoch != self._epoch:
            shuffle = torch.Generator().manual_seed(mix(self._seed, -1 - epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self._paths), generator=shuffle)
        return int(self._order[offset])

    def read(self, index: int) -> tuple[bytes, str]:
        """Return a file's bytes and its caption.

        Args:
            index: 0 to len - 1.

        Raises:
            ImageError: the image or its caption cannot be read.
        """
        path = self._paths[index]
        caption = path.with_suffix(CAPTION_SUFFIX)
        try:
            return path.read_bytes(), caption_text(caption.read_bytes(), str(caption)) if caption.exists() else ""
        except OSError as error:
            raise ImageError(f"expected a readable image, got {path}: {error}") from error

    def name(self, index: int) -> str:
        """Return the path.

        Args:
            index: 0 to len - 1.
        """
        return str(self._paths[index])


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


def caption_text(data: bytes, name: str) -> str:
    """Return a caption on one line.

    Args:
        data: UTF-8.
        name: of the file, for the error.

    Raises:
        ImageError: the bytes are no UTF-8.
    """
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ImageError(f"expected a caption in UTF-8, got {name}: {error}") from error


def decode_rgb(data: bytes, name: str, short_side_px: int | None = None) -> Tensor:
    """Return an image as [3, H, W] uint8 RGB.

    Args:
        data: an 8-bit image file; other depths are converted.
        name: of the file, for the error.
        short_side_px: larger images are shrunk, antialiased, until their short side has this length.

    Raises:
        ImageError: the file cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as encoded:
            picture = encoded.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f"expected a readable image, got {name}: {error}") from error
    short = min(picture.size)
    if short_side_px is not None and short > short_side_px:
        width, height = (round(side * short_side_px / short) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return torch.as_tensor(np.array(picture)).permute(2, 0, 1).contiguous()


def check_size(image_chw: Tensor, least_px: int, name: str) -> None:
    """Refuse an image that is too small.

    Args:
        image_chw: [3, H, W].
        least_px: smallest side that is of use.
        name: of the file, for the error.

    Raises:
        TooSmallError: a side is shorter.
    """
    height, width = image_chw.shape[1:]
    if min(height, width) < least_px:
        raise TooSmallError(f"expected images of at least {least_px} pixels a side, got {width}x{height} in {name}")


def read_rgb(path: Path, least_px: int) -> Tensor:
    """Return an image file as [3, H, W] uint8 RGB.

    Args:
        path: an 8-bit image file; other depths are converted.
        least_px: smallest side that is of use.

    Raises:
        ImageError: the file cannot be read or decoded, or a side is shorter than ``least_px``.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"expected a readable image, got {path}: {error}") from error
    image = decode_rgb(data, str(path))
    check_size(image, least_px, str(path))
    return image
