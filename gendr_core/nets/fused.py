"""Group normalisation and SiLU in one, for frames in channels_last: torch's own on CUDA knows only the plain order.

Role: ``model`` brings networks to this where it is asked for; ``kernels`` and ``moments`` come here with the norms that
it makes. The kernels are those of ``triton_kernels``; what they allocate is made here, so that tensors without memory
(``sketch``) go through the same lines, with or without Triton. For inference only.
"""

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..scratch import round_up

TILE = 64
"""Positions and channels that the kernels work on at once, as ``triton_kernels`` has it."""
MOST_PARTS = 2048
"""Parts of an image, ``TILE`` channels wide, whose statistics are gathered at once: some for every processor of a GPU,
and a MiB for what they give."""


class FusedGroupNorm(nn.GroupNorm):
    """A group normalisation by these kernels, of frames of up to 32 bits."""

    def __init__(self, plain: nn.GroupNorm) -> None:
        """Take over from ``plain``."""
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            plain.num_groups, plain.num_channels, plain.eps, plain.affine, device="meta"
        )
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, input: Tensor, *, activate: bool = False) -> Tensor:
        """Return [B, C, H, W] in channels_last of [B, C, H, W], with SiLU behind it if asked."""
        x = as_channels_last(input)
        affine = (self.weight, self.bias) if self.affine else (None, None)
        return normalise(x, moments(x, self.num_groups), affine, self.eps, activate=activate)


def as_channels_last(frame: Tensor) -> Tensor:
    """Return ``frame`` [B, C, H, W] with its rows and channels in channels_last; itself where they are."""
    _, channels, _, width = frame.shape
    # Not asked of torch, for which a frame of one position or channel is in both orders, whichever it then computes in.
    if frame.stride()[1:] == (1, width * channels, channels):
        return frame
    return _empty_like(frame).copy_(frame)


def moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every group of channels, each [B, groups], float32.

    Args:
        x: [B, C, H, W], of 16 or 32 bits; copied unless in channels_last.
        groups: a divisor of C.
    """
    x = as_channels_last(x)
    batch, channels, height, width = x.shape
    most = max(1, MOST_PARTS // -(-channels // TILE))
    length = round_up(-(-height * width // most), TILE)
    parts = x.new_empty(2, batch, -(-height * width // length), channels, dtype=torch.float32)
    mean, variance = (x.new_empty(batch, groups, dtype=torch.float32) for _ in range(2))
    if not x.is_meta:
        from . import triton_kernels

        triton_kernels.moments(x, parts, mean, variance, length)
    return mean, variance


def normalise(
    x: Tensor,
    statistics: tuple[Tensor, Tensor],
    affine: tuple[Tensor | None, Tensor | None],
    eps: float,
    *,
    activate: bool,
) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias, then SiLU if asked; float32 inside, rounded once.

    Args:
        x: [B, C, H, W], of 16 or 32 bits; copied unless in channels_last.
        statistics: mean and variance, from ``moments``.
        affine: weight and bias [C] of any real dtype, or None twice.
        eps: added to the variance.
        activate: whether SiLU follows.

    Returns:
        [B, C, H, W] in channels_last, in the dtype of ``x``.
    """
    x = as_channels_last(x)
    result = _empty_like(x)
    if not x.is_meta:
        from . import triton_kernels

        triton_kernels.normalise(x, result, statistics, affine, eps, activate=activate)
    return result


def fuse(network: nn.Module) -> None:
    """Bring a network to these norms in place, and thereby to frames in channels_last.

    Raises:
        OptionError: there is no Triton, and the network has memory to run.
    """
    if find_spec("triton") is None and not next(network.parameters()).is_meta:
        raise OptionError(
            "expected Triton for fused kernels, found none: install triton, which torch for CUDA brings on Linux, or"
            " leave out fused"
        )
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.GroupNorm:
                setattr(module, name, FusedGroupNorm(child))


def _empty_like(frame: Tensor) -> Tensor:
    return torch.empty(frame.shape, dtype=frame.dtype, device=frame.device, memory_format=torch.channels_last)
