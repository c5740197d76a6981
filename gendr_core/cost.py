"""What a computation costs, found by running it on tensors without memory: FLOPs and the peak of live bytes.

Role: the planner runs every stage through ``measure`` with networks on torch's meta device. Knows nothing of networks.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

FUSED = (torch.ops.aten.scaled_dot_product_attention.default,)
"""Operations that stay whole: their kernels (flash, memory-efficient) never hold the tokens x tokens matrix."""
CONVOLUTION = torch.ops.aten.convolution.default

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a computation needs besides the weights."""

    flops: int
    """Of convolutions, matrix products and attention; a multiply-add counts 2. Everything else is left out."""
    peak_bytes: int
    """Most bytes of tensors alive at once."""


class _LiveBytes(TorchDispatchMode):
    """Follows every storage that operations allocate until it is freed."""

    def __init__(self, held_bytes: int) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._live_bytes = held_bytes
        self.peak_bytes = held_bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func not in FUSED:
            # In inference mode operations made of others arrive whole; their parts may allocate too.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        known = set(_storages((args, kwargs)))
        result = func(*args, **kwargs)
        # A view, and the result of an operation in place, lives in the storage of an argument.
        for storage in set(_storages(result)) - known:
            self._live_bytes += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes()).atexit = False
        scratch_bytes = _reordered_bytes(*args[:2]) if func is CONVOLUTION else 0
        self.peak_bytes = max(self.peak_bytes, self._live_bytes + scratch_bytes)
        return result

    def _free(self, num_bytes: int) -> None:
        self._live_bytes -= num_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _reordered_bytes(x: Tensor, weight: Tensor) -> int:
    """Return the size of the copies of input and weights that convolution kernels make in their own memory layout.

    Measured with oneDNN at widths that are multiples of 16; 1x1 convolutions read the input as it is.
    """
    return 0 if weight[0, 0].numel() == 1 else x.nbytes + weight.nbytes


def measure(run: Callable[[], Result], held: Sequence[Tensor] = ()) -> tuple[Result, Cost]:
    """Return the result of ``run`` and what it cost. With tensors on the meta device nothing is computed or allocated.

    Args:
        run: the computation. It runs in inference mode.
        held: tensors, made before, that stay alive while it runs; they count as live from the start.

    Not covered: the weights; scratch memory inside kernels other than the copies that convolutions make of their input.
    """
    held_bytes = sum(storage.nbytes() for storage in set(_storages(held)))
    # The byte counter is entered last, so it sees attention before the FLOP counter takes it apart.
    with torch.inference_mode(), FlopCounterMode(display=False) as flops, _LiveBytes(held_bytes) as live:
        result = run()
    return result, Cost(flops=flops.get_total_flops(), peak_bytes=live.peak_bytes)
