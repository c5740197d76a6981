"""Stage vae16: decode(sample(encode(x))) learns to be x.

Role: the first stage; its file is the frozen VAE of all others. Reconstruction, perceptual loss, KL and a patch
discriminator, as latent diffusion's autoencoder (arXiv:2112.10752, section 3.1).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gendr_core.checkpoint import read_vae, write_vae
from gendr_core.nets import VAE
from gendr_core.spec import SPATIAL_FACTOR, VAESpec

from ..data.dataset import Batch
from ..errors import TrainingError
from ..frames import TrainingFrame
from ..losses import divergence
from ..rng import Draws
from ..schema import ExportConfig
from ..settings import Vae16Settings
from ..whitening import whiten_input
from .images import ImageAdversary, ImageTargets, build_loss_features
from .networks import expect_shapes, half, placed
from .stage import Losses, Pair, Role, Stage, roles_of, to_pair


class Vae16Stage(Stage):
    """An autoencoder in training."""

    reconstructs = True

    def __init__(self, settings: Vae16Settings, *, checkpointing: bool = False) -> None:
        """Build the networks from torch's global generator, or from the file to start from.

        Args:
            settings: of the stage.
            checkpointing: whether activations are computed twice instead of kept.

        Raises:
            CheckpointError: the file to start from is not usable.
            TrainingError: it holds a network of another shape, or the feature network is not usable.
        """
        super().__init__()
        self._settings = settings
        self._checkpointing = checkpointing
        self.vae = placed(VAE(settings.network))
        if settings.init is not None:
            state = read_vae(settings.init).state
            expect_shapes(self.vae, state, settings.init)
            self.vae.load_state_dict({name: value.float() for name, value in state.items()})
        self._targets = ImageTargets(settings.losses, build_loss_features(settings.features, settings.losses))
        self.adversary = None if settings.adversary is None else placed(ImageAdversary(settings.adversary))
        self.weights = {**self._targets.weights, "generator/kl": settings.kl}
        if self.adversary is not None:
            self.weights |= self.adversary.weights
        self._latent_scaling = settings.latent_scaling

    def roles(self) -> dict[str, Role]:
        """Return the autoencoder, and the discriminator where there is one."""
        return roles_of(self.vae, self.adversary)

    def begin(self, first_images: Callable[[], Batch]) -> None:
        """Whiten the first layer, unless the weights come from a file."""
        if self._settings.init is None:
            whiten_input(self.vae.encoder.conv_in, to_pair(first_images()).original)

    def forward(self, batch: Batch, draws: Draws, images: int) -> Losses:
        """Return the losses of a sampled reconstruction of the originals."""
        original = to_pair(batch).original
        run = TrainingFrame(checkpointing=self._checkpointing)
        mean, logvar = self.vae.moments(original, run=run)
        height, width = (length // SPATIAL_FACTOR for length in original.shape[2:])
        noise = draws.normal(self._settings.network.latent_channels, height, width)
        output = self.vae.decode(mean + (0.5 * logvar).exp() * noise, run=run)
        losses = self._targets.losses(output, original)
        if self._settings.kl:
            losses["generator/kl"] = divergence.kl(mean, logvar)
        if self.adversary is not None:
            losses |= self.adversary.losses(output, original, images)
        return losses

    @torch.no_grad()
    def restored(self, pair: Pair) -> Tensor:
        """Return decode(mode(encode(original)))."""
        return self.vae.decode(self.vae.encode(pair.original)).float().clamp(-1.0, 1.0)

    @torch.no_grad()
    def measure(self, batch: Batch) -> None:
        """Set the latent scaling to 1/std of the posterior modes, unless the config names one."""
        if self._latent_scaling is None:
            originals = to_pair(batch).original
            modes = [self.vae.encode(image[None]).float() for image in originals]
            self._latent_scaling = 1.0 / float(torch.cat(modes).std())

    def export(self, path: Path, about: ExportConfig) -> None:
        """Write the VAE file.

        Raises:
            CheckpointError: the spec is not usable.
            TrainingError: the latent scaling was neither given nor measured.
        """
        if self._latent_scaling is None:
            raise TrainingError(
                "expected data.validation_folder to measure latents with, got none: or set vae16.latent_scaling"
            )
        spec = VAESpec(
            arch=self._settings.network,
            latent_scaling=self._latent_scaling,
            title=about.title,
            license=about.license,
            source=about.source,
            trained_on=about.trained_on,
        )
        write_vae(path, spec, {name: half(value) for name, value in self.vae.state_dict().items()})
