"""What the core asks of whoever runs it: progress, cancel, previews, where a network lives. By default nothing happens.

Role: ``pipeline`` and, through a ``Meter``, the networks call these; ComfyUI's side of them is in ``nodes/host.py``,
the command line's in ``cli``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from .geometry import Span


class Progress(Protocol):
    """Told how much of the work is done."""

    def update(self, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` units are finished; ``total`` is the same in every call of a run."""
        ...


class Interrupt(Protocol):
    """Asked between units of work whether the user wants to stop."""

    def check(self) -> None:
        """Return, or raise the host's own exception, which passes through the core untouched."""
        ...


class Preview(Protocol):
    """Shown what is finished while the rest is still at work."""

    def begin(self, pixels: Tensor) -> None:
        """Note that a frame begins, whose padded input at its final size is ``pixels`` [1, 3, H, W] in -1 to 1."""
        ...

    def show(self, pixels: Tensor, rows: Span, columns: Span) -> None:
        """Note that these rows and columns of the frame are finished: [1, 3, rows, columns], before colours match."""
        ...


class Residency(Protocol):
    """Brings networks to where they compute."""

    def acquire(self, network: torch.nn.Module, activation_bytes: int) -> torch.device:
        """Make ``network`` ready to run with ``activation_bytes`` of room and return the device for its inputs."""
        ...

    def device_of(self, network: torch.nn.Module) -> torch.device:
        """Return where ``network`` will run."""
        ...

    def resident_bytes(self, network: torch.nn.Module, others: Sequence[torch.nn.Module]) -> int:
        """Return how many bytes of weights are in memory while ``network`` runs; ``others`` take turns with it."""
        ...

    def room_bytes(self, network: torch.nn.Module) -> int | None:
        """Return how many bytes of activations could be had beside ``network``; None where the machine tells."""
        ...


class SilentProgress:
    """Progress that nobody watches."""

    def update(self, done: int, total: int) -> None:
        """Do nothing."""


class NeverInterrupt:
    """A run that nobody stops."""

    def check(self) -> None:
        """Do nothing."""


NEVER = NeverInterrupt()


class StayInPlace:
    """Networks that already are where their owner put them, all of them together."""

    def acquire(self, network: torch.nn.Module, activation_bytes: int) -> torch.device:
        """Return the device of the network's parameters; nothing moves and nothing is freed."""
        del activation_bytes
        return self.device_of(network)

    def device_of(self, network: torch.nn.Module) -> torch.device:
        """Return the device of the network's parameters."""
        return next(network.parameters()).device

    def resident_bytes(self, network: torch.nn.Module, others: Sequence[torch.nn.Module]) -> int:
        """Return the bytes of the parameters of all of them."""
        return sum(parameter.nbytes for each in (network, *others) for parameter in each.parameters())

    def room_bytes(self, network: torch.nn.Module) -> int | None:
        """Return None: what the machine has free is free for activations."""
        del network
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """The services together."""

    progress: Progress = field(default_factory=SilentProgress)
    interrupt: Interrupt = NEVER
    residency: Residency = field(default_factory=StayInPlace)
    preview: Preview | None = None
    """None where nobody looks, which saves making pictures of parts."""


class Meter:
    """Counts the work of a run in FLOPs: tells the host how far it is and lets the user stop it between two pieces."""

    STEPS = 1000
    """Of progress reported, whatever the work."""

    def __init__(self, host: Host | None = None, total_flops: int = 0) -> None:
        """Start at 0 of ``total_flops``; with a total of 0 nothing is reported, only interrupts are checked."""
        self.host = host or Host()
        self.flops: int = 0
        """Done so far."""
        self._total_flops = total_flops
        self._reported = 0

    def pieces(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Return which of the pieces of a layer to compute: all of them. A sketch leaves out those that are alike."""
        return spans

    def advance(self, flops: int, part: Span, length: int) -> None:
        """Note that ``part`` of the ``length`` places of a layer of ``flops`` is done.

        Raises what the host's interrupt raises.
        """
        self.host.interrupt.check()
        self.flops += flops * len(part) // length
        if self._total_flops:
            step = min(self.STEPS, self.flops * self.STEPS // self._total_flops)
            if step > self._reported:
                self._reported = step
                self.host.progress.update(step, self.STEPS)
