"""What one training run is, as frozen values: the sections of a config file that every stage has, and their defaults.

Role: filled by ``config`` from YAML, read by everything above; what only one stage has is in ``settings``. The clock is
images seen, never steps, so that a run means the same at any batch size.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from gendr_core.errors import OptionError

from .degradations import Degradation, SecondOrder
from .settings import RestorationSettings, StageSettings

StageName = Literal["vae16", "pixel", "latent", "base", "cida", "adc", "pix"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Which run this is and where its files go."""

    name: str
    output: str = "runs"
    """Folder that gets a folder of the run's name, and the exported file."""
    seed: int = 0
    stage: StageName
    """vae16, base, cida, adc and pix are those of the papers, in order; pixel and latent restore without a teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images are seen, and how they are cut."""

    folders: tuple[str, ...] = ()
    """Every image below these folders is used; a text file beside it is its caption."""
    shards: tuple[str, ...] = ()
    """Tar files in place of folders, as webdataset lays them out."""
    damaged: str | None = None
    """Folder with the damaged versions, at a quarter of the size, under the paths that the images have below the one
    folder in ``folders``, with any image suffix; none makes them as ``degradation`` says."""
    validation_folder: str | None = None
    """Held-out images; none means no validation."""
    validation_images: int = 8
    """How many of them, spread evenly over the sorted file names."""
    validation_crop_px: int = 256
    crop_px: int = 128
    color_shuffle: float = 0.0
    """How often the colour channels of a crop change places at random: photos show few colours of each thing."""
    short_side_px: int | None = None
    """Larger images are first resized so that their short side has this length; none cuts them as they are."""
    turns: bool = True
    """All eight flips and quarter turns; false flips left and right only, as captions ask for."""
    skip_small: bool = False
    """Leave out images smaller than a crop; false refuses them."""
    damage_on: Literal["worker", "device"] = "worker"
    """Where images are damaged: one by one in the workers, or on the device of the networks."""
    batch: int = 16
    """Images of one process in one forward pass."""
    workers: int = 1
    """Processes that prepare batches; 0 prepares them in the training process."""
    cache: bool = True
    """Keep decoded images in memory, as bytes, in each worker."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a count is below its minimum, a probability outside 0..1, or a crop does not divide by 64.
        """
        if not 0.0 <= self.color_shuffle <= 1.0:
            raise OptionError(f"expected data.color_shuffle from 0 to 1, got {self.color_shuffle}")
        for name, least in (("batch", 1), ("workers", 0), ("validation_images", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"expected data.{name} of at least {least}, got {getattr(self, name)}")
        for name in ("crop_px", "validation_crop_px"):
            if getattr(self, name) < 64 or getattr(self, name) % 64:
                raise OptionError(f"expected data.{name} as a multiple of 64, got {getattr(self, name)}")
        if self.short_side_px is not None and self.short_side_px < self.crop_px:
            raise OptionError(
                f"expected data.short_side_px of at least crop_px, {self.crop_px}, got {self.short_side_px}"
            )
        if self.damaged is not None:
            self._check_damaged()
        if bool(self.folders) == bool(self.shards):
            raise OptionError(
                f"expected data.folders or data.shards, got {len(self.folders)} folders and {len(self.shards)} shards"
            )

    def _check_damaged(self) -> None:
        if len(self.folders) != 1 or self.short_side_px is not None or self.damage_on != "worker":
            raise OptionError(
                "expected data.damaged beside one folder, damage_on worker and no short_side_px,"
                f" got {len(self.folders)} folders, {self.damage_on} and {self.short_side_px}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """AdamW with linear warm-up and a cosine to ``final_lr``."""

    lr: float = 3e-4
    final_lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup_images: int = 2000
    clip_norm: float = 1.0
    """Largest norm of the gradient of each role."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a rate, norm or count is negative or zero where it may not be.
        """
        if not (0.0 <= self.final_lr <= self.lr and math.isfinite(self.lr) and self.lr > 0.0):
            raise OptionError(f"expected 0 <= optimiser.final_lr <= lr and lr > 0, got {self.final_lr} and {self.lr}")
        if self.clip_norm <= 0.0 or self.weight_decay < 0.0 or self.warmup_images < 0:
            raise OptionError(
                "expected optimiser.clip_norm > 0, weight_decay >= 0 and warmup_images >= 0,"
                f" got {self.clip_norm}, {self.weight_decay} and {self.warmup_images}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how precise, and how often something is written. All counts are images."""

    images: int
    """Length of the run."""
    precision: Precision = "fp32"
    accumulate: int = 1
    """Batches whose gradients make one update."""
    checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    ema_decay: float = 0.999
    """Weight of the past in the averaged weights, per update."""
    log_every: int = 2000
    validate_every: int = 20000
    save_every: int = 20000
    pictures: int = 4
    """Validation images of each recipe that are written as pictures."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: an interval or the length is below 1, or the decay lies outside [0, 1).
        """
        for name in ("images", "accumulate", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"expected loop.{name} of at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise OptionError(f"expected loop.ema_decay from 0 to below 1, got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What the exported file says about itself."""

    title: str = ""
    license: str = ""
    source: str = ""
    trained_on: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One whole run."""

    run: RunConfig
    data: DataConfig
    stage: StageSettings
    """In YAML, the section of the stage's name."""
    loop: LoopConfig
    degradation: Degradation | SecondOrder = field(default_factory=Degradation)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        """Check that the stage's section fits the stage.

        Raises:
            OptionError: stage latent has no VAE, or stage pixel has one.
        """
        if isinstance(self.stage, RestorationSettings) and (self.stage.vae is None) != (self.run.stage == "pixel"):
            raise OptionError(
                f"expected vae in stage latent and none in stage pixel, got {self.stage.vae!r} in {self.run.stage}"
            )
