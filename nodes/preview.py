"""A small picture of a frame in work: the input, over which finished parts appear.

Role: ``Display`` takes progress and finished parts from the core and says what the host is to show; ``host`` shows it.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch.nn.functional as F
from PIL import Image

from ..gendr_core.geometry import Extent

if TYPE_CHECKING:
    from torch import Tensor

    from ..gendr_core.geometry import Span

MAX_EDGE = 512
"""Longest edge of the picture in pixels."""
SECONDS_BETWEEN_PICTURES = 0.3
"""So that pictures neither flicker nor cost more than what they show."""

SECONDS_BETWEEN_UPDATES = 0.05
"""A message of progress costs the host more than many a band takes; nobody sees more than twenty in a second."""

Send: TypeAlias = Callable[[int, int, Image.Image | None], None]
"""Shows what is done of a total, and a picture if there is a new one."""


class Thumbnail:
    """The picture, on the processor, with edges of 1 to ``MAX_EDGE`` pixels."""

    def __init__(self, pixels: "Tensor") -> None:
        """Show ``pixels`` [1, 3, H, W] in -1 to 1, the frame as it comes in."""
        height, width = pixels.shape[2:]
        factor = min(1.0, MAX_EDGE / max(height, width))
        self.frame = Extent(height, width)
        """Size of the frame."""
        self._extent = Extent(max(1, round(height * factor)), max(1, round(width * factor)))
        self._pixels = _resize(pixels, self._extent)

    def paste(self, pixels: "Tensor", rows: "Span", columns: "Span") -> None:
        """Show these rows and columns of the frame as ``pixels`` [1, 3, rows, columns], on any device."""
        down = _scaled(rows, self.frame.height, self._extent.height)
        across = _scaled(columns, self.frame.width, self._extent.width)
        extent = Extent(down.stop - down.start, across.stop - across.start)
        self._pixels[:, :, down, across] = _resize(pixels, extent)

    def picture(self) -> Image.Image:
        """Return what is to be seen now; values outside of -1 to 1 are cut off."""
        samples = (self._pixels[0] * 127.5 + 127.5).round().clamp(0.0, 255.0).byte()
        return Image.fromarray(samples.permute(1, 2, 0).contiguous().numpy())


def _resize(pixels: "Tensor", extent: Extent) -> "Tensor":
    # The mean of each cell: no scratch of the frame's size, and any size from one pixel up.
    return F.adaptive_avg_pool2d(pixels.float(), (extent.height, extent.width)).cpu()


def _scaled(span: "Span", length: int, size: int) -> slice:
    """Return which of ``size`` places stand for ``span`` of ``length``: at least one."""
    return slice(span.start * size // length, -(-span.stop * size // length))


class Display:
    """Progress and preview of one run, as ``gendr_core.host`` asks for them."""

    def __init__(self, send: Send) -> None:
        """Show everything by ``send``, which may raise to stop the run."""
        self._send = send
        self._progress: tuple[int, int] | None = None
        self._thumbnail: Thumbnail | None = None
        self._changed = False
        # What came in is known already: the first picture has to wait, too.
        self._next_picture_s = time.monotonic() + SECONDS_BETWEEN_PICTURES
        self._next_update_s = 0.0

    def update(self, done: int, total: int) -> None:
        """Show how much is done."""
        self._progress = done, total
        self._show_now()

    def begin(self, pixels: "Tensor") -> None:
        """Start a picture of this frame, shown with the next progress."""
        self._thumbnail, self._changed = Thumbnail(pixels), True

    def show(self, pixels: "Tensor", rows: "Span", columns: "Span") -> None:
        """Put a finished part into the picture and show it: at once where nothing comes after it, else in its time."""
        if self._thumbnail is None:
            return
        self._thumbnail.paste(pixels, rows, columns)
        self._changed = True
        if self._is_finished():
            self._next_picture_s = 0.0
        self._show_now()

    def _is_finished(self) -> bool:
        return self._progress is not None and self._progress[0] == self._progress[1]

    def _show_now(self) -> None:
        if self._progress is None:
            return
        now, picture = time.monotonic(), None
        if self._thumbnail is not None and self._changed and now >= self._next_picture_s:
            picture = self._thumbnail.picture()
            self._changed, self._next_picture_s = False, now + SECONDS_BETWEEN_PICTURES
        if picture is not None or now >= self._next_update_s or self._is_finished():
            self._next_update_s = now + SECONDS_BETWEEN_UPDATES
            self._send(*self._progress, picture)
