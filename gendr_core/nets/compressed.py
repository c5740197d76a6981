"""Layers whose weights stay in 8 bits and are multiplied out every time they run.

Role: ``model`` compresses networks where it is asked to, to save memory; ``bake`` writes such a network as it is. Names
and values are those of a file in 8 bits (``float8``), so a network compressed in memory and one of such a file give the
same bits. A layer's product exists only while it runs, or as long as bands of a frame need it.
"""

from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..float8 import FLOAT8, to_float8
from .layers import Operations

Layer = TypeVar("Layer", bound=nn.Module)

ENDS = ("conv_in", "conv_out")
"""What meets the image or the latent, few weights that all errors pass: in float8 they cost gendr-mini-pixel 18 dB."""


class CompressedConv2d(nn.Conv2d):
    """A convolution with its weight in 8 bits, for inference."""

    def __init__(self, plain: nn.Conv2d, device: torch.device | str, operations: Operations) -> None:
        """Take over from ``plain``, of ``operations`` and any dtype; the weight in 8 bits is made on ``device``."""
        size = (plain.kernel_size[0], plain.kernel_size[1])
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            plain.in_channels, plain.out_channels, size, device="meta"
        )
        self.operations = operations
        self.stride, self.padding = plain.stride, plain.padding
        self.weight, self.weight_scale = _compressed(plain.weight, device)
        self.bias = plain.bias

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C_out, H', W'] of [B, C_in, H, W]."""
        weight, bias = self.operations.weights(self, input)
        return F.conv2d(input, weight, bias, self.stride, self.padding)


class CompressedLinear(nn.Linear):
    """A linear layer with its weight in 8 bits, for inference."""

    def __init__(self, plain: nn.Linear, device: torch.device | str, operations: Operations) -> None:
        """Take over from ``plain``, as ``CompressedConv2d``."""
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            plain.in_features, plain.out_features, device="meta"
        )
        self.operations = operations
        self.weight, self.weight_scale = _compressed(plain.weight, device)
        self.bias = plain.bias

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., C_out] of [..., C_in]."""
        return F.linear(input, *self.operations.weights(self, input))


def _compressed(weight: Tensor, device: torch.device | str) -> tuple[nn.Parameter, nn.Parameter]:
    if weight.is_meta:
        # Not computed, even so: torch's kernels for tensors without memory are slow to import.
        small, scales = torch.empty_like(weight, dtype=FLOAT8), weight.new_empty(len(weight), dtype=torch.float32)
    else:
        small, scales = to_float8(weight.to(device))
    return nn.Parameter(small, requires_grad=False), nn.Parameter(scales, requires_grad=False)


def compress(network: nn.Module, device: torch.device | str, operations: Operations) -> None:
    """Compress the convolutions and linear layers of a network in place, but for those of ``ENDS``.

    Args:
        network: of layers of ``operations``, not packed; its weights are of any dtype, and best not rounded yet.
        device: where the weights in 8 bits go; any that has float8. On the meta device they stay there.
        operations: gives the weights back multiplied out. Layers remain what its own are, besides, so that a host
            moves them as it moves those.
    """
    convolution = _derived(CompressedConv2d, operations.Conv2d)
    linear = _derived(CompressedLinear, operations.Linear)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if name in ENDS:
                continue
            if type(child) is operations.Conv2d:
                setattr(module, name, convolution(child, device, operations))
            elif type(child) is operations.Linear:
                setattr(module, name, linear(child, device, operations))


def _derived(compressed: type[Layer], own: type[nn.Module]) -> type[Layer]:
    """Return ``compressed`` as a subclass of ``own`` as well."""
    if issubclass(compressed, own):
        return compressed
    return cast("type[Layer]", type(compressed.__name__, (compressed, own), {}))
