"""The pull of a VAE's posterior towards the standard normal.

Role: called by ``stages.vae16``.
"""

from torch import Tensor


# KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - ln s^2) / 2, mean over the latent   (arXiv:1312.6114, appendix B)
def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return the mean divergence per latent value, [B].

    Args:
        mean: [B, C, h, w].
        logvar: [B, C, h, w], ln s^2.
    """
    mean, logvar = mean.float(), logvar.float()
    return (0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)).flatten(1).mean(1)
