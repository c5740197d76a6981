"""The networks that tell real images from made ones, and what keeps a network fixed while another learns through it.

Role: built by the stages with an adversary; ``losses.adversarial`` turns their logits into losses. Nothing in them
looks at more than one image of a batch, so how a batch is divided among processes changes nothing.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gendr_core.nets.layers import layers_of

SLOPE = 0.2
"""Of LeakyReLU, as in DCGAN (arXiv:1511.06434, section 3)."""
MAX_WIDENING = 8
"""Widths double with every stride up to this many times the first (PatchGAN, arXiv:1611.07004, section 6.1.2)."""


class PatchAdversary(nn.Module):
    """Says of every patch of an image whether it is real: a PatchGAN with spectral norms (arXiv:1802.05957)."""

    def __init__(self, channels: int, layers: int) -> None:
        """Build the convolutions.

        Args:
            channels: of the first layer.
            layers: how many convolutions have stride 2; a logit is made for about 2^layers x 2^layers pixels.
        """
        super().__init__()
        widths = [3] + [channels * min(2**layer, MAX_WIDENING) for layer in range(layers)]
        # A kernel that is a multiple of the stride: every pixel gets equally many gradients, so no checkerboard.
        self.strided = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)) for before, after in pairwise(widths)
        )
        self.last = cast("nn.Conv2d", spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [B, 1, H / 2^layers, W / 2^layers], rounded down; above 0 means real.

        In training mode each pass refines the estimates of the spectral norms, which are buffers and saved as such.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], sides of at least 2^layers.
        """
        x = pixels
        for layer in layers_of(self.strided, nn.Conv2d):
            x = F.leaky_relu(_convolve(layer, x), SLOPE)
        return _convolve(self.last, x)


def _convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    # Mixed precision would round the power iteration itself, and with it every weight alike. The meta
    # device does not know it, nor a switch for it.
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        weight = layer.weight
    return F.conv2d(x, weight, layer.bias, stride=layer.stride, padding=layer.padding)


class FeatureHead(nn.Module):
    """Says of every position of a feature map whether it is of a real image: two convolutions, a norm between."""

    def __init__(self, channels: int) -> None:
        """Build the layers.

        Args:
            channels: of the features.
        """
        super().__init__()
        # At most 32 groups, and at least four channels in each: one alone at one position would normalise to nothing.
        groups = math.gcd(channels, max(1, channels // 4), 32)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, channels)
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, 1, h, w]; above 0 means real.

        Args:
            features: [B, channels, h, w], h and w of at least 1.
        """
        return self.score(F.silu(self.norm(self.mix(features))))


@contextmanager
def frozen(module: nn.Module) -> Generator[None]:
    """Keep gradients from the module's parameters inside; they still flow through it to its inputs.

    What is computed inside stays so, whenever its gradients are taken. Switching ``requires_grad`` would not do: where
    parameters are views of one flat tensor (FSDP) they cannot be switched. Here the layers see detached tensors.
    A pass that is repeated for its gradients (checkpointing) has to enter this again.

    Args:
        module: any module whose layers read their parameters when they are called.
    """
    places = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
    ]
    try:
        for owner, name, parameter in places:
            # The order of parameters must stay, which setattr would not keep.
            owner._parameters[name] = parameter.detach()  # pyright: ignore[reportPrivateUsage, reportArgumentType]
        yield
    finally:
        for owner, name, parameter in places:
            owner._parameters[name] = parameter  # pyright: ignore[reportPrivateUsage]
