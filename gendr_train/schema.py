"""What one training run is, as frozen values: the sections of a config file and their defaults.

Role: filled by ``config`` from YAML, read by everything above. The clock is images seen, never steps, so that a run
means the same at any batch size.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from gendr_core.errors import OptionError
from gendr_core.spec import PIXEL_CHANNELS, UNetArch, VAEArch

Stage = Literal["vae16", "pixel", "latent"]
Precision = Literal["fp32", "bf16"]

Range = tuple[float, float]
"""(low, high), drawn uniformly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Which run this is and where its files go."""

    name: str
    output: str = "runs"
    """Folder that gets a folder of the run's name."""
    seed: int = 0
    stage: Stage
    """vae16: autoencoder; pixel: UNet on pixel-unshuffled images; latent: UNet on the latents of a frozen VAE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images are seen, and how they are cut."""

    folders: tuple[str, ...]
    """Every image below these folders is used."""
    validation_folder: str | None = None
    """Held-out images; none means no validation."""
    validation_images: int = 8
    """How many of them, spread evenly over the sorted file names."""
    validation_crop_px: int = 256
    crop_px: int = 128
    color_shuffle: float = 0.0
    """How often the colour channels of a crop change places at random: photos show few colours of each thing."""
    batch: int = 16
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
        if not self.folders:
            raise OptionError("expected at least one folder in data.folders, got none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """Ranges that random x4 damage is drawn from (docs/algorithm.md, A5); the defaults are the preset ``photo``."""

    blur_probability: float = 0.9
    blur_sigma_px: Range = (0.3, 3.0)
    """Standard deviation in pixels of the original."""
    anisotropic_probability: float = 0.3
    """How often the second axis of the blur is drawn by itself, at a random angle."""
    bicubic_probability: float = 0.7
    """How often the downscale is bicubic; bilinear and area share the rest."""
    noise_probability: float = 0.95
    noise_sigma_8bit: Range = (0.5, 18.0)
    shot_probability: float = 0.25
    """How often the noise grows with the light instead of being even."""
    shot_photons: Range = (150.0, 4000.0)
    gray_probability: float = 0.2
    """How often the channels share one noise field."""
    jpeg_probability: float = 0.95
    jpeg_quality: Range = (30.0, 95.0)

    def __post_init__(self) -> None:
        """Check probabilities and ranges.

        Raises:
            OptionError: a probability leaves 0..1 or a range is empty or outside its limits.
        """
        for name in ("blur", "anisotropic", "bicubic", "noise", "shot", "gray", "jpeg"):
            value = getattr(self, f"{name}_probability")
            if not 0.0 <= value <= 1.0:
                raise OptionError(f"expected degradation.{name}_probability from 0 to 1, got {value}")
        limits = {
            "blur_sigma_px": (0.05, 20.0),
            "noise_sigma_8bit": (0.0, 255.0),
            "shot_photons": (1.0, 1e9),
            "jpeg_quality": (1.0, 95.0),
        }
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise OptionError(
                    f"expected degradation.{name} as [low, high] within {least} to {most}, got [{low}, {high}]"
                )


PRESETS: dict[str, Degradation] = {
    "photo": Degradation(),
    "light": Degradation(
        blur_sigma_px=(0.3, 1.2), noise_sigma_8bit=(0.0, 4.0), shot_photons=(2000.0, 8000.0), jpeg_quality=(75.0, 95.0)
    ),
    "heavy": Degradation(
        blur_sigma_px=(1.2, 3.0), noise_sigma_8bit=(6.0, 18.0), shot_photons=(100.0, 800.0), jpeg_quality=(30.0, 65.0)
    ),
}
"""Named starting points; keys given beside ``preset`` replace single ranges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """How the UNet is run; written into the exported file."""

    timestep: int = 354
    c_skip: float = 1.0
    c_out: float = 1.0
    scale: float = 4.0
    latent_scaling: float | None = None
    """vae16 stage only: factor of the latents; none measures 1/std on the validation images at export."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """AdamW with linear warm-up and a cosine to ``final_lr``."""

    lr: float = 3e-4
    final_lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup_images: int = 2000
    clip_norm: float = 1.0
    """Largest norm of all gradients together."""

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
class LossWeights:
    """Factor of each named loss; 0 leaves it out."""

    l1: float = 0.0
    charbonnier: float = 1.0
    chroma: float = 0.0
    gradient: float = 0.0
    spectrum: float = 0.0
    kl: float = 0.0
    """vae16 stage only."""
    latent: float = 0.0
    """latent stage only: L1 between scaled latents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how precise, and how often something is written. All counts are images."""

    images: int
    """Length of the run."""
    precision: Precision = "fp32"
    ema_decay: float = 0.999
    """Weight of the past in the averaged weights, per update."""
    log_every: int = 2000
    validate_every: int = 20000
    save_every: int = 20000

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: an interval or the length is below 1, or the decay lies outside [0, 1).
        """
        for name in ("images", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"expected loop.{name} of at least 1 image, got {getattr(self, name)}")
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
    network: UNetArch | VAEArch
    """VAEArch in the vae16 stage, UNetArch in the others."""
    loop: LoopConfig
    degradation: Degradation = field(default_factory=Degradation)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    export: ExportConfig = field(default_factory=ExportConfig)
    vae: str | None = None
    """File of the frozen VAE16; the latent stage needs it."""
    init: str | None = None
    """Weight file of the same network to start from; none starts at random."""

    def __post_init__(self) -> None:
        """Check that the sections fit the stage.

        Raises:
            OptionError: the network, the VAE or a loss does not belong to the stage.
        """
        stage = self.run.stage
        if stage == "pixel" and isinstance(self.network, UNetArch):
            channels = (self.network.in_channels, self.network.out_channels)
            if channels != (PIXEL_CHANNELS, PIXEL_CHANNELS):
                raise OptionError(f"expected network in_channels and out_channels {PIXEL_CHANNELS}, got {channels}")
        if (self.vae is not None) != (stage == "latent"):
            raise OptionError(f"expected vae in the latent stage and nowhere else, got {self.vae!r} in stage {stage}")
        for loss, home in (("kl", "vae16"), ("latent", "latent")):
            if getattr(self.losses, loss) != 0.0 and stage != home:
                raise OptionError(f"expected losses.{loss} only in stage {home}, got it in stage {stage}")
        if self.model.latent_scaling is not None and stage != "vae16":
            raise OptionError(f"expected model.latent_scaling only in stage vae16, got it in stage {stage}")
