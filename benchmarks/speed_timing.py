"""Speed: clocks, turns, and how many operations a second this machine is capable of.

Role: a part of ``speed``; knows nothing of what is measured. All contenders take turns (A B C A B C ...), so that a
busy or warming machine weighs on each alike.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from statistics import median
from time import perf_counter
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

STAGES = ("prepare", "encode", "step", "decode", "color")
PEAK_ROUNDS = 3
PRODUCT_EDGES = {"cpu": 2048, "cuda": 8192}
"""Of square matrices, by device."""
CONVOLUTIONS = {"cpu": ((256, 128), (512, 64)), "cuda": ((256, 512), (512, 256))}
"""Channels and edge of the frame of 3x3 convolutions, by device."""

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")
Call = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Tap:
    """A function that is one stage of somebody's restoration, under the name by which it is called."""

    owner: Any
    """Module or object that the name belongs to."""
    name: str
    stage: str
    """One of ``STAGES``."""


class StageClock:
    """Times of the stages of every call."""

    def __init__(self, device: str) -> None:
        """Start with no times; on CUDA every reading waits for the device."""
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._device = device

    def timed(self, call: Callable[Arguments, Value], stage: str) -> Callable[Arguments, Value]:
        """Return ``call``, whose times are those of ``stage`` from now on."""

        @wraps(call)
        def watched(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
            begin = now(self._device)
            result = call(*args, **kwargs)
            self.seconds[stage].append(now(self._device) - begin)
            return result

        return watched

    def medians_ms(self) -> dict[str, float]:
        """Return the median milliseconds of every stage that ran."""
        return {stage: median(times) * 1e3 for stage, times in self.seconds.items() if times}


@contextmanager
def tapped(taps: Sequence[Tap], clock: StageClock) -> Generator[None]:
    """Let ``clock`` time the functions behind ``taps`` for a while."""
    with ExitStack() as stack:
        for tap in taps:
            watched = clock.timed(getattr(tap.owner, tap.name), tap.stage)
            stack.enter_context(patch.object(tap.owner, tap.name, watched))
        yield


def now(device: str) -> float:
    """Return the wall clock in seconds, once the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


def interleave(calls: Mapping[str, Call], rounds: int, device: str) -> dict[str, float]:
    """Return the median milliseconds of each call; every round makes each of them once, in order."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = now(device)
            call()
            seconds[name].append(now(device) - begin)
    return {name: median(times) * 1e3 for name, times in seconds.items()}


@torch.inference_mode()
def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Return the most FLOP/s that large matrix products and 3x3 convolutions reach: the best of several of each.

    A multiply-add counts 2.
    """
    edge = PRODUCT_EDGES[device]
    matrix = torch.rand(edge, edge, device=device, dtype=dtype)
    rates = [_rate(lambda: matrix @ matrix, 2 * edge**3, device)]
    for channels, edge in CONVOLUTIONS[device]:
        order = torch.channels_last
        convolution = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
        convolution = convolution.to(memory_format=order)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
        frame = torch.rand(1, channels, edge, edge, device=device, dtype=dtype).contiguous(memory_format=order)
        rates.append(_rate(lambda run=convolution, x=frame: run(x), 18 * (channels * edge) ** 2, device))
    return max(rates)


def _rate(run: Call, flops: int, device: str) -> float:
    run()
    best = float("inf")
    for _ in range(PEAK_ROUNDS):
        begin = now(device)
        run()
        best = min(best, now(device) - begin)
    return flops / best
