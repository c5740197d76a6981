"""What a computation costs, found by running it on tensors without memory: FLOPs and the peak of live bytes.

Role: the planner runs every stage through ``measure`` with networks on torch's meta device. Knows nothing of networks.

``scratch`` says what kernels take besides their results.
"""

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .results import run
from .scratch import ACCELERATOR_SCRATCH, ATEN, CPU_SCRATCH, round_up

ATTENTION = ATEN.scaled_dot_product_attention.default
LINEAR = ATEN.linear.default
# Made of others, but of other others where a mode like ours watches.
PRODUCT = ATEN.matmul.default
WHOLE = (
    LINEAR,
    PRODUCT,
    ATEN.group_norm.default,
    ATEN.upsample_nearest2d.vec,
    ATEN._upsample_bicubic2d_aa.vec,
    ATEN._upsample_bilinear2d_aa.vec,
)
CUDA_GRANULE_BYTES = 512  # torch's CUDA allocator rounds up to this; what it loses in its 2 MiB blocks is not covered
REMEMBERED = 4096  # outcomes kept; the full-size UNet has some 300 different ones
META, SEQUENCES = torch.device("meta"), (list, tuple)
_ELSEWHERE: ContextVar[bool] = ContextVar("elsewhere", default=False)
_PLANNED: ContextVar[str] = ContextVar("planned", default="cpu")

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a computation needs besides the weights."""

    flops: int
    """Of convolutions, matrix products and attention; a multiply-add counts 2. Everything else is left out."""
    peak_bytes: int
    """Most bytes of tensors alive at once, scratch memory of kernels included."""
    elsewhere_bytes: int = 0
    """Most bytes at once of tensors made ``elsewhere``, which ``peak_bytes`` leaves out."""


@contextmanager
def elsewhere() -> Generator[None]:
    """Let what is allocated inside count as memory of another device than the one that is measured."""
    token = _ELSEWHERE.set(True)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


def device_type_of(x: Tensor) -> str:
    """Return on what type of device ``x`` is computed with: while that is only measured, the one it is measured for."""
    return _PLANNED.get() if x.is_meta else x.device.type


def measure(run: Callable[[], Result], held: Sequence[Tensor] = (), *, device_type: str = "cpu") -> tuple[Result, Cost]:
    """Return the result of ``run`` and what it cost. With tensors on the meta device nothing is computed or allocated.

    Args:
        run: the computation. It runs in inference mode. No shape in it may depend on values of tensors.
        held: tensors, made before, that stay alive while it runs; they count as live from the start.
        device_type: ``cpu``, ``cuda``, ...: the device that it is planned for, whose kernels' scratch memory counts.
    """
    held_storages = {tensor.untyped_storage() for tensor in held}
    token = _PLANNED.set(device_type)
    try:
        with torch.inference_mode(), _Meter(sum(map(len, held_storages)), device_type) as meter:
            result = run()
    finally:
        _PLANNED.reset(token)
    return result, Cost(flops=meter.flops, peak_bytes=meter.peak_bytes[False], elsewhere_bytes=meter.peak_bytes[True])


class _Meter(TorchDispatchMode):
    """Counts FLOPs and follows every storage that operations allocate until it is freed."""

    def __init__(self, held_bytes: int, device_type: str) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._setting = (device_type, torch.get_num_threads())
        self._elementary: set[Any] = set(WHOLE)
        # What is on the device, and what is elsewhere.
        self._live_bytes = [held_bytes, 0]
        self.peak_bytes = [held_bytes, 0]
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
        place = _ELSEWHERE.get()
        for index, num_bytes in outcome.allocated:
            tensor = result if isinstance(result, Tensor) else result[index]
            self._live_bytes[place] += num_bytes
            weakref.finalize(tensor.untyped_storage(), self._free, place, num_bytes).atexit = False
        self.flops += outcome.flops
        self.peak_bytes[place] = max(self.peak_bytes[place], self._live_bytes[place] + outcome.scratch_bytes)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, a second and more, to tell it to leave this mode alone."""
        return False

    def _free(self, place: bool, num_bytes: int) -> None:
        self._live_bytes[place] -= num_bytes


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
    returned = run(func, positional, named)
    results: list[_Sketch | int | str | None] = []
    allocated: list[tuple[int, int]] = []
    for index, leaf in enumerate(_leaves(returned)):
        same = [place for place, sketch in before.items() if leaf is places[place] and _describe(leaf)[:3] == sketch]
        fresh = isinstance(leaf, Tensor) and leaf.untyped_storage() not in known
        results.append(same[0] if same else _describe(leaf) if fresh else None)
        if fresh:
            granule = CUDA_GRANULE_BYTES if setting[0] == "cuda" else 1
            allocated.append((index, round_up(leaf.untyped_storage().nbytes(), granule)))
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
    if func is LINEAR or func is PRODUCT:
        return 2 * returned.numel() * args[0].shape[-1]
    formula = flop_registry.get(ATEN._scaled_dot_product_flash_attention if func is ATTENTION else func.overloadpacket)
    return formula(*args, **kwargs, out_val=returned) if formula else 0


def _is_fused(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether attention runs in a kernel that never holds the tokens x tokens matrix."""
    rows_dense = all(x.stride(-1) == 1 for x in (query, key, value))
    return query.ndim == 4 and query.shape[-1] == value.shape[-1] and rows_dense
