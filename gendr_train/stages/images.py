"""Losses between an image and its target, with the frozen features and the patch discriminator that some of them need.

Role: a part of every stage whose output can be seen: ``vae16``, ``restoration``, ``pix``.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict

from torch import Tensor

from ..adversary import PatchAdversary, frozen
from ..features import FeatureNetwork, build_features
from ..losses import adversarial, reconstruction
from ..losses.perceptual import perceptual
from ..sections import AdversaryConfig, FeatureConfig, ImageLosses
from .stage import Adversary, Losses

_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": reconstruction.l1,
    "charbonnier": reconstruction.charbonnier,
    "chroma": reconstruction.chroma,
    "gradient": reconstruction.gradient,
    "spectrum": reconstruction.spectrum,
}


class ImageTargets:
    """The distances that have a weight, under the names of ``ImageLosses``."""

    def __init__(self, weights: ImageLosses, features: FeatureNetwork | None, prefix: str = "generator/") -> None:
        """Name the losses.

        Args:
            weights: factor of each loss.
            features: of ``build_loss_features``.
            prefix: in front of each name.
        """
        self.weights = {prefix + name: weight for name, weight in asdict(weights).items() if weight}
        self._prefix = prefix
        self._features = features if weights.perceptual else None

    def losses(self, output: Tensor, target: Tensor) -> Losses:
        """Return each distance, [B].

        Args:
            output: [B, 3, H, W] in [-1, 1], with gradient.
            target: the same shape.
        """
        names = [name.removeprefix(self._prefix) for name in self.weights]
        losses = {self._prefix + name: _DISTANCES[name](output, target) for name in names if name in _DISTANCES}
        if self._features is not None:
            network = self._features.to(output.device)
            losses[self._prefix + "perceptual"] = perceptual(network(output), network(target))
        return losses


class ImageAdversary(Adversary):
    """A patch discriminator, what it learns, and how it pulls."""

    def __init__(self, config: AdversaryConfig) -> None:
        """Build the discriminator.

        Args:
            config: its size and weights.
        """
        super().__init__(weight=config.weight, rate=config.rate)
        self._start_images = config.start_images
        self.network = PatchAdversary(channels=config.channels, layers=config.layers)

    def losses(self, output: Tensor, original: Tensor, images: int) -> Losses:
        """Return the losses of both sides, [B] each.

        Args:
            output: [B, 3, H, W] in [-1, 1], with gradient.
            original: the same shape.
            images: images seen.
        """
        losses: Losses = {}
        if images >= self._start_images:
            with frozen(self.network):
                losses["generator/adversarial"] = adversarial.fool(self.network(output))
        losses["discriminator/real"] = adversarial.tell_real(self.network(original))
        losses["discriminator/fake"] = adversarial.tell_fake(self.network(output.detach()))
        return losses


def build_loss_features(config: FeatureConfig | None, *losses: ImageLosses) -> FeatureNetwork | None:
    """Return the network of the perceptual loss, one for all of a stage's losses; None where none has a weight for it.

    Args:
        config: of the network.
        losses: those of the stage.

    Raises:
        TrainingError: the network is not usable, or a package is missing.
        CheckpointError: it is that of a VAE file which is not usable.
    """
    return build_features(config) if config is not None and any(loss.perceptual for loss in losses) else None
