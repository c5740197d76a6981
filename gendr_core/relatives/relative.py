"""What a relative of GenDR is: a published file of changes to a base model, and how the result is run.

Role: the words in which the files beside this one speak; read by ``convert``. Sources: docs/algorithm.md, section B.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from ..adapters import State
from ..errors import CheckpointError
from ..pickled_child import SEPARATOR
from ..spec import SPATIAL_FACTOR, alpha_bar, one_step_coefficients

SD2_BASE = "Stable Diffusion 2.1 base (512 px)"
SD_TURBO = "SD-Turbo"


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """The content of a relative's own file."""

    tensors: State
    """By name, nested dicts joined by ``SEPARATOR``."""
    values: Mapping[str, object]
    """Numbers, texts and lists of them, named likewise."""

    def has(self, name: str) -> bool:
        """Return whether the file has a value, a tensor or a nested dict of this name."""
        prefix = name + SEPARATOR
        return name in self.values or name in self.tensors or any(key.startswith(prefix) for key in self.tensors)

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one nested dict under their own names.

        Raises:
            CheckpointError: the file has none.
        """
        prefix = name + SEPARATOR
        found = {key[len(prefix) :]: tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}
        if not found:
            raise CheckpointError(f"the file has no tensors in {name!r}: it is incomplete, or another model's")
        return found

    def names(self, key: str) -> list[str]:
        """Return a list of names that the file keeps.

        Raises:
            CheckpointError: it keeps none.
        """
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in cast("list[object]", value)):
            raise CheckpointError(f"the file has no list of layers {key!r}: it is incomplete, or another model's")
        return cast("list[str]", value)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bases:
    """Weights of the base model, or of what a relative publishes in its place, under diffusers names."""

    unet: State
    vae: State


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Merged:
    """Weights ready to be written."""

    unets: Mapping[str, State]
    """By what sets a UNet apart; the first, named "", is the model itself."""
    vae: State


Degradation = tuple[float, float]
"""Blur and noise of the images to restore, 0 (none) to 1, as S3Diff's estimator gives them."""

Merge = Callable[[Published, Bases, Degradation | None], Merged]


@dataclass(frozen=True, kw_only=True, slots=True)
class Relative:
    """A relative whose published weights become a GenDR model."""

    key: str
    """Its name on the command line and in the files' names."""
    title: str
    license: str
    source: str
    base: str
    """Which base model its file was made for."""
    timestep: int
    coefficients: tuple[float, float]
    """(c_skip, c_out), see ``ModelSpec``."""
    guidance: float = 1.0
    cell_px: int = SPATIAL_FACTOR
    """Output pixels per latent cell of its VAE."""
    pickled_vae: bool = False
    """Whether it publishes a VAE of its own, pickled, in place of the base's."""
    marks: frozenset[str]
    """Names in its file that no other relative's has; none for a plain list of adapters."""
    parts: tuple[str, ...] = ("",)
    """What sets its UNets apart, see ``Merged``."""
    needs_degradation: bool = False
    """Whether its weights depend on the images to restore."""
    merge: Merge


def epsilon_coefficients(timestep: int) -> tuple[float, float]:
    """Return (c_skip, c_out) of a network that predicts noise at ``timestep`` of SD2.1's schedule."""
    return one_step_coefficients("epsilon", alpha_bar(timestep))


def suffix_layers(state: State, suffixes: tuple[str, ...]) -> list[str]:
    """Return the layers whose names end in one of ``suffixes``: what peft takes a list of target modules for."""
    layers = (
        name.removesuffix(".weight") for name, tensor in state.items() if name.endswith(".weight") and tensor.ndim > 1
    )
    return [layer for layer in layers if any(layer == end or layer.endswith(f".{end}") for end in suffixes)]
