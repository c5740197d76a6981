"""What each stage of training needs beyond the sections that every run has: one frozen value per stage.

Role: filled by ``config`` from the section of the stage's name; read by the file of the same name in ``stages``. Made
of the parts in ``sections``. Symbols and what the papers leave open: docs/algorithm.md, A5.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from gendr_core.errors import OptionError
from gendr_core.spec import NUM_TRAIN_TIMESTEPS, PIXEL_CHANNELS, Prediction, UNetArch, VAEArch

from .sections import (
    AdversaryConfig,
    AlignmentConfig,
    FeatureConfig,
    ImageLosses,
    LoraConfig,
    OneStep,
    PromptConfig,
    Steps,
    at_least,
    check_features,
    check_steps,
)

Distillation = Literal["vsd", "sid", "cid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Vae16Settings:
    """Stage vae16: an autoencoder from scratch, or from ``init``."""

    network: VAEArch = field(default_factory=VAEArch)
    init: str | None = None
    """VAE file of the same shape to start from."""
    losses: ImageLosses = field(default_factory=ImageLosses)
    kl: float = 1e-6
    features: FeatureConfig | None = None
    """Of the perceptual loss."""
    adversary: AdversaryConfig | None = None
    latent_scaling: float | None = None
    """Factor of the latents; none measures 1/std on the validation images at export."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a weight is negative, or the perceptual loss has no features.
        """
        at_least(self, 0.0, "kl")
        check_features(self.losses, self.features)


@dataclass(frozen=True, kw_only=True, slots=True)
class RestorationSettings:
    """Stages pixel and latent: a UNet learns the restoration from pairs, without a teacher."""

    network: UNetArch
    init: str | None = None
    """UNet file of the same shape to start from."""
    vae: str | None = None
    """File of the frozen VAE16; stage latent needs it, stage pixel has none."""
    one_step: OneStep = field(default_factory=lambda: OneStep(c_skip=1.0, c_out=1.0))
    losses: ImageLosses = field(default_factory=ImageLosses)
    latent: float = 0.0
    """L1 between scaled latents; stage latent only."""
    features: FeatureConfig | None = None
    adversary: AdversaryConfig | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a weight is negative, the perceptual loss has no features, or a loss on latents no VAE.
        """
        at_least(self, 0.0, "latent")
        check_features(self.losses, self.features)
        if self.vae is None and self.latent:
            raise OptionError("expected the weight latent only in stage latent, which has a vae")
        if self.vae is None and (self.network.in_channels, self.network.out_channels) != (PIXEL_CHANNELS,) * 2:
            raise OptionError(
                f"expected {PIXEL_CHANNELS} network in_channels and out_channels in pixels, got"
                f" {self.network.in_channels} and {self.network.out_channels}: or name a vae"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSettings:
    """Stage base: SD2.1-VAE16, a text-to-image diffusion model on the latents of the VAE16."""

    network: UNetArch = field(default_factory=UNetArch)
    vae: str
    init: str | None = None
    """UNet file to start from: of this network, or SD2.1's own, whose first and last layer are then made anew."""
    prediction: Prediction = "epsilon"
    steps: Steps = (0, NUM_TRAIN_TIMESTEPS - 1)
    min_snr: float | None = None
    """Gamma of the loss weight of arXiv:2303.09556; none weighs all steps alike, as SD2.1 did."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    alignment: AlignmentConfig | None = None
    scale: float = 4.0
    """Written into the exported file."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: the timesteps leave the schedule or gamma is not above 0.
        """
        check_steps("base.steps", self.steps)
        if self.min_snr is not None and self.min_snr <= 0.0:
            raise OptionError(f"expected base.min_snr above 0, got {self.min_snr}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CidaSettings:
    """Stage cida: one base becomes a one-step restorer by consistent score identity distillation and an adversary."""

    base: str
    """UNet file of stage base; frozen, shared by all roles."""
    vae: str
    prediction: Prediction = "epsilon"
    """Of the base."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    one_step: OneStep = field(default_factory=OneStep)
    distillation: Distillation = "cid"
    distillation_weight: float = 1.0
    """lambda1 [?]."""
    adversary_weight: float = 0.1
    """lambda2 [?]; 0 leaves the discriminator out."""
    alignment: AlignmentConfig | None = None
    """Its weight is lambda3 [?]."""
    latent: float = 0.0
    """L1 to the latents of the original, scaled; not of the paper, for the ablation."""
    xi: float = 1.0
    """L_cid = L3 - xi L1 [?]; SiD's alpha where ``distillation`` is sid."""
    guidance: float = 1.5
    """kappa of the real score in L3 [?]; 1.5 to 4.5 in SiD-LSG."""
    steps: Steps = (354, 980)
    """At which the scores are compared [?]. At lower noise CiD as inferred pushes away from the originals' spread
    (docs/algorithm.md); SiD-LSG takes 20 to 980."""
    real_rate: float = 1.0
    fake_rate: float = 1.0
    discriminator_rate: float = 1.0
    """Factors of optimiser.lr [?]."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a weight is negative or the timesteps leave the schedule.
        """
        at_least(self, 0.0, "distillation_weight", "adversary_weight", "latent", "xi")
        at_least(self, 0.0, "real_rate", "fake_rate", "discriminator_rate")
        check_steps("cida.steps", self.steps)
        if not (self.distillation_weight or self.adversary_weight or self.latent):
            raise OptionError(
                "expected a weight above 0 in cida.distillation_weight, adversary_weight or latent, got none:"
                " the generator would learn nothing"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdcSettings:
    """Stage adc (GenDR-Pix, stage I): the encoder is replaced by a pixel unshuffle."""

    teacher: str
    """UNet file of stage cida."""
    vae: str
    latent: float = 1.0
    """|z_tea - z_stu|_1 [S]."""
    adversary: float = 1.0
    """lambda of softplus(-D) on features of the teacher [?]."""
    discriminator_rate: float = 1.0
    decoded: ImageLosses = field(default_factory=lambda: ImageLosses(charbonnier=0.0))
    """Between the decoded latent and the original; not of the paper."""
    features: FeatureConfig | None = None
    """Of the perceptual loss."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a weight is negative, or the perceptual loss has no features.
        """
        at_least(self, 0.0, "latent", "adversary", "discriminator_rate")
        check_features(self.decoded, self.features)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixSettings:
    """Stage pix (GenDR-Pix, stage II): the decoder is replaced by a pixel shuffle."""

    teacher: str
    """UNet file of stage adc; it also is the discriminator."""
    vae: str
    losses: ImageLosses = field(default_factory=lambda: ImageLosses(l1=1.0, charbonnier=0.0))
    """Between teacher and student; |y_tea - y_stu|_1 [S] and the perceptual loss [S]."""
    features: FeatureConfig | None = None
    adversary: float = 0.05
    """Of softplus(-G1(randpad(y_stu))) [S]."""
    discriminator_rate: float = 1.0
    harmonics: float = 0.1
    """Of the masked Fourier loss [S]."""
    original: ImageLosses = field(default_factory=lambda: ImageLosses(charbonnier=0.0))
    """Between student and original; not of the paper."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: a weight is negative, or the perceptual loss has no features.
        """
        at_least(self, 0.0, "adversary", "discriminator_rate", "harmonics")
        check_features(self.losses, self.features)
        check_features(self.original, self.features)


StageSettings = Vae16Settings | RestorationSettings | BaseSettings | CidaSettings | AdcSettings | PixSettings
SETTINGS: dict[str, type[Any]] = {
    "vae16": Vae16Settings,
    "pixel": RestorationSettings,
    "latent": RestorationSettings,
    "base": BaseSettings,
    "cida": CidaSettings,
    "adc": AdcSettings,
    "pix": PixSettings,
}
"""By the name of the stage."""
