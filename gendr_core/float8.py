"""Weights in 8 bits: float8 e4m3 with one scale for every output channel, in files and in memory.

Role: below ``tensorfile``, which reads and writes them, and ``nets.compressed``, which keeps them. Nothing computes in
8 bits: weights are multiplied out before they are used, so that they give the same numbers everywhere.

e4m3 has 3 bits of mantissa, so a weight is off by up to 1/16 of itself, or by up to 2^-17 of its channel's largest.
"""

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
LARGEST = 464.0
"""Of what is rounded to 448, the largest of e4m3; of more some versions of torch make NaN."""
SIGN, MAGNITUDE = -(2**15), 0x7F
"""Bits: the sign in 16, which shifting to the left has filled up with it, and all but the sign in 8, where all ones are
NaN."""


def to_float8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``weight`` [C, ...] in float8, and the scales [C] float32 to multiply it with.

    Scales are powers of two: float8 is a float itself and loses nothing by that, while the product is exact in
    bfloat16. What ``from_float8`` makes of a pair comes back as that pair.
    """
    wide = weight.detach().to(torch.float32, copy=True)
    rows = wide.flatten(1)
    largest = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
    # The least power of two that makes all of a channel fit. frexp gives m * 2^e with m from 1/2, included, to 1.
    mantissas, exponents = torch.frexp(torch.where(largest > 0, largest / LARGEST, 1.0))
    scales = torch.ldexp(torch.ones_like(largest), exponents - (mantissas == 0.5).int())
    return wide.div_(_along(scales, weight)).to(FLOAT8), scales


def from_float8(weight: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return ``weight`` [C, ...] times ``scales`` [C]: exact in bfloat16 and wider dtypes, rounded once in float16.

    Args:
        weight: float8, without NaN (see ``has_nan``).
        scales: float32.
        dtype: of the product.
    """
    if weight.device.type == "cpu":
        # torch's own cast takes six times as long. bfloat16 has sign, exponent and mantissa in the same order: 4 bits
        # higher, but for the sign, and with exponents that mean 2^120 times as much.
        bits = weight.view(torch.int8).to(torch.int16).bitwise_left_shift_(4).bitwise_and_(SIGN | MAGNITUDE << 4)
        product = bits.view(torch.bfloat16).mul_(2.0**120)
    else:
        product = weight.bfloat16()
    return product.mul_(_along(scales, weight).bfloat16()).to(dtype)


def has_nan(weight: Tensor) -> bool:
    """Tell whether a ``weight`` in float8, which has no infinities, holds NaN."""
    return bool((weight.view(torch.int8) & MAGNITUDE == MAGNITUDE).any())


def _along(scales: Tensor, weight: Tensor) -> Tensor:
    return scales.reshape(-1, *[1] * (weight.ndim - 1))
