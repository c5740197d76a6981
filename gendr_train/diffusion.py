"""The noise schedule of training: clean latents to noisy ones, and predictions back to clean latents.

Role: called by ``stages.base`` and ``stages.cida``; what it returns goes to the networks and to ``losses``.
Symbols: z_0 a clean latent, eps standard normal noise, ab = alpha_bar(t), z_t = sqrt(ab) z_0 + sqrt(1 - ab) eps.
Everything is computed in float32, whatever comes in. Not covered: drawing timesteps and noise, which ``rng`` does.
"""

from functools import cache

import torch
from torch import Tensor

from gendr_core.spec import NUM_TRAIN_TIMESTEPS, Prediction, alpha_bar


# Numbers, not a tensor: a tensor would stay with whatever mode (inference, fake, meta) first asked for it.
@cache
def _alpha_bars() -> tuple[float, ...]:
    return tuple(alpha_bar(timestep) for timestep in range(NUM_TRAIN_TIMESTEPS))


def alpha_bars() -> Tensor:
    """Return the signal power ab of every timestep of the SD2.1 schedule, [1000] float32 on the CPU, falling."""
    return torch.tensor(_alpha_bars(), dtype=torch.float32, device="cpu")


def _levels(timestep: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Return sqrt(ab) and sqrt(1 - ab), [B, 1, ...] float32 of ``ndim`` dimensions on the device of ``timestep``."""
    # Roots in float64: near t = 0 a float32 ab leaves 1 - ab only four digits.
    power = torch.tensor(_alpha_bars(), dtype=torch.float64, device="cpu")
    roots = torch.stack([power.sqrt(), (1.0 - power).sqrt()]).float().to(timestep.device)
    signal, noise = roots[:, timestep].reshape(2, -1, *[1] * (ndim - 1))
    return signal, noise


# z_t = sqrt(ab) z_0 + sqrt(1 - ab) eps   (arXiv:2006.11239, eq. 4)
def add_noise(clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return the noisy latent z_t, float32, of the shape of ``clean``; gradients flow to ``clean``.

    Args:
        clean: [B, ...], scaled latents z_0.
        noise: standard normal, of the same shape.
        timestep: [B] int64, 0 to 999.
    """
    signal, spread = _levels(timestep, clean.ndim)
    return signal * clean.float() + spread * noise.float()


# epsilon: z_0 = (z_t - sqrt(1 - ab) eps) / sqrt(ab)       v: z_0 = sqrt(ab) z_t - sqrt(1 - ab) v
# (arXiv:2202.00512, appendix D; gendr_core.spec.one_step_coefficients is the same for one fixed timestep)
def to_clean(noised: Tensor, predicted: Tensor, timestep: Tensor, prediction: Prediction) -> Tensor:
    """Return the clean latent that a prediction stands for, float32; gradients flow to both tensors.

    Args:
        noised: [B, ...], the z_t that the network saw.
        predicted: what it said, of the same shape.
        timestep: [B] int64, 0 to 999.
        prediction: what the network predicts.
    """
    signal, spread = _levels(timestep, noised.ndim)
    if prediction == "epsilon":
        return (noised.float() - spread * predicted.float()) / signal
    return signal * noised.float() - spread * predicted.float()


# epsilon: eps       v: sqrt(ab) eps - sqrt(1 - ab) z_0   (arXiv:2202.00512, appendix D)
def training_target(clean: Tensor, noise: Tensor, timestep: Tensor, prediction: Prediction) -> Tensor:
    """Return what a network should say about z_t, float32, of the shape of ``clean``.

    Args:
        clean: [B, ...], scaled latents z_0.
        noise: standard normal, of the same shape.
        timestep: [B] int64, 0 to 999.
        prediction: what the network predicts.
    """
    if prediction == "epsilon":
        return noise.float()
    signal, spread = _levels(timestep, clean.ndim)
    return signal * noise.float() - spread * clean.float()


# snr(t) = ab / (1 - ab), signal over noise power of z_t
def snr(timestep: Tensor) -> Tensor:
    """Return the signal-to-noise ratio of each timestep, [B] float32.

    Args:
        timestep: [B] int64, 0 to 999.
    """
    signal, spread = _levels(timestep, 1)
    return (signal / spread).square()


# epsilon: min(snr, gamma) / snr       v: min(snr, gamma) / (snr + 1)   (arXiv:2303.09556)
def min_snr_weight(timestep: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Return the weight of a squared error of predictions, [B] float32; errors of z_0 then weigh min(snr, gamma).

    Args:
        timestep: [B] int64, 0 to 999.
        gamma: the largest weight of an error of z_0; the paper uses 5.
        prediction: what the network predicts.
    """
    ratio = snr(timestep)
    return ratio.clamp(max=gamma) / (ratio if prediction == "epsilon" else ratio + 1.0)
