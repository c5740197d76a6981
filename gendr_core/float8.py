"""Weights in 8 bits: float8 e4m3 with one scale for every output channel, for files only.

Role: between ``tensorfile``, which reads and writes them, and ``bake``, which makes them. Nothing computes in 8 bits:
what is read is multiplied out at once, so that it runs everywhere.

e4m3 has 3 bits of mantissa, so a weight is off by up to 1/16 of itself, or by up to 2^-17 of its channel's largest.
"""

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of e4m3; torch makes NaN of more."""


def to_float8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``weight`` [C, ...] in float8, and the scales [C] float32 to multiply it with.

    Scales are powers of two: float8 is a float itself and loses nothing by that, while the product is exact in
    bfloat16.
    """
    largest = weight.detach().float().flatten(1).abs().amax(dim=1)
    # frexp gives m * 2^e with m from 1/2 to 1.
    exponents = torch.frexp(torch.where(largest > 0, largest / LARGEST, 1.0)).exponent
    scales = torch.ldexp(torch.ones_like(largest), exponents)
    return (weight.detach().float() / _along(scales, weight)).to(FLOAT8), scales


def from_float8(weight: Tensor, scales: Tensor) -> Tensor:
    """Return ``weight`` [C, ...] times ``scales`` [C] in bfloat16."""
    return weight.bfloat16().mul_(_along(scales, weight).bfloat16())


def _along(scales: Tensor, weight: Tensor) -> Tensor:
    return scales.reshape(-1, *[1] * (weight.ndim - 1))
