"""Goes on after running out of memory: free what can be freed, take a smaller plan, do that stage again.

Role: ``planner`` fills a ladder for every stage; ``pipeline`` and the nodes run the stages through here, so what
earlier stages finished is not lost. What is returned always comes from a stage that ran to its end.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import TypeVar

import torch
from torch import Tensor

from .errors import OutOfMemoryError
from .host import Meter
from .memory import PROCESSOR, format_bytes, is_out_of_memory, release
from .plan import StagePlan

Result = TypeVar("Result")

_log = getLogger(__name__)


class Ladder:
    """The ways to run one stage, each with less memory than the one before, and which of them is in use."""

    def __init__(
        self, stage: str, ways: Iterator[StagePlan], *, device_type: str, room_bytes: int, resident_bytes: int
    ) -> None:
        """Take the first of ``ways`` that fits in ``room_bytes``.

        Args:
            stage: its name, for messages.
            ways: from the cheapest to the one that needs least memory.
            device_type: where the stage runs.
            room_bytes: that activations may take.
            resident_bytes: that weights take beside them, for messages.

        Raises:
            OutOfMemoryError: none does.
        """
        self.device_type = device_type
        self._stage = stage
        self._ways = ways
        self._room_bytes = room_bytes
        self._resident_bytes = resident_bytes
        self._least: StagePlan | None = None
        way = self._find(room_bytes)
        if way is None:
            raise self.failure()
        self.plan = way
        """The way in use."""

    def climb_down(self) -> bool:
        """Take the next way, because the one in use ran out of memory although it should have fit; False if none is."""
        failed_bytes = self.plan.activation_bytes
        way = self._find(failed_bytes - 1)
        if way is None:
            return False
        self.plan = way
        _log.warning(
            "%s ran out of memory at about %s: going on with %s",
            self._stage,
            format_bytes(failed_bytes),
            way.describe(),
        )
        return True

    def failure(self) -> OutOfMemoryError:
        """Return the error that says that no way fits."""
        needed = 0 if self._least is None else self._least.activation_bytes
        weights = f" beside {format_bytes(self._resident_bytes)} of weights" if self._resident_bytes else ""
        return OutOfMemoryError(
            f"expected room for at least {format_bytes(needed)} of activations in {self._stage}{weights},"
            f" got {format_bytes(max(0, self._room_bytes))}: choose a smaller output, a larger budget, memory mode"
            " 'auto' or smaller tiles, or free memory"
        )

    def _find(self, most_bytes: int) -> StagePlan | None:
        for way in self._ways:
            if self._least is None or way.activation_bytes < self._least.activation_bytes:
                self._least = way
            if way.activation_bytes <= most_bytes:
                return way
        return None


def _may_pass(error: BaseException) -> bool:
    """Tell whether ``error`` is a want of memory that less work may cure; our own error is the verdict on that."""
    return is_out_of_memory(error) and not isinstance(error, OutOfMemoryError)


def run_stage(ladder: Ladder, meter: Meter, x: Tensor, compute: Callable[[Tensor, StagePlan], Tensor]) -> Tensor:
    """Return what ``compute`` makes of ``x`` by the plan of ``ladder``, or by the first smaller one that does not fail.

    A plan that has no smaller one is tried once more, since releasing memory may have been enough.

    Args:
        ladder: stays where it stopped, for the frames to come.
        meter: set back to where the stage began before it is run again.
        x: [B, ...], given to the stage in as many frames at a time as the plan says.
        compute: the stage.

    Raises:
        OutOfMemoryError: even the smallest plan ran out of memory.
    """
    begun_at, last_chance = meter.flops, False
    while True:
        try:
            parts = [compute(part, ladder.plan) for part in torch.split(x, ladder.plan.batch)]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        except (RuntimeError, MemoryError) as error:
            if not _may_pass(error):
                raise
        # Not inside the handler: the traceback there still holds the tensors of the failed attempt.
        release(torch.device(ladder.device_type))
        meter.flops = begun_at
        if not ladder.climb_down():
            if last_chance:
                raise ladder.failure()
            last_chance = True


def run_end(stage: str, device: torch.device, compute: Callable[[torch.device], Result]) -> Result:
    """Return what ``compute`` makes on ``device``, or on the processor where the device has no room for it.

    Raises:
        OutOfMemoryError: the processor has none either.
    """
    if device != PROCESSOR:
        try:
            return compute(device)
        except (RuntimeError, MemoryError) as error:
            if not _may_pass(error):
                raise
        release(device)
        _log.warning("%s ran out of memory on %s: going on with the processor", stage, device)
    return run_twice(stage, lambda: compute(PROCESSOR))


@contextmanager
def typed_memory_errors() -> Generator[None]:
    """Turn what is left of untyped errors for want of memory, between the stages, into ``OutOfMemoryError``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _may_pass(error):
            raise
        raise OutOfMemoryError(f"ran out of memory ({error}): choose a smaller output, or free memory") from error


def run_twice(stage: str, compute: Callable[[], Result]) -> Result:
    """Return what ``compute`` makes on the processor, tried once more if it ran out of memory.

    Raises:
        OutOfMemoryError: it did so again.
    """
    complaint = ""
    for _ in range(2):
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not _may_pass(error):
                raise
            complaint = str(error)
    raise OutOfMemoryError(f"{stage} does not fit in memory ({complaint}): choose a smaller output, or free memory")
