"""Representation alignment (REPA): features inside the UNet follow those of a frozen image encoder.

Role: called by ``stages.base`` and ``stages.cida`` on the output of ``features.Projection`` and of a
``features.FeatureNetwork`` of the original image.
"""

import torch.nn.functional as F
from torch import Tensor


# L = -mean_n cos(p[n], t[n]), n over places   (arXiv:2410.06940; GenDR takes it after the first down block)
def alignment(projected: Tensor, target: Tensor) -> Tensor:
    """Return minus the mean cosine of the feature vectors, [B], in [-1, 1]; -1 where all directions agree.

    The target is resized to h x w (antialiased bilinear) before the cosine. Gradients flow to ``projected`` alone.

    Args:
        projected: [B, D, h, w], features of the UNet in the encoder's space.
        target: [B, D, h', w'], features of the encoder.
    """
    target = target.detach().float()
    if target.shape[2:] != projected.shape[2:]:
        target = F.interpolate(target, size=projected.shape[2:], mode="bilinear", antialias=True)
    return -F.cosine_similarity(projected.float(), target, dim=1).flatten(1).mean(1)
