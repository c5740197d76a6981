"""How tensors without memory lie in the memory that they would have.

Role: below ``results``. The rules are those of torch's kernels (aten/src/ATen/TensorIterator.cpp, MemoryFormat.h).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Shape = Sequence[int]
FORMAT_AXES = (1, 3, 2, 0)  # of [N, C, H, W] in channels_last, from the innermost outwards


def make(shape: Shape, dtype: torch.dtype, stride: Shape | None = None) -> Tensor:
    """Return a tensor without memory; ``stride`` None is contiguous."""
    return torch.empty_strided(shape, packed_strides(shape) if stride is None else stride, dtype=dtype, device="meta")


def make_image(shape: Shape, dtype: torch.dtype, *, channels_last: bool) -> Tensor:
    """Return an image [B, C, H, W] without memory, in one of the two formats."""
    return make(shape, dtype, packed_strides(shape, FORMAT_AXES) if channels_last else None)


def packed_strides(shape: Shape, axes: Iterable[int] | None = None) -> list[int]:
    """Return the strides that leave no gaps; ``axes`` from the innermost outwards, None is the last one first."""
    stride, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))) if axes is None else axes:
        stride[axis] = step
        step *= shape[axis]
    return stride


def is_dense(x: Tensor) -> bool:
    """Tell whether every place of the memory that ``x`` spans belongs to one element."""
    packed = packed_strides(x.shape, sorted(range(x.ndim), key=x.stride))
    return all(length == 1 or is_ == to_be for length, is_, to_be in zip(x.shape, x.stride(), packed, strict=True))


def is_image(x: Tensor) -> bool:
    """Tell whether ``x`` [B, C, H, W] is in one of the two formats, without gaps."""
    return x.ndim == 4 and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


def suggests_channels_last(x: Tensor) -> bool:
    """Tell whether operations keep ``x`` in channels_last (MemoryFormat.h: is_channels_last_strides_2d)."""
    if x.ndim != 4 or x.stride(1) == 0:
        return False
    least = 0
    for axis in FORMAT_AXES:
        stride = x.stride(axis)
        # An image of one channel or one position is in both formats, and counts as contiguous.
        if x.shape[axis] == 0 or stride < least or (axis == 0 and least == x.stride(1)):
            return False
        least = stride * x.shape[axis]
    return True


def joint_strides(shape: Shape, operands: Sequence[Tensor], *, alike: bool) -> Shape:
    """Return the strides of an elementwise result (TensorIterator.cpp: compute_fast_setup_type, reorder_dimensions).

    ``alike`` tells whether all operands have that ``shape``, where a number has none.
    """
    rank = len(shape)
    if alike:
        if all(x.is_contiguous() for x in operands):
            return packed_strides(shape)
        if rank == 4 and all(x.is_contiguous(memory_format=torch.channels_last) for x in operands):
            return packed_strides(shape, FORMAT_AXES)
        if len({x.stride() for x in operands}) == 1 and is_dense(operands[0]):
            return operands[0].stride()
    strides = [x.expand(shape).stride() if x.shape != shape else x.stride() for x in operands]
    order = list(reversed(range(rank)))
    for start in range(1, rank):
        moved = start
        for place in reversed(range(start)):
            comparison = _compare(order[place], order[moved], shape, strides)
            if comparison > 0:
                order[place], order[moved] = order[moved], order[place]
                moved = place
            elif comparison < 0:
                break
    return packed_strides(shape, order)


def _compare(inner: int, outer: int, shape: Shape, strides: Sequence[Shape]) -> int:
    """Return above 0 where axis ``inner`` belongs outside of ``outer``, below 0 where not, 0 where nothing tells."""
    for stride in strides:
        if stride[inner] == 0 or stride[outer] == 0:
            continue
        if stride[inner] != stride[outer]:
            return stride[inner] - stride[outer]
        if shape[inner] > shape[outer]:
            return 1
    return 0
