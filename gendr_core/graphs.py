"""Passes through a network as CUDA graphs: recorded once, then launched as one, without a processor's time per kernel.

Role: ``encode``, ``step`` and ``decode`` hand their one pass to ``run``; ``pipeline`` says with ``used`` whether graphs
are wanted, which they are not unless a user asks. ``capture`` does the recording.

There is one cache in a process, since its memory belongs to the device and not to a model: it lives as long as the next
image of the same size may come, holds networks by weak references only, and is bounded in number and bytes.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from logging import getLogger
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .capture import Captured, Capturer, TorchCapturer
from .config import GraphMode
from .geometry import Extent, Span
from .host import Meter
from .memory import format_bytes, is_out_of_memory
from .plan import StagePlan, band_sizes

MOST_CELLS = 96**2
"""Latent cells of a frame, 768x768 pixels. The 1,150 launches of the UNet are reckoned, not measured, to take as long
as its work there; beyond, a device is busy by itself."""
MOST_GRAPHS = 16
MOST_BYTES = 2**31
"""Of a device's memory that graphs may keep between runs."""
SEEN_BEFORE = 1
"""Eager runs of a pass before it is recorded: a size that comes once is not worth it."""
PENALTY = 8
"""More of them after a graph had to go for want of room, so that sizes which push each other out stay eager."""
NEVER = -float("inf")
"""Runs of a pass that cannot be recorded."""
REMEMBERED = 256
"""Passes whose runs are counted."""

Compute = Callable[[Meter, tuple[Tensor, ...]], Tensor]
"""A pass, given who counts its work and its tensors, which it does not change. All else that it uses is constant."""

_log = getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What decides over a pass besides its tensors."""

    network: nn.Module
    plan: StagePlan
    meter: Meter
    cells: Extent
    """Of the frame, in latent cells."""
    constants: tuple[Hashable, ...]
    """Which stage it is, and every number that it uses."""
    recordable: bool = True
    """Whether all that it uses is on the device."""

    def launch_bound(self, device_type: str, batch: int) -> bool:
        """Tell whether launching takes as long as computing, and memory is not short: small whole frames."""
        plan, windows = self.plan, self.plan.windows
        if plan.tiles is not None or plan.bands != band_sizes(device_type)[0]:
            return False
        edge = max(self.cells.height, self.cells.width)
        return (windows is None or edge <= windows.reach) and batch * self.cells.area <= MOST_CELLS


class _Key(NamedTuple):
    """Passes that one graph serves."""

    network: int
    addresses: tuple[int, ...]
    """Of all weights: a graph reads them where they were."""
    plan: StagePlan
    constants: tuple[Hashable, ...]
    tensors: tuple[Hashable, ...]
    """Shape, order in memory, dtype and device of each."""


class _Entry(NamedTuple):
    network: "weakref.ref[nn.Module]"
    captured: Captured
    flops: int


class GraphCache:
    """Graphs of passes that have come before."""

    def __init__(self, capturer: Capturer, *, most_graphs: int = MOST_GRAPHS, most_bytes: int = MOST_BYTES) -> None:
        """Start empty.

        Args:
            capturer: records passes, on devices of one type.
            most_graphs: kept; the one that was not used for longest goes first.
            most_bytes: kept by all together. They share their memory, which torch gives back only with the last of
                them, so beyond that all go.
        """
        self._capturer, self._most_graphs, self._most_bytes = capturer, most_graphs, most_bytes
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._seen: OrderedDict[_Key, float] = OrderedDict()
        self._bytes = 0
        # Held while graphs are recorded, started or dropped: they share memory, so there is one at a time.
        self._lock = Lock()

    def __len__(self) -> int:
        """Return how many graphs there are."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of the device's memory that graphs keep."""
        return self._bytes

    def run(self, each: Pass, compute: Compute, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return what ``compute`` makes of ``inputs``: by a graph where there is one and the pass is fit for it.

        Raises what the host's interrupt raises, before a graph is recorded or started, never within.
        """
        key = self._key(each, inputs)
        if key is None:
            return self._eager(each, compute, inputs)
        with self._lock:
            entry = self._entry(key, each, compute, inputs)
            result = None if entry is None else entry.captured.replay(inputs)
        if entry is None or result is None:
            return self._eager(each, compute, inputs)
        each.meter.advance(entry.flops, Span(0, 1), 1)
        return result

    def clear(self) -> bool:
        """Drop all graphs and give their memory back; return whether there were any."""
        with self._lock:
            return self._drop(list(self._entries))

    def _key(self, each: Pass, inputs: tuple[Tensor, ...]) -> _Key | None:
        """Return which graph serves a pass, None where none may."""
        device, kind = inputs[0].device, self._capturer.device_type
        if device.type != kind or not each.recordable or not torch.is_inference_mode_enabled():
            return None
        if not each.launch_bound(kind, len(inputs[0])):
            return None
        weights = list(_weights(each.network))
        # What a host keeps elsewhere it brings over by means of its own.
        if any(weight.device != device for weight in weights):
            return None
        tensors = tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in inputs)
        addresses = tuple(weight.data_ptr() for weight in weights)
        return _Key(id(each.network), addresses, each.plan, each.constants, tensors)

    def _entry(self, key: _Key, each: Pass, compute: Compute, inputs: tuple[Tensor, ...]) -> _Entry | None:
        """Return the graph of a pass, recorded now if its time has come; None if it runs eagerly."""
        self._drop([old for old, entry in self._entries.items() if self._is_stale(old, entry, key, each.network)])
        if key not in self._entries:
            self._count(key, 1)
            if self._seen[key] <= SEEN_BEFORE:
                return None
            each.meter.host.interrupt.check()
            self._record(key, each, compute, inputs)
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        each.meter.host.interrupt.check()
        return self._entries[key]

    @staticmethod
    def _is_stale(old: _Key, entry: _Entry, key: _Key, network: nn.Module) -> bool:
        """Tell whether a graph's network is gone, or has its weights elsewhere or of another layout by now."""
        owner = entry.network()
        return owner is None or (owner is network and old.addresses != key.addresses)

    def _record(self, key: _Key, each: Pass, compute: Compute, inputs: tuple[Tensor, ...]) -> None:
        """Add the graph of a pass; what fails or does not fit is left out, and what that says is noted."""
        # Silent: a host that is asked within a recording could raise, or use the device.
        meter = Meter()

        def pass_alone(tensors: tuple[Tensor, ...]) -> Tensor:
            meter.flops = 0
            return compute(meter, tensors)

        try:
            captured = self._capturer.capture(pass_alone, inputs)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self._seen[key] = -PENALTY
            else:
                _log.warning("no CUDA graph for %s, which goes on without: %s", each.cells, error)
                self._seen[key] = NEVER
        else:
            self._bytes += captured.num_bytes
            self._entries[key] = _Entry(weakref.ref(each.network, self._on_death), captured, meter.flops)
            self._make_room(key)
            return
        # Not inside the handler: the traceback there still holds the tensors of the failed attempt.
        if self._seen[key] != NEVER and not self._drop(list(self._entries)):
            self._capturer.reset()

    def _make_room(self, newest: _Key) -> None:
        """Drop what is too much; sizes that push each other out stay eager for a while."""
        dropped = [next(iter(self._entries))] if len(self._entries) > self._most_graphs else []
        alone = len(self._entries) == 1
        if self._bytes > self._most_bytes:
            dropped = list(self._entries)
            _log.info("CUDA graphs would keep %s: dropping %d", format_bytes(self._bytes), len(dropped))
        self._drop(dropped)
        for key in dropped:
            self._count(key, -PENALTY)
        if newest in dropped:
            # With all the room it may fit, unless it had that already.
            self._seen[newest] = NEVER if alone else SEEN_BEFORE

    def _count(self, key: _Key, runs: float) -> None:
        self._seen[key] = self._seen.get(key, 0.0) + runs
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _drop(self, keys: list[_Key]) -> bool:
        """Drop these graphs; with the last one, give memory back."""
        for key in keys:
            self._entries.pop(key).captured.release()
        if keys and not self._entries:
            self._capturer.reset()
            self._bytes = 0
        return bool(keys)

    def _on_death(self, network: "weakref.ref[nn.Module]") -> None:
        """Drop the graphs of a network that is gone. Called by Python, at any time and in any thread."""
        # Whoever holds the lock drops them with the next pass.
        if self._lock.acquire(blocking=False):
            try:
                self._drop([key for key, entry in list(self._entries.items()) if entry.network is network])
            finally:
                self._lock.release()

    def _eager(self, each: Pass, compute: Compute, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return what ``compute`` makes; where memory runs out, once more without any graphs beside it."""
        begun_at = each.meter.flops
        try:
            return compute(each.meter, inputs)
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) and self._entries):
                raise
        self.clear()
        each.meter.flops = begun_at
        return compute(each.meter, inputs)


def _weights(network: nn.Module) -> Iterator[Tensor]:
    """Yield every parameter and buffer. Torch's own way also makes names and takes thrice as long: 3 ms of a UNet."""
    waiting: list[nn.Module] = [network]
    while waiting:
        parts = vars(waiting.pop())
        for tensors in (parts["_parameters"], parts["_buffers"]):
            yield from (tensor for tensor in tensors.values() if tensor is not None)
        waiting += [child for child in parts["_modules"].values() if child is not None]


_PROCESS = GraphCache(TorchCapturer())
_ACTIVE: ContextVar[GraphCache | None] = ContextVar("gendr_graphs", default=None)


@contextmanager
def used(mode: GraphMode, cache: GraphCache = _PROCESS) -> Generator[None]:
    """Let ``run`` use graphs in this thread, if ``mode`` is not ``off``."""
    token = _ACTIVE.set(None if mode == "off" else cache)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def run(each: Pass, compute: Compute, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return what ``compute`` makes of ``inputs``, by a graph where graphs are ``used`` (``GraphCache.run``)."""
    cache = _ACTIVE.get()
    return compute(each.meter, inputs) if cache is None else cache.run(each, compute, inputs)
