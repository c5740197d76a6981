"""How exactly a device multiplies: torch's settings for the whole process, held only while a network runs.

Role: ``encode``, ``step`` and ``decode`` run their networks inside ``device_settings``, whoever calls them; what the
host has set is there again behind it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Lock

import torch

Restore = Callable[[], object]
"""Gives back what was changed."""

_LOCK = Lock()


@contextmanager
def device_settings(device: torch.device, dtype: torch.dtype, *, repeats: bool = False) -> Generator[None]:
    """Hold the settings that a pass on ``device`` needs, and give back what was there, also after an error.

    Nothing is ever switched on here, so passes of several threads can hold settings in any order:

    - TF32 is off for float32. It keeps 10 bits of every factor, so results would differ by about 1e-3 from those of a
      processor, and torch allows it to convolutions unless told otherwise. Whoever wants speed takes a 16-bit dtype;
      there nothing large is multiplied in float32, and the setting stays as it is.
    - cuDNN's benchmark is off unless shapes repeat. It times every kernel for every new shape, which a frame that comes
      once never earns back. Where they repeat, the host's choice stays; on its own it is not switched on, because which
      kernel wins a race differs from run to run, and with it the result (docs/decisions/0006-deterministic.md).

    Args:
        device: where the network runs; on any other type than ``cuda`` nothing is touched.
        dtype: in which it computes.
        repeats: whether the same shapes come many times, as tiles do.
    """
    switches: list[_Switch] = []
    if device.type == "cuda":
        switches += _TF32 if dtype == torch.float32 else ()
        switches += () if repeats else (_BENCHMARK,)
    with ExitStack() as stack:
        for switch in switches:
            stack.enter_context(switch.off())
        yield


class _Switch:
    """A setting that is off as long as anybody wants it off."""

    def __init__(self, turn_off: Callable[[], Restore]) -> None:
        self._turn_off = turn_off
        self._holders = 0
        self._restore: Restore | None = None

    @contextmanager
    def off(self) -> Generator[None]:
        with _LOCK:
            if self._holders == 0:
                self._restore = self._turn_off()
            self._holders += 1
        try:
            yield
        finally:
            with _LOCK:
                self._holders -= 1
                if self._holders == 0 and self._restore is not None:
                    self._restore()


def _replace(owner: object, name: str, value: object) -> Restore:
    """Set an attribute that can be read; what is as it should be is not touched."""
    before = getattr(owner, name)
    if before == value:
        return _nothing
    setattr(owner, name, value)
    return partial(setattr, owner, name, before)


def _nothing() -> None:
    """Give back nothing, where nothing was changed."""


def _exact_products() -> Restore:
    """Turn TF32 off for matrix products."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        # The host has set it by torch's newer name; from then on torch refuses to tell it by the older one.
        return _replace(torch.backends.cuda.matmul, "fp32_precision", "ieee")
    if precision == "highest":
        return _nothing
    # The older name speaks for the processor, too, whose own setting newer versions of torch keep beside it.
    processor = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(processor, "fp32_precision", None)
    torch.set_float32_matmul_precision("highest")

    def restore() -> None:
        torch.set_float32_matmul_precision(precision)
        if before is not None:
            setattr(processor, "fp32_precision", before)  # noqa: B010 - not there in older versions

    return restore


def _exact_convolutions() -> Restore:
    """Turn TF32 off for convolutions."""
    try:
        return _replace(torch.backends.cudnn, "allow_tf32", False)
    except RuntimeError:
        # As above; torch's stubs do not know it.
        return _replace(getattr(torch.backends.cudnn, "conv"), "fp32_precision", "ieee")  # noqa: B009


def _no_benchmark() -> Restore:
    return _replace(torch.backends.cudnn, "benchmark", False)


_TF32: Sequence[_Switch] = (_Switch(_exact_products), _Switch(_exact_convolutions))
_BENCHMARK = _Switch(_no_benchmark)
