"""Distances between an image and its target.

Role: called by ``stages``; the loop weighs and averages. Every function takes two [B, C, H, W] tensors of one shape,
computes in float32 whatever comes in, and returns [B].
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from gendr_core.tensors import luma

CHARBONNIER_EPS = 1e-3
"""Where the root turns from a parabola into a line, on images in [-1, 1] (arXiv:1710.01992, section 3.3)."""


# mean |o - t|
def l1(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference, [B]."""
    return (output.float() - target.float()).abs().flatten(1).mean(1)


# mean sqrt((o - t)^2 + eps^2) - eps
def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Return the smooth L1 distance, [B]; 0 for equal inputs."""
    squares = (output.float() - target.float()).square()
    return (squares + CHARBONNIER_EPS**2).sqrt().flatten(1).mean(1) - CHARBONNIER_EPS


# mean |C o - C t|, C x = x - Y(x), Y the BT.601 luma
def chroma(output: Tensor, target: Tensor) -> Tensor:
    """Return the L1 distance of the colour differences, [B]; blind to lightness."""
    difference = output.float() - target.float()
    return (difference - luma(difference)).abs().flatten(1).mean(1)


# mean |Dx o - Dx t| + mean |Dy o - Dy t|, D = difference of neighbours
def gradient(output: Tensor, target: Tensor) -> Tensor:
    """Return the L1 distance of the first differences along both axes, [B]; blind to a constant offset."""
    difference = output.float() - target.float()
    horizontal = difference.diff(dim=3).abs().flatten(1).mean(1)
    vertical = difference.diff(dim=2).abs().flatten(1).mean(1)
    return horizontal + vertical


# mean |F(o) - F(t)|, F = orthonormal 2-D real FFT
def spectrum(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean modulus of the difference of spectra, [B]."""
    transform = cast("Callable[..., Tensor]", torch.fft.rfft2)  # pyright: ignore[reportUnknownMemberType]
    difference = transform(output.float() - target.float(), norm="ortho")
    return difference.abs().flatten(1).mean(1)
