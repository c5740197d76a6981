"""Distillation of a diffusion model by its score: SiD, VSD, and the training of the scores themselves.

Role: called by ``stages.cida``; the predictions are ``diffusion.to_clean`` of networks run at one noisy latent
z_t = add_noise(clean). Symbols: y = clean, the generator's output; f = real, the real score's prediction of z_0 at z_t;
g = fake, the fake score's. <.> is the mean over a sample, not the sum of the public code: rates then do not depend
on the size of a latent.
"""

from torch import Tensor

CLOSEST = 1e-5
"""Floor of the distance whose inverse weighs a sample, as in the public code of SiD."""


# w = 1 / max(<|y - f|>, 1e-5)   (public code of SiD; arXiv:2311.18828 has it with a factor of the timestep)
def inverse_distance(clean: Tensor, real: Tensor) -> Tensor:
    """Return the weight of a sample, [B] float32, without gradient: large errors at high noise count no more."""
    distance = (clean.detach().float() - real.detach().float()).abs().flatten(1).mean(1)
    return 1.0 / distance.clamp(min=CLOSEST)


# L = w <(f - g) ((f - y) - alpha (f - g))>   (arXiv:2404.04057, in the form of its public code)
def sid(clean: Tensor, real: Tensor, fake: Tensor, *, alpha: float) -> Tensor:
    """Return the score identity loss, [B]; 0 where both scores agree, of either sign elsewhere.

    Gradients flow to all three tensors, through the scores' inputs to the generator; only the weight w is detached.

    Args:
        clean: [B, ...], the generator's z_0.
        real: of the same shape, the frozen or separately trained teacher's z_0, guided where guidance is wanted.
        fake: of the same shape, the z_0 of the score that follows the generator.
        alpha: how much of <(f - g)^2> is taken away; 1 in SiD-LSG.
    """
    weight = inverse_distance(clean, real)
    clean, real, fake = clean.float(), real.float(), fake.float()
    gap = real - fake
    return weight * (gap * (real - clean - alpha * gap)).flatten(1).mean(1)


# dL/dy = w (g - f) / numel, and no other gradient   (arXiv:2305.16213, weighted as arXiv:2311.18828 does)
def vsd(clean: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Return w^2 <(g - f)^2> / 2, [B], whose gradient is that of variational score distillation.

    Descent adds w (f - g) to the generator's output: towards the real score and away from the fake one. Gradients
    flow to ``clean`` alone, not through the scores.

    Args:
        clean: [B, ...], the generator's z_0.
        real: of the same shape, the teacher's z_0.
        fake: of the same shape, the z_0 of the score that follows the generator.
    """
    weight = inverse_distance(clean, real).reshape(-1, *[1] * (clean.ndim - 1))
    step = weight * (fake.detach().float() - real.detach().float())
    # The first difference is exactly 0 and carries the gradient; y - (y - step) would round the step.
    return 0.5 * (clean.float() - clean.detach().float() + step).square().flatten(1).mean(1)


# L = weight <(p - t)^2>   (arXiv:2006.11239, eq. 14; weight 1 there)
def denoising(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the weighted mean squared error, [B].

    Gradients flow to ``predicted`` alone. Whoever trains a score on the generator's output also detaches that
    output before noise is added: ``predicted`` would carry gradients back through its input.

    Args:
        predicted: [B, ...], what the network says about z_t.
        target: of the same shape, ``diffusion.training_target``.
        weight: [B], such as ``diffusion.min_snr_weight``; 1 without.
    """
    error = (predicted.float() - target.detach().float()).square().flatten(1).mean(1)
    return error if weight is None else weight * error
