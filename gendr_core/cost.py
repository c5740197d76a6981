"""What a computation costs, found by running it on tensors without memory: FLOPs and the peak of live bytes.

Role: the planner runs every stage through ``measure`` with networks on torch's meta device. Knows nothing of networks.

Scratch memory of kernels is the second half of this file. The formulas for ``cpu`` fit the tables of
benchmarks/results/*_coefficients_cpu.md, measured by benchmarks/coefficients.py (torch 2.13, oneDNN on AVX-512). Those
for other devices are not measured: they grant a convolution the bytes of its input and weights as cuDNN's workspace.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ATEN: Any = torch.ops.aten
ATTENTION = ATEN.scaled_dot_product_attention.default
LINEAR = ATEN.linear.default
WHOLE = (LINEAR, ATEN.upsample_nearest2d.vec)  # made of others, but of other others where a mode like ours watches
CUDA_GRANULE_BYTES = 512  # torch's CUDA allocator rounds up to this; what it loses in its 2 MiB blocks is not covered
REMEMBERED = 4096  # outcomes kept; the full-size UNet has some 300 different ones
META, SEQUENCES = torch.device("meta"), (list, tuple)

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a computation needs besides the weights."""

    flops: int
    """Of convolutions, matrix products and attention; a multiply-add counts 2. Everything else is left out."""
    peak_bytes: int
    """Most bytes of tensors alive at once, scratch memory of kernels included."""


def measure(run: Callable[[], Result], held: Sequence[Tensor] = (), *, device_type: str = "cpu") -> tuple[Result, Cost]:
    """Return the result of ``run`` and what it cost. With tensors on the meta device nothing is computed or allocated.

    Args:
        run: the computation. It runs in inference mode. No shape in it may depend on values of tensors.
        held: tensors, made before, that stay alive while it runs; they count as live from the start.
        device_type: ``cpu``, ``cuda``, ...: the device that it is planned for, whose kernels' scratch memory counts.
    """
    held_storages = {tensor.untyped_storage() for tensor in held}
    with torch.inference_mode(), _Meter(sum(map(len, held_storages)), device_type) as meter:
        result = run()
    return result, Cost(flops=meter.flops, peak_bytes=meter.peak_bytes)


class _Meter(TorchDispatchMode):
    """Counts FLOPs and follows every storage that operations allocate until it is freed."""

    def __init__(self, held_bytes: int, device_type: str) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._setting = (device_type, torch.get_num_threads())
        self._elementary: set[Any] = set(WHOLE)
        self._live_bytes = held_bytes
        self.peak_bytes = held_bytes
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func not in self._elementary and not (func is ATTENTION and _is_fused(*args[:3])):
            # In inference mode operations made of others arrive whole; their parts may allocate too.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            self._elementary.add(func)
        outcome = _outcome(func, _describe(args), _describe(tuple(kwargs.items())), self._setting)
        result = outcome.replay(args, kwargs) if outcome.replayable else func(*args, **kwargs)
        for index, num_bytes in outcome.allocated:
            tensor = result if isinstance(result, Tensor) else result[index]
            self._live_bytes += num_bytes
            weakref.finalize(tensor.untyped_storage(), self._free, num_bytes).atexit = False
        self.flops += outcome.flops
        self.peak_bytes = max(self.peak_bytes, self._live_bytes + outcome.scratch_bytes)
        return result

    def _free(self, num_bytes: int) -> None:
        self._live_bytes -= num_bytes


class _Sketch(NamedTuple):
    """All that decides what an operation does with a tensor, short of its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    is_meta: bool

    def build(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)


class _Plain(NamedTuple):
    """An argument that is no tensor. With its type, because 1, 1.0 and True are equal and make different results."""

    value: Any
    kind: type

    @property
    def is_meta(self) -> bool:
        return self.value == META

    def build(self) -> Any:
        return META if self.kind is torch.device else self.value


class _Outcome(NamedTuple):
    """What an operation does with arguments of one description: always the same, so it is found once and replayed."""

    results: tuple[_Sketch | int | str | None, ...]
    """Made anew; the argument of that place or name itself; or anything else, such as a view."""
    returns: type
    replayable: bool
    allocated: tuple[tuple[int, int], ...]
    """Numbers of the results with storages of their own, and their bytes."""
    flops: int
    scratch_bytes: int

    def replay(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operation would, without running it: Python code of torch's for the meta device is slow."""
        results = [
            result.build()
            if isinstance(result, _Sketch)
            else kwargs[result]
            if isinstance(result, str)
            else args[result]
            for result in self.results
            if result is not None
        ]
        return results[0] if self.returns is Tensor else self.returns(results)


def _describe(value: Any) -> Any:
    """Return ``value`` with its tensors sketched, fit for a key."""
    if isinstance(value, Tensor):
        return _Sketch(value.shape, value.stride(), value.dtype, value.is_meta)
    if type(value) in SEQUENCES:
        return tuple(map(_describe, value))
    return _Plain(value, type(value))


def _build(description: Any) -> Any:
    return list(map(_build, description)) if type(description) in SEQUENCES else description.build()


def _leaves(tree: Any) -> list[Any]:
    return list(chain.from_iterable(map(_leaves, tree))) if type(tree) in SEQUENCES else [tree]


@lru_cache(maxsize=REMEMBERED)
def _outcome(func: Any, args: tuple[Any, ...], kwargs: tuple[Any, ...], setting: tuple[str, int]) -> _Outcome:
    """Return what ``func`` does with arguments of these descriptions on a device type with so many threads."""
    positional: list[Any] = _build(args)
    named: dict[str, Any] = dict(_build(kwargs))
    places: dict[int | str, Any] = {**dict(enumerate(positional)), **named}
    known = {leaf.untyped_storage() for leaf in _leaves([*places.values()]) if isinstance(leaf, Tensor)}
    before = {place: _describe(value)[:3] for place, value in places.items() if isinstance(value, Tensor)}
    returned = func(*positional, **named)
    results: list[_Sketch | int | str | None] = []
    allocated: list[tuple[int, int]] = []
    for index, leaf in enumerate(_leaves(returned)):
        same = [place for place, sketch in before.items() if leaf is places[place] and _describe(leaf)[:3] == sketch]
        fresh = isinstance(leaf, Tensor) and leaf.untyped_storage() not in known
        results.append(same[0] if same else _describe(leaf) if fresh else None)
        if fresh:
            granule = CUDA_GRANULE_BYTES if setting[0] == "cuda" else 1
            allocated.append((index, _round_up(leaf.untyped_storage().nbytes(), granule)))
    scratch = (CPU_SCRATCH if setting[0] == "cpu" else ACCELERATOR_SCRATCH).get(func.overloadpacket)
    return _Outcome(
        results=tuple(results),
        returns=type(returned),
        replayable=None not in results
        and torch.Tag.inplace_view not in func.tags
        and any(leaf.is_meta for leaf in _leaves((args, kwargs))),
        allocated=tuple(allocated),
        flops=_flops(func, returned, positional, named),
        scratch_bytes=scratch(setting[1], returned, *positional) if scratch else 0,
    )


def _flops(func: Any, returned: Any, args: list[Any], kwargs: dict[str, Any]) -> int:
    if func is LINEAR:
        return 2 * returned.numel() * args[1].shape[1]
    formula = flop_registry.get(ATEN._scaled_dot_product_flash_attention if func is ATTENTION else func.overloadpacket)
    return formula(*args, **kwargs, out_val=returned) if formula else 0


def _is_fused(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether attention runs in a kernel that never holds the tokens x tokens matrix."""
    rows_dense = all(x.stride(-1) == 1 for x in (query, key, value))
    return query.ndim == 4 and query.shape[-1] == value.shape[-1] and rows_dense


def _round_up(value: int, granule: int) -> int:
    return -(-value // granule) * granule


ONEDNN_CHANNELS = 16  # that its own memory layout holds together, with AVX-512; fewer with older instructions
ONEDNN_THREAD_BYTES = 4120  # that a convolution in channels_last takes per thread, and once more
ONEDNN_MATRIX_BYTES = 1 << 18  # more than a product of 16-bit matrices took per thread


def _convolution(threads: int, out: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    """Return what a convolution allocates besides its result: copies in oneDNN's layout, or the columns of im2col."""
    kernel = weight.shape[2:].numel()
    channels_last = x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1
    copied = _dense_copy(threads, out, x)
    small = (x.shape[0] == 1 and x.numel() <= 20480) or kernel == threads == 1
    if not _has_onednn(x.dtype) or (small and x.dtype == torch.float32):  # then torch has kernels of its own
        columns = out.numel() // out.shape[1] * x.shape[1] * kernel * x.element_size()
        return copied + (columns + (weight.nbytes if channels_last else 0) if kernel > 1 else 0)
    blocks_in, blocks_out = (_round_up(c, ONEDNN_CHANNELS) / c for c in (x.shape[1], out.shape[1]))
    if channels_last:
        reordered = int(weight.nbytes * blocks_out) + (weight.nbytes if kernel > 1 else 0)
        return copied + reordered + ONEDNN_THREAD_BYTES * (threads + 1)
    inputs = int(x.nbytes * blocks_in + weight.nbytes * blocks_in * blocks_out)
    if kernel == 1 and x.element_size() == 2:  # every thread sums up one whole image in fp32
        inputs += int(threads * out[0].numel() * 4 * blocks_out)
    blocked_out = int(out.nbytes * blocks_out)
    # The copies of the inputs are gone when the result is brought back to torch's layout.
    return copied + max(inputs + blocked_out - out.nbytes, blocked_out)


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
    ATEN.baddbmm: _matrix_product,
    ATEN.scaled_dot_product_attention: _attention,
    ATEN.native_layer_norm: _dense_copy,
    ATEN.pixel_shuffle: _dense_copy,
    ATEN.pixel_unshuffle: _dense_copy,
    ATEN._upsample_bicubic2d_aa: _resized_columns,
}
ACCELERATOR_SCRATCH: dict[Any, Callable[..., int]] = {
    ATEN.convolution: _workspace,
    ATEN.scaled_dot_product_attention: _sums,
}
