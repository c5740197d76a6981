"""Recording work of a GPU as CUDA graphs, by torch's rules. Never run on a GPU so far: nothing uses it unasked.

Role: below ``graphs``, which decides what is recorded and how long it is kept. Tests put a capturer of their own in.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

# What torch.cuda.use_mem_pool calls, without a public name.
_CUDA: Any = getattr(torch, "_C")  # noqa: B009

Recordable = Callable[[tuple[Tensor, ...]], Tensor]
"""Work whose kernels depend on nothing but the shapes of its tensors, and that neither waits for the device nor copies
from the processor."""


class Captured(Protocol):
    """Work that is recorded."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the device's memory that recording it took for good."""
        ...

    def replay(self, inputs: tuple[Tensor, ...], /) -> Tensor:
        """Return the result for ``inputs``, of the shapes and on the device of those it was recorded with: a copy."""
        ...

    def release(self) -> None:
        """Give up; it is not replayed again."""
        ...


class Capturer(Protocol):
    """Records work on devices of one type."""

    @property
    def device_type(self) -> str:
        """The type: ``cuda``."""
        ...

    def capture(self, work: Recordable, inputs: tuple[Tensor, ...], /) -> Captured:
        """Return ``work`` recorded; what it raises leaves the device usable."""
        ...

    def reset(self) -> None:
        """Give memory back, with nothing recorded left."""
        ...


class TorchCapturer:
    """Records with ``torch.cuda.graph``."""

    device_type = "cuda"

    def __init__(self) -> None:
        """Touch no device yet."""
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pools: dict[torch.device, Any] = {}
        self._ends: dict[torch.device, torch.cuda.Event] = {}

    def capture(self, work: Recordable, inputs: tuple[Tensor, ...], /) -> Captured:
        """Return ``work`` recorded on a stream of its own, into memory that all graphs of a device share.

        They may share it because they run one after the other, and results are copied out at once.

        Raises what ``work`` raises, and RuntimeError where it does what cannot be recorded.
        """
        device = inputs[0].device
        with torch.cuda.device(device):
            if device not in self._pools:
                self._pools[device] = torch.cuda.graph_pool_handle()
            if device not in self._streams:
                # One for warming up and recording: libraries keep a workspace for every stream.
                self._streams[device], self._ends[device] = torch.cuda.Stream(device), torch.cuda.Event()
            outside = torch.cuda.current_stream(device)
            # If the recording fails at its end, torch leaves its stream in place; this puts ours back.
            with torch.cuda.stream(outside):
                return self._recorded(work, inputs, outside)

    def _recorded(self, work: Recordable, inputs: tuple[Tensor, ...], outside: torch.cuda.Stream) -> "_CapturedGraph":
        device = inputs[0].device
        side = self._streams[device]
        own = tuple(torch.empty_like(x).copy_(x) for x in inputs)
        side.wait_stream(outside)
        with torch.cuda.stream(side):
            # Once is enough: an eager run went before, only what libraries keep for each stream is missing.
            work(own)
        outside.wait_stream(side)
        graph, pool = torch.cuda.CUDAGraph(), self._pools[device]
        try:
            # Other threads may use the device meanwhile, as those that load the next image do.
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                # Read here: torch gives back what it holds unused when a recording begins.
                reserved = torch.cuda.memory_reserved(device)
                result = work(own)
        except BaseException:
            _leave_pool(device, pool)
            raise
        num_bytes = torch.cuda.memory_reserved(device) - reserved
        return _CapturedGraph(graph, own, result, num_bytes, self._ends[device])

    def reset(self) -> None:
        """Begin with fresh memory, and give back what graphs have had."""
        had_any, self._pools = bool(self._pools), {}
        if had_any:
            torch.cuda.empty_cache()


def _leave_pool(device: torch.device, pool: object) -> None:
    """Let torch's allocator forget a recording that broke.

    Where a recording is invalid at its end, torch raises before it has told its allocator, which from then on refuses
    to give back memory.
    """
    leave = getattr(_CUDA, "_cuda_endAllocateToPool", None)
    if leave is not None:
        # It raises where torch has told its allocator itself.
        with suppress(RuntimeError):
            leave(device.index, pool)


class _CapturedGraph:
    """A CUDA graph with the tensors that it reads and writes."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        inputs: tuple[Tensor, ...],
        result: Tensor,
        num_bytes: int,
        last_end: torch.cuda.Event,
    ) -> None:
        self._graph, self._last_end, self.num_bytes = graph, last_end, num_bytes
        self._inputs, self._results = inputs, [result]

    def replay(self, inputs: tuple[Tensor, ...], /) -> Tensor:
        # In case the last one of these graphs was started from another stream: they share memory.
        self._last_end.wait()
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        result = self._results[0].clone()
        self._last_end.record()
        return result

    def release(self) -> None:
        # It may still be running.
        self._last_end.synchronize()
        self._inputs = ()
        self._results.clear()
        self._graph.reset()
