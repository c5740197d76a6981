"""What a stage of training is: networks with roles, the named losses of one update, and the file that comes out.

Role: the base of its neighbours in this folder; driven by ``loop``. One update is one forward pass of the whole stage,
one backward pass and one optimiser step for all roles together (docs/decisions/0012). Each loss reaches the parameters
of one role only, the one before the slash in its name: other roles are frozen where it uses their networks. So the
stage is one module with one optimiser, which is what the engines for several devices can wrap.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.dataset import Batch
from ..rng import Draws
from ..schema import ExportConfig

Losses = dict[str, Tensor]
"""``role/loss`` -> [B], unweighted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """The parameters that one role trains."""

    parameters: list[nn.Parameter]
    rate: float = 1.0
    """Factor of the run's learning rate."""


class Pair(NamedTuple):
    """What an update sees of the images."""

    original: Tensor
    """[B, 3, H, W] float32 in [-1, 1], the target."""
    upsampled: Tensor
    """[B, 3, H, W] float32 in [-1, 1], the damaged image resized to the size of the original."""


class Adversary(nn.Module):
    """A discriminator as a part of a stage: the role of its parameters, and the factors of both sides' losses."""

    def __init__(self, *, weight: float, rate: float) -> None:
        """Keep the factors.

        Args:
            weight: of the pull on the network in training.
            rate: factor of the run's learning rate.
        """
        super().__init__()
        self._rate = rate
        self.weights = {"generator/adversarial": weight, "discriminator/real": 1.0, "discriminator/fake": 1.0}

    @property
    def role(self) -> Role:
        """What the discriminator trains."""
        return Role(parameters=list(self.parameters()), rate=self._rate)


def roles_of(generator: nn.Module, adversary: Adversary | None) -> dict[str, Role]:
    """Return the generator, and the discriminator where there is one.

    Args:
        generator: learns whole.
        adversary: of the same stage.
    """
    roles = {"generator": Role(parameters=list(generator.parameters()))}
    return roles if adversary is None else {**roles, "discriminator": adversary.role}


class Stage(nn.Module, ABC):
    """Networks in training, and frozen ones beside them."""

    averaged = "generator"
    """The role whose weights are averaged, validated and exported."""
    reconstructs = False
    """Whether ``restored`` starts from the original, so that the kind of damage does not matter."""

    def __init__(self) -> None:
        """Start with no losses."""
        super().__init__()
        self.weights: dict[str, float] = {}
        """Factor of each loss, by the names that ``forward`` gives them."""

    @abstractmethod
    def forward(self, batch: Batch, draws: Draws, images: int) -> Losses:
        """Return the losses of an update for every role, each [B].

        Args:
            batch: on the stage's device.
            draws: every random number of the update.
            images: images seen, this batch included.
        """

    @abstractmethod
    def roles(self) -> dict[str, Role]:
        """Return who trains which parameters; no parameter has two roles."""

    @abstractmethod
    def restored(self, pair: Pair) -> Tensor:
        """Return what the averaged role makes of the images, [B, 3, H, W] in [-1, 1]: no gradient, no chance."""

    @abstractmethod
    def export(self, path: Path, about: ExportConfig) -> None:
        """Write the averaged role as a float16 file for gendr_core.

        Args:
            path: the file to write.
            about: what it says about itself, the source with the config's hash and the images seen.
        """

    def begin(self, first_images: Callable[[], Batch]) -> None:
        """Take from the data what a fresh run starts with; nothing unless a stage says so.

        Args:
            first_images: makes a batch of the run's first images, on the stage's device; called if it is wanted.
        """
        del first_images

    def measure(self, batch: Batch) -> None:
        """Measure what the exported file must know, with the averaged weights in place; nothing as a rule.

        Args:
            batch: validation images.
        """
        del batch


def to_pair(batch: Batch) -> Pair:
    """Return the batch as pixels of one size; the damaged image is enlarged as ``gendr_core.prepare`` does it.

    Args:
        batch: from the data loader, on any device.
    """
    original = batch.original.to(torch.float32) / 127.5 - 1.0
    size = original.shape[2:]
    upsampled = functional.interpolate(batch.damaged, size=size, mode="bicubic", antialias=True, align_corners=False)
    return Pair(original, upsampled.clamp(0.0, 1.0) * 2.0 - 1.0)
