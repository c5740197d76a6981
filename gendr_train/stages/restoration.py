"""Stages pixel and latent: a UNet learns the restoration from pairs of images, without a teacher.

Role: how small models of our own come to be; the stages of the paper (``base``, ``cida``, ``pix``) go another way.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gendr_core.checkpoint import write_unet
from gendr_core.nets import UNet

from ..data.dataset import Batch
from ..frames import TrainingFrame
from ..losses import reconstruction
from ..prompts import fresh_prompt
from ..rng import Draws
from ..schema import ExportConfig
from ..settings import RestorationSettings
from ..whitening import whiten_input
from .images import ImageAdversary, ImageTargets, build_loss_features
from .networks import FrozenVAE, half, load_unet_weights, placed, to_cells, to_pixels, unet_spec
from .stage import Losses, Pair, Role, Stage, roles_of, to_pair


class RestorationStage(Stage):
    """A UNet on unshuffled pixels or, with a VAE, on latents."""

    def __init__(self, settings: RestorationSettings, *, checkpointing: bool = False) -> None:
        """Build the networks from torch's global generator, or from the file to start from.

        Args:
            settings: of the stage.
            checkpointing: whether activations are computed twice instead of kept.

        Raises:
            CheckpointError: the file to start from or the VAE is not usable.
            TrainingError: the file to start from holds a network of another shape, or the feature network is not
                usable.
        """
        super().__init__()
        self._settings = settings
        self._checkpointing = checkpointing
        self._vae = None if settings.vae is None else FrozenVAE.load(settings.vae)
        self.unet = placed(UNet(settings.network))
        prompt = fresh_prompt(settings.network.cross_attention_dim)
        if settings.init is not None:
            prompt = load_unet_weights(self.unet, settings.init)
        else:
            # With no output the result is c_skip times the input: in pixels, training starts exactly at bicubic.
            for parameter in self.unet.conv_out.parameters():
                nn.init.zeros_(parameter)
        self.register_buffer("prompt", prompt)
        self.prompt: Tensor
        self._targets = ImageTargets(settings.losses, build_loss_features(settings.features, settings.losses))
        self.adversary = None if settings.adversary is None else placed(ImageAdversary(settings.adversary))
        self.weights = dict(self._targets.weights)
        if settings.latent:
            self.weights["generator/latent"] = settings.latent
        if self.adversary is not None:
            self.weights |= self.adversary.weights

    def roles(self) -> dict[str, Role]:
        """Return the UNet, and the discriminator where there is one."""
        return roles_of(self.unet, self.adversary)

    def begin(self, first_images: Callable[[], Batch]) -> None:
        """Whiten the first layer, unless the weights come from a file."""
        if self._settings.init is None:
            whiten_input(self.unet.conv_in, self._input(to_pair(first_images())))

    def forward(self, batch: Batch, draws: Draws, images: int) -> Losses:
        """Return the losses of the restored images, and of their latents."""
        del draws
        pair = to_pair(batch)
        result = self._one_step(self._input(pair))
        losses: Losses = {}
        if self._targets.weights or self.adversary is not None:
            output = self._pixels(result)
            losses = self._targets.losses(output, pair.original)
            if self.adversary is not None:
                losses |= self.adversary.losses(output, pair.original, images)
        if self._vae is not None and self._settings.latent:
            losses["generator/latent"] = reconstruction.l1(result, self._vae.encode(pair.original))
        return losses

    @torch.no_grad()
    def restored(self, pair: Pair) -> Tensor:
        """Return the restored images."""
        return self._pixels(self._one_step(self._input(pair))).float().clamp(-1.0, 1.0)

    def export(self, path: Path, about: ExportConfig) -> None:
        """Write the UNet file.

        Raises:
            CheckpointError: the spec is not usable.
        """
        in_pixels = self._vae is None
        spec = unet_spec(
            self._settings.network,
            self._settings.one_step,
            about,
            in_pixels=(in_pixels, in_pixels),
            latent_scaling=1.0 if self._vae is None else self._vae.latent_scaling,
        )
        state = {name: half(value) for name, value in self.unet.state_dict().items()}
        write_unet(path, spec, state, half(self.prompt))

    def _input(self, pair: Pair) -> Tensor:
        return to_cells(pair.upsampled) if self._vae is None else self._vae.encode(pair.upsampled)

    def _one_step(self, latent: Tensor) -> Tensor:
        """z_SR = c_skip z_LQ + c_out UNet(z_LQ)   (docs/algorithm.md, A2)."""
        step = self._settings.one_step
        context = self.prompt.expand(latent.shape[0], -1, -1)
        run = TrainingFrame(checkpointing=self._checkpointing)
        return step.c_skip * latent + step.c_out * self.unet(latent, step.timestep, context, run=run)

    def _pixels(self, result: Tensor) -> Tensor:
        return to_pixels(result) if self._vae is None else self._vae.decode(result)
