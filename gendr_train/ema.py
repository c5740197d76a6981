"""The averaged weights that are validated and exported.

Role: updated by ``loop`` after every optimiser step, put in place for validation and export.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages that follow parameters slowly: e <- d e + (1 - d) w after every update."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Start at the present weights.

        Args:
            parameters: what is followed; an engine may have split them over devices.
            decay: weight of the past, [0, 1).
        """
        self._parameters = list(parameters)
        # In full precision whatever the engine keeps: a step of the average is lost in bf16.
        self._averages = [parameter.detach().to(torch.float32, copy=True) for parameter in parameters]
        self._decay = decay

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Move towards the parameters, faster at first: d = min(decay, (1 + n) / (10 + n)).

        Args:
            num_updates: n, optimiser steps done so far.
        """
        decay = min(self._decay, (1 + num_updates) / (10 + num_updates))
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter.float(), 1.0 - decay)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Have the parameters be their averages inside, and themselves again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            own = parameter.to(torch.float32, copy=True)
            parameter.copy_(average)
            average.copy_(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by number, as accelerate saves them."""
        return {str(index): average for index, average in enumerate(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averages saved from the same parameters."""
        for index, average in enumerate(self._averages):
            average.copy_(state[str(index)])
