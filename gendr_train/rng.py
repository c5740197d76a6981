"""Random numbers that depend on nothing but the run's seed and an image's place in the row of training images.

Role: used by ``data`` for crops and damage and by ``stages`` for noise and timesteps. A resumed run, another number of
workers or another number of processes therefore sees the same numbers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DRAWS = 0x5DEECE66D
"""Keeps the stream of an update apart from that of crops and damage."""


def mix(seed: int, position: int) -> int:
    """Return a 64-bit seed whose neighbours are unrelated (the splitmix64 finaliser).

    Args:
        seed: of the run.
        position: any integer.
    """
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


class Draws:
    """The random numbers of one update: every image of the batch has a stream of its own."""

    def __init__(self, seed: int, positions: Sequence[int], device: torch.device) -> None:
        """Start the streams.

        Args:
            seed: of the run.
            positions: of the images in the row, as in ``Batch.position``.
            device: where the numbers are wanted; they are drawn on the processor.
        """
        self._streams = [torch.Generator().manual_seed(mix(seed ^ DRAWS, position)) for position in positions]
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """Return standard normals [B, *shape], float32."""
        return self._stack(lambda stream: torch.randn(shape, generator=stream))

    def uniform(self, low: float, high: float) -> Tensor:
        """Return numbers from low to high, [B] float32."""
        return self._stack(lambda stream: low + (high - low) * torch.rand((), generator=stream))

    def integers(self, low: int, high: int) -> Tensor:
        """Return integers from low to high - 1, [B] int64."""
        return self._stack(lambda stream: torch.randint(low, high, (), generator=stream))

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(stream) for stream in self._streams]).to(self._device)
