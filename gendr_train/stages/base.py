"""Stage base: SD2.1-VAE16, a text-to-image diffusion model on the latents of the frozen VAE16.

Role: between ``vae16`` and ``cida``, whose roles all start from its file. All parameters of an SD2.1 UNet learn to
predict the noise, with REPA after the first level (docs/algorithm.md, A5). The schedule is SD2.1's as it is: with zero
terminal SNR (arXiv:2305.08891) an epsilon prediction at the last step would say nothing about the image.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from gendr_core.checkpoint import SpecOverrides, UNetCheckpoint, read_unet, write_unet
from gendr_core.errors import CheckpointError
from gendr_core.header import read_header
from gendr_core.layouts import PROMPT_NAMES, locate
from gendr_core.metadata import GENDR_TIMESTEP, METADATA_KEY
from gendr_core.nets import UNet
from gendr_core.spec import UNetArch, alpha_bar, one_step_coefficients
from gendr_core.untagged import infer_unet_arch

from ..data.dataset import Batch
from ..diffusion import add_noise, min_snr_weight, to_clean, training_target
from ..errors import TrainingError
from ..frames import TrainingFrame, first_level
from ..losses.score_identity import denoising
from ..prompts import Prompts
from ..rng import Draws
from ..schema import ExportConfig
from ..sections import OneStep
from ..settings import BaseSettings
from .align import Alignment
from .networks import FrozenVAE, half, placed, unet_spec
from .stage import Losses, Pair, Role, Stage, to_pair

FIRST_LEVEL = "first level"
VALIDATION_SEED = 0
"""Of the one noise that every validation image gets."""
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


class BaseStage(Stage):
    """A UNet that learns to predict the noise in latents."""

    reconstructs = True

    def __init__(self, settings: BaseSettings, *, checkpointing: bool = False) -> None:
        """Build the networks from torch's global generator, or from the file to start from.

        Args:
            settings: of the stage.
            checkpointing: recompute blocks for their gradients instead of keeping what happens inside.

        Raises:
            CheckpointError: the VAE is not usable.
            TrainingError: the file to start from, the VAE's channels, the text encoder or the features do not fit.
        """
        super().__init__()
        self._settings = settings
        self._checkpointing = checkpointing
        self._vae = FrozenVAE.load(settings.vae)
        _check_channels(settings, self._vae)
        self.unet = placed(UNet(settings.network))
        stored = None if settings.init is None else _start(self.unet, settings.init, settings)
        self.prompts = Prompts(settings.prompt, settings.network.cross_attention_dim, stored=stored)
        self.weights = {"generator/denoising": 1.0}
        self.alignment = None
        if settings.alignment is not None and settings.alignment.weight:
            self.alignment = Alignment(settings.alignment, settings.network.block_out_channels[0])
            self.weights["generator/alignment"] = settings.alignment.weight

    def roles(self) -> dict[str, Role]:
        """Return the generator: the UNet, and the projection of its features where they are aligned."""
        parameters = list(self.unet.parameters())
        if self.alignment is not None:
            parameters += self.alignment.parameters()
        return {"generator": Role(parameters=parameters)}

    def forward(self, batch: Batch, draws: Draws, images: int) -> Losses:
        """Return the losses at one timestep per image; drawn in this order: timestep, noise, dropout."""
        del images
        settings = self._settings
        original = to_pair(batch).original
        clean = self._vae.encode(original)
        timestep = draws.integers(settings.steps[0], settings.steps[1] + 1)
        noise = draws.normal(*clean.shape[1:])
        context = self.prompts.conditions(batch.caption, draws)
        frame = TrainingFrame(checkpointing=self._checkpointing, taps={first_level(self.unet): FIRST_LEVEL})
        predicted = self.unet(add_noise(clean, noise, timestep), timestep, context, run=frame)
        target = training_target(clean, noise, timestep, settings.prediction)
        gamma = settings.min_snr
        weight = None if gamma is None else min_snr_weight(timestep, gamma, settings.prediction)
        losses = {"generator/denoising": denoising(predicted, target, weight)}
        if self.alignment is not None:
            losses["generator/alignment"] = self.alignment.loss(frame.tapped[FIRST_LEVEL], original)
        return losses

    @torch.no_grad()
    def restored(self, pair: Pair) -> Tensor:
        """Return what one step makes of the original with half of its power replaced by a fixed noise.

        Not a restoration of the damaged image, but a PSNR that rises while the network learns.
        """
        clean = self._vae.encode(pair.original)
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        noise = torch.randn(clean.shape[1:], generator=generator).to(clean.device).expand_as(clean)
        timestep = torch.full((len(clean),), GENDR_TIMESTEP, device=clean.device)
        noised = add_noise(clean, noise, timestep)
        predicted = self.unet(noised, timestep, self.prompts.positive.expand(len(clean), -1, -1))
        return (
            self._vae.decode(to_clean(noised, predicted, timestep, self._settings.prediction)).float().clamp(-1.0, 1.0)
        )

    def export(self, path: Path, about: ExportConfig) -> None:
        """Write the UNet file with both prompts; run in one step it takes the damaged latent for a noisy one.

        Raises:
            CheckpointError: the spec is not usable.
        """
        settings = self._settings
        c_skip, c_out = one_step_coefficients(settings.prediction, alpha_bar(GENDR_TIMESTEP))
        one_step = OneStep(timestep=GENDR_TIMESTEP, c_skip=c_skip, c_out=c_out, scale=settings.scale)
        spec = unet_spec(
            settings.network,
            one_step,
            about,
            in_pixels=(False, False),
            latent_scaling=self._vae.latent_scaling,
            prediction=settings.prediction,
        )
        state = {name: half(value) for name, value in self.unet.state_dict().items()}
        write_unet(path, spec, state, half(self.prompts.positive), half(self.prompts.negative))


def _check_channels(settings: BaseSettings, vae: FrozenVAE) -> None:
    expected = vae.network.arch.latent_channels
    given = (settings.network.in_channels, settings.network.out_channels)
    if given != (expected, expected):
        raise TrainingError(
            f"expected base.network with the VAE's {expected} channels in and out, got {given[0]} and {given[1]}"
        )


def _start(unet: UNet, init: str, settings: BaseSettings) -> tuple[Tensor, Tensor | None] | None:
    """Load the weights to start from and return their file's prompts, None where it has none.

    A first or last layer for other channels stays as torch made it, uniform within 1 / sqrt(fan-in): latents of
    another VAE share no channel with the old ones, and with zeros no gradient would get past that layer at first.

    Raises:
        TrainingError: the file is not usable, or holds a network of another shape or prediction.
    """
    path = _weight_file(Path(init))
    try:
        file, has_prompts = _read_start(path, settings)
    except CheckpointError as error:
        raise TrainingError(f"expected a UNet to start from as base.init, got {path}: {error}") from error
    _check_shape(file.spec.arch, unet.arch, path)
    if file.spec.prediction != settings.prediction:
        raise TrainingError(f"expected base.prediction {file.spec.prediction} as in {path}, got {settings.prediction}")
    ends = (
        ("conv_in.", file.spec.arch.in_channels != unet.arch.in_channels),
        ("conv_out.", file.spec.arch.out_channels != unet.arch.out_channels),
    )
    anew = tuple(name for name, differs in ends if differs)
    fresh = {name: value for name, value in unet.state_dict().items() if name.startswith(anew)}
    unet.load_state_dict({name: value.float() for name, value in file.state.items()} | fresh)
    return (file.positive, file.negative) if has_prompts else None


def _weight_file(path: Path) -> Path:
    """Return the UNet's file in a folder of diffusers, of a whole model or of the UNet alone; else the path itself."""
    return next((file for file in (path / "unet" / DIFFUSERS_FILE, path / DIFFUSERS_FILE) if file.is_file()), path)


def _read_start(path: Path, settings: BaseSettings) -> tuple[UNetCheckpoint, bool]:
    """Return a UNet file and whether it has prompts.

    A file without GenDR metadata does not say how it is run, and training decides that anew: stand-ins will do.

    Raises:
        CheckpointError: the file is not usable.
    """
    header = read_header(path)
    if METADATA_KEY in header.metadata:
        return read_unet(path), True
    has_prompts = PROMPT_NAMES[0] in header.tensors
    dim = infer_unet_arch(locate("unet", header.shapes).shapes).cross_attention_dim
    overrides = SpecOverrides(
        timestep=GENDR_TIMESTEP,
        prediction=settings.prediction,
        latent_scaling=1.0,
        positive=None if has_prompts else torch.zeros(1, dim),
    )
    return read_unet(path, overrides), has_prompts


def _check_shape(found: UNetArch, wanted: UNetArch, path: Path) -> None:
    """Refuse a network that differs in more than the channels of its ends; shapes alone would not show all of it."""
    wanted_values = asdict(wanted)
    for name, value in asdict(found).items():
        if name not in ("in_channels", "out_channels") and value != wanted_values[name]:
            raise TrainingError(f"expected base.network.{name} {value} as in {path}, got {wanted_values[name]}")
