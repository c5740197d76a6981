"""Pictures on their way to a device and back, without the processor waiting for it.

Role: ``pipeline`` sends frames and takes results through here, so that one group of frames is under way while the next
is computed. Only CUDA copies by itself, and only from and to page-locked memory; elsewhere these are plain copies.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def upload(image: Tensor, device: torch.device) -> Tensor:
    """Return ``image``, any shape, on ``device``; itself where it is there. On CUDA it may still be under way."""
    if device.type != "cuda" or image.device.type != "cpu":
        return image.to(device)
    return image.pin_memory().to(device, non_blocking=True)


class _UnderWay(NamedTuple):
    staged: Tensor
    """In page-locked memory, where the device writes."""
    out: Tensor
    arrived: torch.cuda.Event


class Downloads:
    """Results that come from a device into their places, at most one at a time under way."""

    def __init__(self) -> None:
        """Start with none."""
        self._under_way: _UnderWay | None = None

    def add(self, result: Tensor, out: Tensor) -> None:
        """Bring ``result`` into ``out``, of its shape and dtype, on the processor; the one before is there then."""
        self.settle()
        if result.device.type != "cuda":
            out.copy_(result)
            return
        staged = torch.empty(result.shape, dtype=result.dtype, pin_memory=True).copy_(result, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(result.device))
        self._under_way = _UnderWay(staged, out, arrived)

    def settle(self) -> None:
        """Return when all is in its place."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.arrived.synchronize()
            under_way.out.copy_(under_way.staged)
