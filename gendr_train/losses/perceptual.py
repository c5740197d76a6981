"""Distance between images in the feature space of a frozen network.

Role: called by ``stages`` on the maps of ``features.FeatureNetwork`` for the output and for its target.
Not covered: the learnt channel weights of LPIPS; every channel counts the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NORM_EPS = 1e-10
"""Under the root of a feature vector's norm: keeps the gradient at a zero vector finite."""


def _unit(features: Tensor) -> Tensor:
    """Return each place's feature vector divided by its length, float32."""
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + NORM_EPS).rsqrt()


# L = sum_l mean_n |u(o_l)[n] - u(t_l)[n]|^2, u(x) = x / |x| over channels   (arXiv:1801.03924, eq. 1, with w_l = 1)
def perceptual(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the distance, [B], from 0 to 4 per map; blind to the length of feature vectors.

    Gradients flow to ``outputs`` alone.

    Args:
        outputs: maps [B, C_l, h_l, w_l] of the image being trained.
        targets: maps of the same shapes of what it should be.

    Raises:
        ValueError: the two have different numbers of maps.
    """
    pairs = zip(outputs, targets, strict=True)
    distances = [(_unit(o) - _unit(t.detach())).square().sum(1).flatten(1).mean(1) for o, t in pairs]
    return torch.stack(distances).sum(0)
