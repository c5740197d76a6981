"""Stage adc: GenDR-Pix's first half, a GenDR that takes unshuffled pixels where it took the VAE's latents.

Role: after ``cida``, whose file is teacher, discriminator and start; before ``pix``. From GenDR-Pix (arXiv:2602.10630)
are the front, the losses and the discriminator being the GenDR UNet. Inferred: how the first layer begins; that the
teacher's latents are what counts as real; that the head sits on the middle of the UNet; no skip, as 192 channels of
pixels cannot be added to a latent: the network itself learns what the teacher took from its input.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gendr_core.nets import WholeFrame
from gendr_core.spec import PIXEL_CHANNELS

from ..data.dataset import Batch
from ..fitting import fit_convolution
from ..frames import TrainingFrame
from ..losses import reconstruction
from ..rng import Draws
from ..schema import ExportConfig
from ..settings import AdcSettings
from .images import ImageTargets, build_loss_features
from .networks import FrozenVAE, to_cells
from .stage import Losses, Pair, Role, Stage, roles_of, to_pair
from .teachers import FeatureAdversary, FrozenUNet, LastFeatures


class AdcStage(Stage):
    """The student of a GenDR without the VAE's encoder: z_stu = UNet(unshuffled pixels)."""

    def __init__(self, settings: AdcSettings, *, checkpointing: bool = False) -> None:
        """Build the student from the teacher's file.

        Args:
            settings: of the stage.
            checkpointing: compute blocks a second time for the gradients, which saves memory.

        Raises:
            CheckpointError: the teacher or the VAE is not usable.
            TrainingError: the teacher is of another stage, its latents are not those of the VAE, or the feature network
                is not usable.
        """
        super().__init__()
        self._settings, self._checkpointing = settings, checkpointing
        self._vae = FrozenVAE.load(settings.vae)
        self._teacher = FrozenUNet.load(settings.teacher, front="vae16", back="vae16", vae=self._vae)
        spec = self._teacher.spec
        self.unet = self._teacher.copy_with(
            in_channels=PIXEL_CHANNELS, out_channels=spec.arch.out_channels, without="conv_in"
        )
        with torch.no_grad():
            for parameter in self.unet.conv_out.parameters():
                parameter.mul_(spec.c_out)
        features = build_loss_features(settings.features, settings.decoded)
        self._decoded = ImageTargets(settings.decoded, features, "generator/decoded_")
        self.weights = dict(self._decoded.weights)
        if settings.latent:
            self.weights["generator/latent"] = settings.latent
        self.adversary = FeatureAdversary.of(settings, self._teacher, checkpointing=checkpointing)
        if self.adversary is not None:
            self.weights |= self.adversary.weights

    def roles(self) -> dict[str, Role]:
        """Return the student, and the discriminator's head where there is one."""
        return roles_of(self.unet, self.adversary)

    @torch.no_grad()
    def begin(self, first_images: Callable[[], Batch]) -> None:
        """Fit the first layer to what the teacher's makes of the latents, then the last to the teacher's result.

        The first stands for the encoder as far as 3x3 cells of pixels tell of a latent linearly; the last takes over
        the skip, which the student lacks.
        """
        images = [image[None] for image in to_pair(first_images()).upsampled]
        fit_convolution(self.unet.conv_in, ((to_cells(image), self._first_features(image)) for image in images))
        fit_convolution(self.unet.conv_out, ((self._last_features(image), self._target(image)) for image in images))

    def forward(self, batch: Batch, draws: Draws, images: int) -> Losses:
        """Return the losses of the student's latents against the teacher's, and of the decoded images."""
        del draws, images
        pair = to_pair(batch)
        latent = self._latent(pair.upsampled, TrainingFrame(checkpointing=self._checkpointing))
        losses: Losses = {}
        if self._settings.latent or self.adversary is not None:
            target = self._target(pair.upsampled)
            if self._settings.latent:
                losses["generator/latent"] = reconstruction.l1(latent, target)
            if self.adversary is not None:
                losses |= self.adversary.losses(latent, target)
        if self._decoded.weights:
            losses |= self._decoded.losses(self._vae.decode(latent), pair.original)
        return losses

    @torch.no_grad()
    def restored(self, pair: Pair) -> Tensor:
        """Return the restored images."""
        return self._vae.decode(self._latent(pair.upsampled)).float().clamp(-1.0, 1.0)

    def export(self, path: Path, about: ExportConfig) -> None:
        """Write the UNet file: unshuffled pixels in front, the VAE behind.

        Raises:
            CheckpointError: the weights are not finite, or the file cannot be written.
        """
        self._teacher.write_student(path, self.unet, about, latent_scaling=self._vae.latent_scaling)

    def _latent(self, upsampled: Tensor, run: WholeFrame | None = None) -> Tensor:
        """z_stu, scaled."""
        return self._teacher.run(self.unet, to_cells(upsampled), run)

    def _target(self, upsampled: Tensor) -> Tensor:
        """z_tea, scaled."""
        return self._teacher.one_step(self._vae.encode(upsampled))

    def _first_features(self, image: Tensor) -> Tensor:
        return self._teacher.network.to(image.device).conv_in(self._vae.encode(image))

    def _last_features(self, image: Tensor) -> Tensor:
        run = LastFeatures()
        self._latent(image, run)
        return run.kept
