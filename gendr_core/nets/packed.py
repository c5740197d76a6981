"""Convolutions whose weights lie as oneDNN reads them: no call has to bring them into that order.

Role: ``model`` packs networks that stay on the processor in torch's own layers. The kernel is the one that torch takes
for all but the smallest frames, and so are the numbers, bit by bit; where a frame is small and the weights are many,
half of the time is saved.
"""

from typing import Any

import torch
from torch import Tensor, nn

LEAST_WEIGHTS = 2**18
"""Of a layer worth packing: half a megabyte in 16 bits."""
DTYPES = (torch.float32, torch.bfloat16)

# Operations without public names, which torch's own compiler calls.
_MKLDNN: Any = torch.ops.mkldnn
_NN: Any = getattr(torch, "_C")._nn  # noqa: B009


class PackedConv2d(nn.Conv2d):
    """A convolution with packed weights, for inference on the processor."""

    def __init__(self, plain: nn.Conv2d) -> None:
        """Take over from ``plain``."""
        size = (plain.kernel_size[0], plain.kernel_size[1])
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            plain.in_channels, plain.out_channels, size, device="meta"
        )
        self.stride, self.padding = plain.stride, plain.padding
        weight = plain.weight.detach()
        if not weight.is_meta:
            weight = _NN.mkldnn_reorder_conv2d_weight(
                weight.to_mkldnn(), plain.padding, plain.stride, plain.dilation, plain.groups
            )
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = plain.bias

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C_out, H', W'] of [B, C_in, H, W]."""
        settings = (self.padding, self.stride, self.dilation, self.groups)
        return _MKLDNN._convolution_pointwise(input, self.weight, self.bias, *settings, "none", [], "")


def can_pack(dtype: torch.dtype) -> bool:
    """Tell whether torch computes convolutions of ``dtype`` with oneDNN on this processor."""
    return dtype in DTYPES and torch.backends.mkldnn.is_available() and hasattr(_MKLDNN, "_convolution_pointwise")


def pack(network: nn.Module) -> None:
    """Pack the large convolutions of a network in place, on the processor or the meta device."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            # Packed, 1x1 convolutions take up to ten times as long as plain ones.
            if type(child) is nn.Conv2d and child.weight.numel() >= LEAST_WEIGHTS and child.kernel_size != (1, 1):
                setattr(module, name, PackedConv2d(child))
