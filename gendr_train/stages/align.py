"""REPA as a part of a stage: the UNet's early features learn to agree with what a frozen encoder sees in the original.

Role: used by ``base`` and ``cida``; the loss is in ``losses.alignment``.
"""

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..features import Projection, build_features
from ..losses.alignment import alignment
from ..sections import AlignmentConfig
from .networks import placed


class Alignment(nn.Module):
    """REPA: a projection in training, and the frozen encoder whose features of the original it has to meet."""

    def __init__(self, config: AlignmentConfig, channels: int) -> None:
        """Build both.

        Args:
            config: encoder and width of the projection.
            channels: of the features that are aligned.

        Raises:
            TrainingError: the encoder is not usable, or gives more than one map.
        """
        super().__init__()
        # In a tuple, which keeps it out of the parameters and the state.
        self._features = (build_features(config.features),)
        widths = self._features[0].channels
        if len(widths) != 1:
            raise TrainingError(f"expected one of alignment.features.layers, got {len(widths)}")
        self.projection = placed(Projection(channels, config.hidden, widths[0]))

    def loss(self, features: Tensor, original: Tensor) -> Tensor:
        """Return minus the mean cosine of projected features and the encoder's, [B].

        Args:
            features: [B, channels, h, w], with gradient.
            original: [B, 3, H, W] in [-1, 1]; the encoder follows to its device.
        """
        with torch.no_grad():
            target = self._features[0].to(original.device)(original)[0]
        return alignment(self.projection(features), target)
