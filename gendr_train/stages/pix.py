"""Stage pix: GenDR-Pix's second half, which gives shuffled pixels where stage adc gave latents; no VAE is left.

Role: after ``adc``, whose file is teacher, discriminator and start. From GenDR-Pix (arXiv:2602.10630) are the back, the
losses, the discriminator being the network of the stage before, and the random padding. Inferred: how the last layer
begins; that padding reflects; that the teacher's image, padded alike, is what counts as real; that the head sits on the
middle of the UNet; no skip.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from gendr_core.nets import WholeFrame
from gendr_core.spec import PIXEL_CHANNELS, SPATIAL_FACTOR

from ..data.dataset import Batch
from ..fitting import fit_convolution
from ..frames import TrainingFrame
from ..losses.fourier import masked_spectrum
from ..rng import Draws
from ..schema import ExportConfig
from ..settings import PixSettings
from .images import ImageTargets, build_loss_features
from .networks import FrozenVAE, to_cells, to_pixels
from .stage import Losses, Pair, Role, Stage, roles_of, to_pair
from .teachers import FeatureAdversary, FrozenUNet, LastFeatures


def random_padding(pixels: Tensor, above: Tensor, left: Tensor) -> Tensor:
    """Return every image one cell larger each way and moved off the grid of cells, [B, 3, H + 8, W + 8].

    randpad(y) = pad(y, [p_h, 8 - p_h, p_w, 8 - p_w]), by reflection. A pattern that repeats with the cells then lies
    anywhere in the cells that the discriminator sees, so it is judged as part of the picture.

    Args:
        pixels: [B, 3, H, W], sides above 8.
        above: p_h of each image, [B] int64, 0 to 8.
        left: p_w, likewise.
    """
    padded = [
        functional.pad(image[None], (x, SPATIAL_FACTOR - x, y, SPATIAL_FACTOR - y), mode="reflect")
        for image, y, x in zip(pixels, map(int, above.cpu()), map(int, left.cpu()), strict=True)
    ]
    return torch.cat(padded)


class PixStage(Stage):
    """The student of stage adc's network without the VAE's decoder: y_stu = shuffle(UNet(unshuffle(x)))."""

    def __init__(self, settings: PixSettings, *, checkpointing: bool = False) -> None:
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
        self._teacher = FrozenUNet.load(settings.teacher, front="pixel_unshuffle8", back="vae16", vae=self._vae)
        self.unet = self._teacher.copy_with(in_channels=PIXEL_CHANNELS, out_channels=PIXEL_CHANNELS, without="conv_out")
        features = build_loss_features(settings.features, settings.losses, settings.original)
        self._matching = ImageTargets(settings.losses, features)
        self._original = ImageTargets(settings.original, features, "generator/original_")
        self.weights = {**self._matching.weights, **self._original.weights}
        if settings.harmonics:
            self.weights["generator/harmonics"] = settings.harmonics
        self.adversary = FeatureAdversary.of(settings, self._teacher, checkpointing=checkpointing)
        if self.adversary is not None:
            self.weights |= self.adversary.weights

    def roles(self) -> dict[str, Role]:
        """Return the student, and the discriminator's head where there is one."""
        return roles_of(self.unet, self.adversary)

    @torch.no_grad()
    def begin(self, first_images: Callable[[], Batch]) -> None:
        """Fit the last layer to the teacher's pixels: a linear decoder of what 3x3 cells hold."""
        images = (image[None] for image in to_pair(first_images()).upsampled)
        examples = ((self._last_features(image), to_cells(self._target(image))) for image in images)
        fit_convolution(self.unet.conv_out, examples)

    def forward(self, batch: Batch, draws: Draws, images: int) -> Losses:
        """Return the losses of the student's images against the teacher's, and against the originals."""
        del images
        pair = to_pair(batch)
        output = self._pixels(pair.upsampled, TrainingFrame(checkpointing=self._checkpointing))
        target = self._target(pair.upsampled)
        losses = self._matching.losses(output, target)
        if self._settings.harmonics:
            losses["generator/harmonics"] = masked_spectrum(output, target, period=SPATIAL_FACTOR)
        if self.adversary is not None:
            above, left = (draws.integers(0, SPATIAL_FACTOR) for _ in range(2))
            made, real = (to_cells(random_padding(pixels, above, left)) for pixels in (output, target))
            losses |= self.adversary.losses(made, real)
        if self._original.weights:
            losses |= self._original.losses(output, pair.original)
        return losses

    @torch.no_grad()
    def restored(self, pair: Pair) -> Tensor:
        """Return the restored images."""
        return self._pixels(pair.upsampled).float().clamp(-1.0, 1.0)

    def export(self, path: Path, about: ExportConfig) -> None:
        """Write the UNet file: pixels at both ends, guidance 1.

        Raises:
            CheckpointError: the weights are not finite, or the file cannot be written.
        """
        self._teacher.write_student(path, self.unet, about, latent_scaling=None)

    def _pixels(self, upsampled: Tensor, run: WholeFrame | None = None) -> Tensor:
        """y_stu, not clamped."""
        return to_pixels(self._teacher.run(self.unet, to_cells(upsampled), run))

    @torch.no_grad()
    def _target(self, upsampled: Tensor) -> Tensor:
        """y_tea, not clamped."""
        return self._vae.decode(self._teacher.one_step(to_cells(upsampled)))

    def _last_features(self, image: Tensor) -> Tensor:
        run = LastFeatures()
        self._pixels(image, run)
        return run.kept
