"""What kernels allocate besides their results.

Role: ``cost`` adds it to the tensors that it follows. The formulas for ``cpu`` fit the tables of
benchmarks/results/*_coefficients_cpu.md, measured by benchmarks/coefficients.py (torch 2.13, oneDNN on AVX-512). Those
for other devices are not measured: they grant a convolution the bytes of its input and weights as cuDNN's workspace.

Every formula takes the number of threads, the result and the arguments of the operation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ATEN: Any = torch.ops.aten
ONEDNN_CHANNELS = 16  # that its own memory layout holds together, with AVX-512; fewer with older instructions
ONEDNN_THREAD_BYTES = 4120  # that a convolution in channels_last takes per thread, and once more
ONEDNN_MATRIX_BYTES = 1 << 18  # more than a product of 16-bit matrices took per thread


def round_up(value: int, granule: int) -> int:
    """Return the least multiple of ``granule`` that is not below ``value``."""
    return -(-value // granule) * granule


def _convolution(threads: int, out: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    """Return what a convolution allocates besides its result: copies in oneDNN's layout, or the columns of im2col."""
    kernel = weight.shape[2:].numel()
    channels_last = x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1
    copied = _dense_copy(threads, out, x)
    small = (x.shape[0] == 1 and x.numel() <= 20480) or kernel == threads == 1
    if not _has_onednn(x.dtype) or (small and x.dtype == torch.float32):  # then torch has kernels of its own
        columns = out.numel() // out.shape[1] * x.shape[1] * kernel * x.element_size()
        return copied + (columns + (weight.nbytes if channels_last else 0) if kernel > 1 else 0)
    blocks_in, blocks_out = (round_up(c, ONEDNN_CHANNELS) / c for c in (x.shape[1], out.shape[1]))
    if channels_last:
        reordered = int(weight.nbytes * blocks_out) + (weight.nbytes if kernel > 1 else 0)
        return copied + reordered + ONEDNN_THREAD_BYTES * (threads + 1)
    inputs = int(x.nbytes * blocks_in + weight.nbytes * blocks_in * blocks_out)
    if kernel == 1 and x.element_size() == 2:  # every thread sums up one whole image in fp32
        inputs += int(threads * out[0].numel() * 4 * blocks_out)
    blocked_out = int(out.nbytes * blocks_out)
    # The copies of the inputs are gone when the result is brought back to torch's layout.
    return copied + max(inputs + blocked_out - out.nbytes, blocked_out)


def _packed_convolution(threads: int, out: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    """Return what a convolution with packed weights allocates: as one in channels_last, but for its weights."""
    del weight
    return _dense_copy(threads, out, x) + ONEDNN_THREAD_BYTES * (threads + 1)


def _has_onednn(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN computes in ``dtype`` on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype == torch.float32 or (dtype in asked and getattr(torch.ops.mkldnn, asked[dtype])())


def _linear(threads: int, _out: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    """Return what a product of matrices allocates: oneDNN's 16-bit ones copy both where the first is transposed."""
    if x.dtype == torch.float32 or not _has_onednn(x.dtype):
        return 0
    return (0 if x.is_contiguous() else x.nbytes + weight.nbytes) + ONEDNN_MATRIX_BYTES * threads


def _matrix_product(threads: int, out: Tensor, *operands: Tensor) -> int:
    return _linear(threads, out, *operands[-2:])


def _attention(threads: int, _out: Tensor, query: Tensor, key: Tensor, *_: Any) -> int:
    """Return what the flash kernel for CPUs allocates: a block of the matrix per thread, and a sum per query."""
    queries, keys, channels = query.shape[-2], key.shape[-2], query.shape[-1]
    rows = min(queries, 256 if queries >= 768 else 64 if queries >= 192 else 32)
    element_bytes = 4 if query.element_size() == 4 else 4 + query.element_size()  # an fp32 score, and it in 16 bits
    block = rows * (min(512, keys) * element_bytes + 4 * channels + 8)
    return threads * block + query.numel() // channels * 4


def _dense_copy(_threads: int, _out: Any, x: Tensor, *_: Any) -> int:
    dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return 0 if dense else x.nbytes


def _resized_columns(_threads: int, out: Tensor, x: Tensor, *_: Any) -> int:
    """Return the size of the image that is resized along its rows only, which is the first of two steps."""
    return out.nbytes // out.shape[2] * x.shape[2]


def _workspace(threads: int, out: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    """Return a guess of cuDNN's workspace and the copy that it makes of a band of rows; not measured."""
    return x.nbytes + weight.nbytes + _dense_copy(threads, out, x)


def _sums(_threads: int, _out: Tensor, query: Tensor, *_: Any) -> int:
    return query.numel() // query.shape[-1] * 4  # one in fp32 per query


CPU_SCRATCH: dict[Any, Callable[..., int]] = {
    ATEN.convolution: _convolution,
    ATEN.linear: _linear,
    ATEN.mm: _matrix_product,
    ATEN.addmm: _matrix_product,
    ATEN.bmm: _matrix_product,
    ATEN.matmul: _matrix_product,
    ATEN.baddbmm: _matrix_product,
    ATEN.scaled_dot_product_attention: _attention,
    ATEN.native_layer_norm: _dense_copy,
    ATEN.pixel_shuffle: _dense_copy,
    ATEN.pixel_unshuffle: _dense_copy,
    ATEN._upsample_bicubic2d_aa: _resized_columns,
}
if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
    CPU_SCRATCH[torch.ops.mkldnn._convolution_pointwise] = _packed_convolution
ACCELERATOR_SCRATCH: dict[Any, Callable[..., int]] = {
    ATEN.convolution: _workspace,
    ATEN.scaled_dot_product_attention: _sums,
}
