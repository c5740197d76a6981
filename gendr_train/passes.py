"""Which passes of which networks make up one update of a stage, and what each costs.

Role: between ``shapes``, which measures a pass, and ``budget``, which adds them up. Mirrors the ``forward`` of every
file in ``stages`` by hand, because those read weights, which a dry run does without: files that are not there yet are
taken for full-size ones. A test holds the mirror against the stages themselves.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from gendr_core.checkpoint import inspect
from gendr_core.header import read_header
from gendr_core.layouts import PROMPT_NAMES
from gendr_core.spec import PIXEL_CHANNELS, PROMPT_TOKENS, SPATIAL_FACTOR, ModelSpec, UNetArch, VAEArch, VAESpec

from .schema import TrainConfig
from .sections import AdversaryConfig, FeatureConfig, ImageLosses
from .settings import (
    AdcSettings,
    BaseSettings,
    CidaSettings,
    PixSettings,
    RestorationSettings,
    Vae16Settings,
)
from .shapes import (
    HeadShape,
    Part,
    Pass,
    ProjectionShape,
    Shape,
    feature_channels,
    features_note,
    num_adapter_parameters,
    num_parameters,
)

TEXT_ENCODER = 340_387_840
"""Parameters of SD2.1's text encoder: 23 layers of 1024 channels, 49,408 words, 77 places."""


@dataclass(kw_only=True, slots=True)
class Update:
    """What one batch of a stage is made of."""

    passes: list[tuple[str, Pass]] = field(default_factory=list[tuple[str, Pass]])
    """With their names."""
    trained: dict[str, int] = field(default_factory=dict[str, int])
    """Role -> parameters."""
    shared: dict[str, int] = field(default_factory=dict[str, int])
    """Frozen networks that are part of the stage's module: an engine divides them among GPUs."""
    beside: dict[str, int] = field(default_factory=dict[str, int])
    """Frozen networks that every GPU holds whole."""
    notes: list[str] = field(default_factory=list[str])
    """What was assumed."""


def update_of(config: TrainConfig) -> Update:
    """Return the passes and parameters of one batch.

    Args:
        config: any run; the weight files that it names need not exist.

    Raises:
        TrainingError: peft is not installed.
    """
    sketch = _Sketch(config)
    match config.stage:
        case Vae16Settings() as settings:
            sketch.vae16(settings)
        case RestorationSettings() as settings:
            sketch.restoration(settings)
        case BaseSettings() as settings:
            sketch.base(settings)
        case CidaSettings() as settings:
            sketch.cida(settings)
        case AdcSettings() as settings:
            sketch.adc(settings)
        case PixSettings() as settings:
            sketch.pix(settings)
    return sketch.update


class _Sketch:
    """Collects an update; one method per stage, in the order of its ``forward``."""

    def __init__(self, config: TrainConfig) -> None:
        self.update = Update()
        self._images, self._side = config.data.batch, config.data.crop_px
        self._cells = config.data.crop_px // SPATIAL_FACTOR

    def vae16(self, settings: Vae16Settings) -> None:
        self._train("generator", settings.network)
        self._pixels("autoencoder", settings.network, learns=True)
        self._image_losses(settings.losses, settings.features)
        self._adversary(settings.adversary)

    def restoration(self, settings: RestorationSettings) -> None:
        arch, in_latents = settings.network, settings.vae is not None
        self._train("generator", arch)
        vae = self._vae(settings.vae) if settings.vae is not None else VAEArch()
        if in_latents:
            self._pixels("VAE encoder, damaged", vae, "encode")
        self._unet("generator", arch, learns=True, tokens=1)
        seen = any(getattr(settings.losses, name) for name in settings.losses.__dataclass_fields__)
        if in_latents and (seen or settings.adversary):
            self._latent("VAE decoder", vae, through=True)
        self._image_losses(settings.losses, settings.features)
        self._adversary(settings.adversary)
        if in_latents and settings.latent:
            self._pixels("VAE encoder, original", vae, "encode")

    def base(self, settings: BaseSettings) -> None:
        vae = self._vae(settings.vae)
        self._train("generator", settings.network)
        if settings.prompt.text_encoder is not None:
            self.update.beside["text encoder"] = TEXT_ENCODER
            self.update.notes.append("the text encoder's work (0.05 TFLOP per caption) is not counted")
        self._pixels("VAE encoder", vae, "encode")
        tokens = 1 if settings.prompt.text_encoder is None and settings.init is None else PROMPT_TOKENS
        self._unet("generator", settings.network, learns=True, tokens=tokens, timesteps=self._images)
        if settings.alignment is not None and settings.alignment.weight:
            self._alignment(settings.alignment.features, settings.alignment.hidden, settings.network)

    def cida(self, settings: CidaSettings) -> None:
        vae, (arch, tokens, negative) = self._vae(settings.vae), self._unet_file(settings.base)
        self.update.shared["base"] = num_parameters(arch)
        adapted = partial(self._unet, arch=arch, tokens=tokens, lora=settings.lora, timesteps=self._images)
        whole = num_adapter_parameters(arch, settings.lora, "whole")
        self._pixels("VAE encoder, damaged", vae, "encode")
        self._pixels("VAE encoder, original", vae, "encode")
        self.update.trained["generator"] = whole
        adapted("generator", learns=True, timesteps=1)
        if settings.distillation_weight:
            through = settings.distillation != "vsd"
            real = settings.lora if settings.real_rate else None
            adapted("real score", lora=real, through=through)
            if settings.guidance != 1.0 and negative:
                adapted("real score, negative prompt", lora=real, through=through)
            adapted("fake score", through=through)
            adapted("fake score learns", learns=True)
            self.update.trained["fake"] = whole
            if settings.real_rate:
                adapted("real score learns", learns=True)
                self.update.trained["real"] = whole
        if settings.adversary_weight:
            both = 2 * self._images
            adapted("discriminator pulls", part="middle", through=True)
            adapted("discriminator learns", part="middle", learns=True, images=both, timesteps=both)
            self.update.trained["discriminator"] = num_adapter_parameters(arch, settings.lora, "middle")
            self._train("discriminator", HeadShape(arch.block_out_channels[-1]))
            self._head(arch, self._cells, through=True)
        if settings.alignment is not None and settings.alignment.weight:
            self._alignment(settings.alignment.features, settings.alignment.hidden, arch)

    def adc(self, settings: AdcSettings) -> None:
        vae, (arch, tokens, _) = self._vae(settings.vae), self._unet_file(settings.teacher)
        student = replace(arch, in_channels=PIXEL_CHANNELS)
        self._train("generator", student)
        self.update.beside["teacher"] = num_parameters(arch)
        self._unet("generator", student, learns=True, tokens=tokens)
        if settings.latent or settings.adversary:
            self._pixels("VAE encoder", vae, "encode")
            self._unet("teacher", arch, tokens=tokens)
        if settings.adversary:
            self._judge(arch, self._cells, tokens)
        if any(getattr(settings.decoded, name) for name in settings.decoded.__dataclass_fields__):
            self._latent("VAE decoder", vae, through=True)

    def pix(self, settings: PixSettings) -> None:
        vae, (arch, tokens, _) = self._vae(settings.vae), self._unet_file(settings.teacher, PIXEL_CHANNELS)
        student = replace(arch, out_channels=PIXEL_CHANNELS)
        self._train("generator", student)
        self.update.beside["teacher"] = num_parameters(arch)
        self._unet("generator", student, learns=True, tokens=tokens)
        self._unet("teacher", arch, tokens=tokens)
        self._latent("VAE decoder, teacher", vae)
        self._image_losses(settings.losses, settings.features)
        if settings.adversary:
            # Random padding makes the frame one cell larger.
            self._judge(arch, self._cells + 1, tokens)
        self._image_losses(settings.original, settings.features)

    def _train(self, role: str, network: Shape) -> None:
        self.update.trained[role] = self.update.trained.get(role, 0) + num_parameters(network)

    def _add(self, name: str, **values: object) -> None:
        self.update.passes.append((name, Pass(**{"images": self._images, **values})))  # pyright: ignore[reportArgumentType]

    def _unet(self, name: str, arch: UNetArch, **values: object) -> None:
        self._add(name, **{"network": arch, "channels": arch.in_channels, "side": self._cells, **values})

    def _pixels(self, name: str, network: Shape, part: Part = "whole", **values: object) -> None:
        self._add(name, network=network, part=part, channels=3, side=self._side, **values)

    def _latent(self, name: str, vae: VAEArch, **values: object) -> None:
        channels = vae.latent_channels
        self._add(name, network=vae, part="decode", channels=channels, side=self._cells, **values)

    def _image_losses(self, losses: ImageLosses, features: FeatureConfig | None) -> None:
        if losses.perceptual and features is not None:
            self._features(features)
            self._pixels("features of the output", features, through=True)
            self._pixels("features of the target", features)

    def _adversary(self, config: AdversaryConfig | None) -> None:
        if config is not None:
            self._train("discriminator", config)
            self._pixels("discriminator pulls", config, through=True)
            self._pixels("discriminator learns, real", config, learns=True)
            self._pixels("discriminator learns, made", config, learns=True)

    def _alignment(self, features: FeatureConfig, hidden: int, arch: UNetArch) -> None:
        """The projection of features after the first level, which halves the frame where there are more levels."""
        self._features(features)
        projection = ProjectionShape(arch.block_out_channels[0], hidden, feature_channels(features))
        self._train("generator", projection)
        self._pixels("features of the original", features)
        side = (self._cells + 1) // 2 if arch.num_levels > 1 else self._cells
        channels = projection.channels
        self._add("projection", network=projection, channels=channels, side=side, learns=True, through=True)

    def _judge(self, arch: UNetArch, side: int, tokens: int) -> None:
        """A frozen UNet as discriminator: only its head learns."""
        self._unet("discriminator, made", arch, part="middle", side=side, tokens=tokens, through=True)
        self._unet("discriminator, real", arch, part="middle", side=side, tokens=tokens)
        self._train("discriminator", HeadShape(arch.block_out_channels[-1]))
        self._head(arch, side, through=False)

    def _head(self, arch: UNetArch, cells: int, *, through: bool) -> None:
        """The head on features of the middle: it pulls, and learns from real and made, through its input or not."""
        channels = arch.block_out_channels[-1]
        side = -(-cells // 2 ** (arch.num_levels - 1))
        add = partial(self._add, network=HeadShape(channels), channels=channels, side=side)
        add("head pulls", through=True)
        add("head learns", images=2 * self._images, learns=True, through=through)

    def _features(self, config: FeatureConfig) -> None:
        self.update.beside[f"features ({config.name})"] = num_parameters(config)
        note = features_note(config)
        if note is not None:
            self.update.notes.append(note)

    def _vae(self, path: str) -> VAEArch:
        spec = self._spec(path)
        arch = spec.arch if isinstance(spec, VAESpec) else VAEArch()
        self.update.beside["VAE"] = num_parameters(arch)
        return arch

    def _unet_file(self, path: str, in_channels: int = 16) -> tuple[UNetArch, int, bool]:
        """Return a UNet's shape, the tokens of its prompt, and whether it has a negative one."""
        spec = self._spec(path)
        if not isinstance(spec, ModelSpec):
            return UNetArch(in_channels=in_channels), PROMPT_TOKENS, True
        shapes = read_header(Path(path)).shapes
        return spec.arch, shapes[PROMPT_NAMES[0]][0], PROMPT_NAMES[1] in shapes

    def _spec(self, path: str) -> ModelSpec | VAESpec | None:
        spec = inspect(path).spec if Path(path).is_file() else None
        if spec is None:
            self.update.notes.append(f"{path} is not there or not usable: the full-size network stands in")
        return spec
