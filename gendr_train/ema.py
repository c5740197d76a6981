"""The averaged weights that are validated and exported.

Role: updated by ``loop`` after every optimiser step; read by ``validate`` and ``export``.
"""

import copy

import torch
from torch import nn


class Ema:
    """A copy of a network that follows it slowly: e <- d e + (1 - d) w after every update."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start at the network's present weights.

        Args:
            network: whose weights are followed; not wrapped.
            decay: weight of the past, [0, 1).
        """
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, num_updates: int) -> None:
        """Move towards the network, faster at first: d = min(decay, (1 + n) / (10 + n)).

        Args:
            network: of the same class as at the start.
            num_updates: n, optimiser steps done so far.
        """
        decay = min(self._decay, (1 + num_updates) / (10 + num_updates))
        for own, new in zip(self.network.parameters(), network.parameters(), strict=True):
            own.lerp_(new, 1.0 - decay)
