# pyright: basic, reportArgumentType=false, reportMissingImports=false
# ruff: noqa: ANN001, ANN202, PLR0913 - a kernel takes its pointers and sizes one by one, of types that only Triton knows
"""Group normalisation of channels_last frames on a GPU, in Triton: statistics in two kernels, then one pass over all.

Role: below ``fused``, which makes the tensors and alone imports this, when there is something to run: Triton comes with
torch for CUDA and is not everywhere. Its types say nothing of kernels, hence the first line.

A frame is [B, P, C] here: P positions one after the other, the channels of each together. Sums have a fixed order, so
the same frame gives the same bits every time. Offsets of positions have 64 bits: frames have more than 2^31 values.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
"""Positions and channels that a program works on at once: 128 bytes of a 16-bit position, as a GPU reads them. Most
widths of these networks are multiples of it."""


def moments(x: Tensor, parts: Tensor, mean: Tensor, variance: Tensor, length: int) -> None:
    """Write mean and variance of every group.

    Args:
        x: [B, C, H, W] in channels_last; images may be apart.
        parts: [2, B, ceil(H * W / length), C], float32, scratch.
        mean: [B, groups], float32, overwritten.
        variance: as ``mean``.
        length: positions of a part of the frame; the last may have fewer.
    """
    _, batch, num_parts, channels = parts.shape
    positions, groups = x.shape[2] * x.shape[3], mean.shape[1]
    grid = (triton.cdiv(channels, TILE), num_parts, batch)
    columns = triton.next_power_of_2(channels // groups)
    # Triton starts kernels on the current device.
    with torch.cuda.device_of(x):
        _gather[grid](x, parts, positions, channels, length, x.stride(0), rows=TILE, columns=TILE)
        _join[(groups, batch)](
            parts, mean, variance, positions, channels, length, num_parts, rows=TILE, columns=columns
        )


def normalise(
    x: Tensor,
    result: Tensor,
    statistics: tuple[Tensor, Tensor],
    affine: tuple[Tensor | None, Tensor | None],
    eps: float,
    *,
    activate: bool,
) -> None:
    """Write (x - mean) / sqrt(variance + eps) * weight + bias, then SiLU if asked.

    Args:
        x: [B, C, H, W] in channels_last; images may be apart.
        result: as ``x``, without gaps; overwritten.
        statistics: mean and variance, [B, groups], float32.
        affine: weight and bias [C], or None twice.
        eps: added to the variance.
        activate: whether SiLU follows.
    """
    batch, channels, height, width = x.shape
    positions, groups = height * width, statistics[0].shape[1]
    grid = (triton.cdiv(positions, TILE) * triton.cdiv(channels, TILE), batch)
    sizes = (positions, channels, groups, x.stride(0))
    with torch.cuda.device_of(x):
        _apply[grid](x, result, *statistics, *affine, *sizes, eps, activate=activate, rows=TILE, columns=TILE)


@triton.jit(do_not_specialize=["positions", "length"])
def _gather(x, parts, positions, channels, length, image, rows: tl.constexpr, columns: tl.constexpr):
    """Write mean and sum of squared distances of every channel over one part of the positions."""
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    begin = tl.program_id(1) * length
    end = tl.minimum(begin + length, positions)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, rows)
    inside = column < channels
    # Every place of a tile follows its own values, by Welford's recurrence: nothing is summed up across threads.
    mean = tl.zeros([rows, columns], tl.float32)
    squares = tl.zeros([rows, columns], tl.float32)
    seen = 0.0
    for start in range(begin, end, rows):
        position = start + row
        valid = (position < end)[:, None] & inside[None, :]
        places = (x + batch * image + position.to(tl.int64) * channels)[:, None] + column[None, :]
        value = tl.load(places, mask=valid, other=0.0).to(tl.float32)
        seen += 1.0
        distance = tl.where(valid, value - mean, 0.0)
        mean += distance / seen
        squares += distance * (value - mean)
    # Now the rows are joined; the last tile may have had fewer.
    count = tl.maximum(tl.cdiv(end - begin - row, rows), 0).to(tl.float32)[:, None]
    middle = tl.sum(mean * count, axis=0) / (end - begin).to(tl.float32)
    distance = mean - middle[None, :]
    around = tl.sum(squares + count * distance * distance, axis=0)
    place = (batch * tl.num_programs(1) + tl.program_id(1)) * channels + column
    tl.store(parts + place, middle, mask=inside)
    images = tl.num_programs(2).to(tl.int64)
    tl.store(parts + images * tl.num_programs(1) * channels + place, around, mask=inside)


@triton.jit(do_not_specialize=["positions", "length", "num_parts"])
def _join(parts, mean, variance, positions, channels, length, num_parts, rows: tl.constexpr, columns: tl.constexpr):
    """Write mean and variance of one group, from the parts of its channels."""
    group, groups = tl.program_id(0), tl.num_programs(0)
    batch, images = tl.program_id(1), tl.num_programs(1)
    width = channels // groups
    row, column = tl.arange(0, rows), tl.arange(0, columns)
    means = parts + batch.to(tl.int64) * num_parts * channels + group * width
    squares = means + images.to(tl.int64) * num_parts * channels
    total = positions.to(tl.float32) * width
    # Distances from one of the means, which is near all of them, lose nothing where the mean is large.
    first = tl.load(means)
    sums = tl.zeros([rows, columns], tl.float32)
    for start in range(0, num_parts, rows):
        part = start + row
        valid = (part < num_parts)[:, None] & (column < width)[None, :]
        count = tl.minimum(positions - part * length, length).to(tl.float32)[:, None]
        value = tl.load(means + part[:, None] * channels + column[None, :], mask=valid, other=0.0)
        sums += tl.where(valid, count * (value - first), 0.0)
    middle = first + tl.sum(tl.sum(sums, axis=1), axis=0) / total
    sums = tl.zeros([rows, columns], tl.float32)
    for start in range(0, num_parts, rows):
        part = start + row
        valid = (part < num_parts)[:, None] & (column < width)[None, :]
        count = tl.minimum(positions - part * length, length).to(tl.float32)[:, None]
        place = part[:, None] * channels + column[None, :]
        distance = tl.load(means + place, mask=valid, other=0.0) - middle
        sums += tl.where(valid, tl.load(squares + place, mask=valid, other=0.0) + count * distance * distance, 0.0)
    tl.store(mean + batch * groups + group, middle)
    tl.store(variance + batch * groups + group, tl.sum(tl.sum(sums, axis=1), axis=0) / total)


@triton.jit(do_not_specialize=["positions", "eps"])
def _apply(
    x,
    result,
    mean,
    variance,
    weight,
    bias,
    positions,
    channels,
    groups,
    image,
    eps,
    activate: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Write one tile of the result."""
    across = tl.cdiv(channels, columns)
    column = tl.program_id(0) % across * columns + tl.arange(0, columns)
    position = (tl.program_id(0) // across * rows + tl.arange(0, rows)).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    inside = column < channels
    valid = (position < positions)[:, None] & inside[None, :]
    group = batch * groups + column // (channels // groups)
    middle = tl.load(mean + group, mask=inside, other=0.0)[None, :]
    factor = tl.rsqrt(tl.load(variance + group, mask=inside, other=1.0) + eps)[None, :]
    places = (x + batch * image + position * channels)[:, None] + column[None, :]
    value = (tl.load(places, mask=valid, other=0.0).to(tl.float32) - middle) * factor
    if weight is not None:
        value *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if activate:
        value *= tl.sigmoid(value)
    places = (result + (batch * positions + position) * channels)[:, None] + column[None, :]
    tl.store(places, value.to(result.dtype.element_ty), mask=valid)
