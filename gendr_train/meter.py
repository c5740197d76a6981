"""What one pass of a network in training costs, found by running it and its gradients on tensors without memory.

Role: ``budget`` asks here for every pass of a stage. Unlike ``gendr_core.cost``, which follows inference, this goes
through autograd: what is kept between forward and backward is what training takes most of its memory for.
"""

# torch leaves dispatch modes and autograd partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .frames import Again, TrainingFrame
from .schema import Precision

FUSED_ATTENTION: Any = torch.ops.aten._scaled_dot_product_flash_attention.default
LOWERED: frozenset[Any] = frozenset((F.linear, F.conv2d, torch.matmul))
RAISED: frozenset[Any] = frozenset((F.group_norm, F.layer_norm))
"""What CUDA's autocast computes in bf16 and in fp32; all else takes what comes."""


class PassCost(NamedTuple):
    """Of one pass over a batch. FLOPs of convolutions, matrix products and attention; a multiply-add counts 2."""

    forward_flops: int
    backward_flops: int
    """With what checkpointing computes a second time."""
    kept_bytes: int
    """From the end of the forward pass to the backward pass: activations, and weights in bf16 where they are needed."""
    passing_bytes: int
    """Most at once beside what is kept, at any time; gradients of parameters left out."""


def measure_pass(
    network: nn.Module,
    run: Callable[[TrainingFrame], Tensor],
    *,
    differentiates: bool,
    precision: Precision,
    frame: Callable[..., TrainingFrame],
    acts: Again = nullcontext,
) -> PassCost:
    """Return the cost of one pass and its gradients.

    Args:
        network: on the meta device, its parameters requiring gradients as they would in training.
        run: the pass; its inputs are on the meta device, and require gradients where they would.
        differentiates: whether any gradient is taken.
        precision: of the pass.
        frame: makes the frame of the pass; its argument ``again`` is the context in which blocks run again.
        acts: makes the context in which the network runs.
    """
    mode: Again = _Autocast if precision == "bf16" else _FusedAttention
    within = partial(_within, acts, mode)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Gradients of parameters are counted elsewhere: forget them as they come.
    handles = [parameter.register_post_accumulate_grad_hook(_forget) for parameter in learning]
    with torch.set_grad_enabled(differentiates), _Meter() as meter:
        with within():
            result = run(frame(again=within))
        forward, kept = meter.flops, meter.live_bytes
        if differentiates:
            torch.autograd.backward(result.float().sum())
    for handle in handles:
        handle.remove()
    kept = kept if differentiates else 0
    return PassCost(forward, meter.flops - forward, kept, meter.peak_bytes - kept)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


@contextmanager
def _within(*makers: Again) -> Generator[None]:
    with ExitStack() as stack:
        for make in makers:
            stack.enter_context(make())
        yield


class _FusedAttention(TorchFunctionMode):
    """Attention as the kernel that never holds the tokens x tokens matrix; on meta torch would take the other one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func is F.scaled_dot_product_attention:
            return FUSED_ATTENTION(*args[:3])[0]
        return func(*args, **(kwargs or {}))


class _Autocast(_FusedAttention):
    """Mixed precision as CUDA's autocast does it, which itself does not know the meta device."""

    def __init__(self) -> None:
        super().__init__()
        # Trained weights are cast once for all passes of an update, others whenever they are used.
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in LOWERED or func is F.scaled_dot_product_attention:
            args = tuple(map(self._lowered, args))
        elif func in RAISED:
            args = tuple(value.float() if isinstance(value, Tensor) else value for value in args)
        return super().__torch_function__(func, types, args, kwargs)

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(torch.bfloat16)
        return self._cast[id(value)]


class _Meter(TorchDispatchMode):
    """Counts FLOPs and follows every storage that operations allocate until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live_bytes = self.peak_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        known = {tensor.untyped_storage() for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in known:
                known.add(storage)
                self.live_bytes += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes()).atexit = False
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _free(self, num_bytes: int) -> None:
        self.live_bytes -= num_bytes


def _tensors(tree: object) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
