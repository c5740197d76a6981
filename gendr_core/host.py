"""What the core asks of whoever runs it: progress, cancel, and where a network lives. All do nothing by default.

Role: ``pipeline`` calls these three; ComfyUI's side of them is in ``nodes/host.py``, the command line's in ``cli``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


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


class Residency(Protocol):
    """Brings networks to where they compute."""

    def acquire(self, network: torch.nn.Module, activation_bytes: int) -> torch.device:
        """Make ``network`` ready to run with ``activation_bytes`` of room and return the device for its inputs."""
        ...


class SilentProgress:
    """Progress that nobody watches."""

    def update(self, done: int, total: int) -> None:
        """Do nothing."""


class NeverInterrupt:
    """A run that nobody stops."""

    def check(self) -> None:
        """Do nothing."""


class StayInPlace:
    """Networks that already are where their owner put them."""

    def acquire(self, network: torch.nn.Module, activation_bytes: int) -> torch.device:
        """Return the device of the network's parameters; nothing moves and nothing is freed."""
        del activation_bytes
        return next(network.parameters()).device


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """The three services together."""

    progress: Progress = field(default_factory=SilentProgress)
    interrupt: Interrupt = field(default_factory=NeverInterrupt)
    residency: Residency = field(default_factory=StayInPlace)
