"""Parts of a stage's section that several stages have, each a frozen value that checks itself, and those checks.

Role: below ``settings``, whose values are made of these; read by the files that build what they describe. Symbols and
what the papers leave open: docs/algorithm.md, A5.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from gendr_core.errors import OptionError
from gendr_core.spec import NUM_TRAIN_TIMESTEPS

FeatureKind = Literal["transformers", "timm", "vae16"]

Steps = tuple[int, int]
"""(first, last) timestep, drawn uniformly."""


def at_least(section: object, least: float, *names: str) -> None:
    """Refuse numbers of a section that are too small or not finite.

    Args:
        section: any of these values.
        least: the smallest number that will do.
        names: of its numbers.

    Raises:
        OptionError: a number is below ``least`` or not finite.
    """
    for name in names:
        value: float = getattr(section, name)
        if not (math.isfinite(value) and value >= least):
            raise OptionError(f"expected {type(section).__name__}.{name} of at least {least:g}, got {value}")


def check_steps(name: str, steps: Steps) -> None:
    """Refuse timesteps that leave the schedule.

    Args:
        name: of the setting.
        steps: what it says.

    Raises:
        OptionError: they are out of order or outside of the schedule.
    """
    if not 0 <= steps[0] <= steps[1] < NUM_TRAIN_TIMESTEPS:
        raise OptionError(f"expected {name} as [first, last] from 0 to {NUM_TRAIN_TIMESTEPS - 1}, got {list(steps)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLosses:
    """Factor of each loss between an image and its target; 0 leaves it out."""

    l1: float = 0.0
    charbonnier: float = 1.0
    chroma: float = 0.0
    gradient: float = 0.0
    spectrum: float = 0.0
    perceptual: float = 0.0
    """Between the features of a frozen network; needs ``features``."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a factor is negative or not finite.
        """
        at_least(self, 0.0, *(f.name for f in fields(self)))


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureConfig:
    """A frozen network whose features are compared."""

    kind: FeatureKind
    """transformers: AutoModel, DINOv2 for example; timm: any of its models; vae16: the encoder of a GenDR VAE file."""
    name: str
    """Folder or hub name, timm's name, or the VAE's file."""
    layers: tuple[int, ...] = (-1,)
    """Which hidden states, levels or stages, as the kind counts them; negative from the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversaryConfig:
    """A patch discriminator on pixels and its pull on the network in training."""

    weight: float = 0.01
    """Of the adversarial loss of the network in training."""
    start_images: int = 0
    """The discriminator learns from the first image on; its pull begins here."""
    channels: int = 32
    """Of its first layer."""
    layers: int = 3
    """Convolutions with stride 2."""
    rate: float = 1.0
    """Factor of optimiser.lr."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a number is below its minimum.
        """
        at_least(self, 0.0, "weight", "start_images", "rate")
        at_least(self, 1, "channels", "layers")


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentConfig:
    """REPA: features after the UNet's first level are pulled towards those of a frozen encoder."""

    features: FeatureConfig
    weight: float = 0.5
    """[?] for GenDR; 0.5 in REPA (arXiv:2410.06940, section 4)."""
    hidden: int = 1024
    """Channels between the two 1x1 convolutions of the projection."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a number is below its minimum.
        """
        at_least(self, 0.0, "weight")
        at_least(self, 1, "hidden")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters; one for each role on one shared base."""

    rank: int = 64
    alpha: int = 128

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a number is below 1.
        """
        at_least(self, 1, "rank", "alpha")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """What the UNet is conditioned on."""

    text_encoder: str | None = None
    """Folder or hub name with SD2.1's ``tokenizer`` and ``text_encoder``; none takes one seeded token per prompt."""
    positive: str = ""
    """The fixed prompt that is exported; the strings of the paper are not published."""
    negative: str = ""
    dropout: float = 0.1
    """How often a caption is replaced by the negative prompt, for guidance."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: the dropout is no probability.
        """
        if not 0.0 <= self.dropout <= 1.0:
            raise OptionError(f"expected prompt.dropout from 0 to 1, got {self.dropout}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OneStep:
    """z_SR = c_skip z_LQ + c_out UNet(z_LQ, timestep); written into the exported file (docs/algorithm.md, A2)."""

    timestep: int = 354
    c_skip: float = math.sqrt(2.0)
    c_out: float = -1.0
    scale: float = 4.0
    """Default output size over input size."""
    guidance: float = 1.0
    """Default guidance weight of the exported file."""


def check_features(losses: ImageLosses, features: FeatureConfig | None) -> None:
    """Refuse a perceptual loss without a network to compare with.

    Args:
        losses: of a stage.
        features: beside them.

    Raises:
        OptionError: the perceptual loss has a weight and there are no features.
    """
    if losses.perceptual and features is None:
        raise OptionError("expected features beside the loss perceptual, got none")
