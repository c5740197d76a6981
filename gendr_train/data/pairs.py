"""Damaged images from files: pairs that a camera, a teacher or another program made.

Role: used by ``dataset`` in place of the damage that it would make itself.
"""

from pathlib import Path

from torch import Tensor

from gendr_core.errors import ImageError

from .degrade import SCALE
from .images import IMAGE_SUFFIXES, read_rgb


class DamagedFolder:
    """Damaged versions under the paths of the originals."""

    def __init__(self, folder: str, originals: str) -> None:
        """Note the folders; nothing is read yet.

        Args:
            folder: of the damaged images.
            originals: of the originals.

        Raises:
            ImageError: the folder does not exist.
        """
        self._folder, self._originals = Path(folder), Path(originals)
        if not self._folder.is_dir():
            raise ImageError(f"expected a folder of damaged images, got {folder}: set data.damaged")

    def read(self, original: str, image_chw: Tensor) -> Tensor:
        """Return the damaged version of an image, [3, H/4, W/4] uint8.

        Args:
            original: path of the original.
            image_chw: the original, [3, H, W].

        Raises:
            ImageError: there is no damaged version, it cannot be read, or its size is not a quarter of the original's.
        """
        below = self._folder / Path(original).relative_to(self._originals)
        found = [path for path in (below.with_suffix(suffix) for suffix in IMAGE_SUFFIXES) if path.is_file()]
        if not found:
            raise ImageError(f"expected a damaged version of {original}, got none at {below.with_suffix('.*')}")
        damaged = read_rgb(found[0], 1)
        height, width = image_chw.shape[1:]
        if (damaged.shape[1] * SCALE, damaged.shape[2] * SCALE) != (height, width):
            raise ImageError(
                f"expected {width / SCALE:g}x{height / SCALE:g} pixels for an original of {width}x{height}, got"
                f" {damaged.shape[2]}x{damaged.shape[1]} in {found[0]}"
            )
        return damaged
