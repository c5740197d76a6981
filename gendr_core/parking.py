"""Where whole activations live: on the device of the network, or in the processor's memory with bands going to it.

Role: ``bands`` and ``windows`` make, read and write every frame through ``Frames``. A device with little memory then
holds bands only; a frame that leaves a network is on the network's device in any case.
"""

import torch
from torch import Tensor

from .cost import elsewhere
from .geometry import Span
from .nets.kernels import frame_format, in_order


class Frames:
    """Makes, reads and writes frames [B, C, H, W]."""

    def __init__(self, device: torch.device | None, *, channels_last: bool = False) -> None:
        """Settle where frames live, and how they lie in memory.

        Args:
            device: of the network whose frames are parked in the processor's memory; None leaves them with their input.
            channels_last: whether they are in that order on any device; else in the device's own.
        """
        self._device = device
        self._copies = device is not None and device.type != "cpu"
        # What is planned on the meta device has its parked frames there too.
        self._home = device if device is None or device.type == "meta" else torch.device("cpu")
        # Parked frames do not tell where the network computes, whose order they have.
        self._near = None if device is None else torch.empty(0, device=device)
        self._channels_last = channels_last

    def make(self, like: Tensor, *shape: int) -> Tensor:
        """Return an empty frame of ``shape`` in the dtype of ``like``, where frames live."""
        if self._home is None:
            return self._empty(shape, like, like.device)
        with elsewhere():
            return self._empty(shape, like, self._home)

    def make_near(self, like: Tensor, *shape: int) -> Tensor:
        """Return an empty tensor of ``shape`` in the dtype of ``like``, where the network computes."""
        return self._empty(shape, like, self._device or like.device)

    def read(self, frame: Tensor, span: Span) -> Tensor:
        """Return rows of a frame, where the network computes: a copy of what is parked beside it, else a view."""
        rows = frame[:, :, span.places]
        return self.make_near(rows, *rows.shape).copy_(rows) if self._copies else rows

    def read_all(self, frame: Tensor) -> Tensor:
        """Return all rows, as ``read``."""
        return self.read(frame, Span(0, frame.shape[2])) if self._copies else frame

    def write(self, frame: Tensor, span: Span, rows: Tensor) -> None:
        """Put rows into a frame, wherever it lives."""
        frame[:, :, span.places].copy_(rows)

    def add(self, frame: Tensor, span: Span, rows: Tensor) -> None:
        """Add ``rows``, which nobody needs afterwards, to those of a frame."""
        self.write(frame, span, rows.add_(self.read(frame, span)))

    def park(self, result: Tensor) -> Tensor:
        """Return ``result``, made in one piece, where frames live."""
        return self.in_order(result) if self._home is None else self.make(result, *result.shape).copy_(result)

    def in_order(self, frame: Tensor) -> Tensor:
        """Return ``frame`` in the order that frames have; itself where it is."""
        return in_order(frame, self._order(frame))

    def _order(self, like: Tensor) -> torch.memory_format:
        if self._channels_last:
            return torch.channels_last
        return frame_format(like if self._near is None else self._near)

    def _empty(self, shape: tuple[int, ...], like: Tensor, device: torch.device) -> Tensor:
        order = self._order(like) if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=device, memory_format=order)
