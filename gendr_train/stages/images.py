"""Losses between an image and its target, with the frozen features and the patch discriminator that some of them need.

Role: a part of every stage whose output can be seen: ``vae16``, ``restoration``, ``pix``.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict

from torch import Tensor, nn

from ..adversary import PatchAdversary, frozen
from ..features import FeatureNetwork, build_features
from ..losses import adversarial, reconstruction
from ..losses.perceptual import perceptual
from ..settings import AdversaryConfig, FeatureConfig, ImageLosses
from .stage import Losses, Role

_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": reconstruction.l1,
    "charbonnier": reconstruction.charbonnier,
    "chroma": reconstruction.chroma,
    "gradient": reconstruction.gradient,
    "spectrum": reconstruction.spectrum,
}


class ImageTargets:
    """The distances that have a weight, under the names of ``ImageLosses``."""

    def __init__(self, weights: ImageLosses, features: FeatureConfig | None, prefix: str = "generator/") -> None:
        """Build the feature network where the perceptual loss has a weight.

        Args:
            weights: factor of each loss.
            features: of the perceptual loss.
            prefix: in front of each name.

        Raises:
            OptionError: the feature network cannot be built.
        """
        self.weights = {prefix + name: weight for name, weight in asdict(weights).items() if weight}
        self._prefix = prefix
        self._features = _features(features) if weights.perceptual and features is not None else None

    def losses(self, output: Tensor, target: Tensor) -> Losses:
        """Return each distance, [B].

        Args:
            output: [B, 3, H, W] in [-1, 1], with gradient.
            target: the same shape.
        """
        names = [name.removeprefix(self._prefix) for name in self.weights]
        losses = {self._prefix + name: _DISTANCES[name](output, target) for name in names if name in _DISTANCES}
        if self._features is not None:
            network = self._features[0].to(output.device)
            losses[self._prefix + "perceptual"] = perceptual(network(output), network(target))
        return losses


class ImageAdversary(nn.Module):
    """A patch discriminator, what it learns, and how it pulls."""

    def __init__(self, config: AdversaryConfig) -> None:
        """Build the discriminator.

        Args:
            config: its size and weights.
        """
        super().__init__()
        self._config = config
        self.network = PatchAdversary(channels=config.channels, layers=config.layers)
        self.weights = {"generator/adversarial": config.weight, "discriminator/real": 1.0, "discriminator/fake": 1.0}

    @property
    def role(self) -> Role:
        """What the discriminator trains."""
        return Role(parameters=list(self.network.parameters()), rate=self._config.rate)

    def losses(self, output: Tensor, original: Tensor, images: int) -> Losses:
        """Return the losses of both sides, [B] each.

        Args:
            output: [B, 3, H, W] in [-1, 1], with gradient.
            original: the same shape.
            images: images seen.
        """
        losses: Losses = {}
        if images >= self._config.start_images:
            with frozen(self.network):
                losses["generator/adversarial"] = adversarial.fool(self.network(output))
        losses["discriminator/real"] = adversarial.tell_real(self.network(original))
        losses["discriminator/fake"] = adversarial.tell_fake(self.network(output.detach()))
        return losses


def _features(config: FeatureConfig) -> tuple[FeatureNetwork]:
    """Return the network in a tuple, which keeps it out of the parameters and the state of a stage."""
    return (build_features(config),)
