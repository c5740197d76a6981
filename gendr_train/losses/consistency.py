"""Consistent score identity distillation (CiD): SiD with the clean latent of the pair as the identity target.

Role: called by ``stages.cida``. Symbols as in ``score_identity``, and z_h = target, the latent of the original image;
c = guided, the real score's prediction under classifier-free guidance. GenDR (arXiv:2503.06790) states
L_cid = L3 - xi L1, what each part compares, and that the real score learns from z_h; the products are inferred.
"""

from torch import Tensor

from .score_identity import inverse_distance


# L1 = w <(f - g)^2>,   L3 = w <(c - g) (c - z_h)>,   w = 1 / max(<|z_h - f|>, 1e-5),   L = L3 - xi L1
def cid(target: Tensor, real: Tensor, guided: Tensor, fake: Tensor, *, xi: float) -> Tensor:
    """Return the loss, [B]; of either sign, and 0 where the three predictions agree.

    Gradients flow to the three predictions, through the scores' inputs to the generator; neither the target nor
    the weight w carries any. Where c = f, a generator whose latents are distributed like z_h is a stationary point,
    as f = g there. It attracts only where noise prevails: for Gaussian latents of standard deviation s whose restored
    and original versions correlate by rho, where ab s^2 / (ab s^2 + 1 - ab) < rho / 2. At lower noise the loss
    pulls the restored latents below s. Guidance c > f moves the point above s.

    Args:
        target: [B, ...], z_h.
        real: of the same shape, the real score's z_0 at the noisy restored latent.
        guided: of the same shape, the same with guidance; ``real`` itself for none.
        fake: of the same shape, the z_0 of the score that follows the generator.
        xi: weight of L1.
    """
    weight = inverse_distance(target, real)
    target, real, guided, fake = target.detach().float(), real.float(), guided.float(), fake.float()
    apart = (real - fake).square().flatten(1).mean(1)
    identity = ((guided - fake) * (guided - target)).flatten(1).mean(1)
    return weight * (identity - xi * apart)
