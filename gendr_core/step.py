"""Stage 3 of 5: the one pass through the UNet. Left neighbour ``encode``, right neighbour ``decode``."""

import torch
from torch import Tensor

from .errors import OptionError, ShapeError
from .host import Host
from .model import GenDRUNet


def one_step(latent: Tensor, unet: GenDRUNet, *, guidance: float | None = None, host: Host | None = None) -> Tensor:
    """Return the restored latent, z_SR = c_skip * z_LQ + c_out * network(z_LQ, t, prompt) (algorithm.md A2).

    With guidance w other than 1 the network runs once on a batch of both prompts and
    network = n_negative + w * (n_positive - n_negative) (A3).

    Args:
        latent: [B, C, h, w], unscaled; float32.
        unet: the network and how to run it.
        guidance: w; None takes the model's own.
        host: where networks live.

    Returns:
        [B, out_channels, h, w], unscaled, float32, on the network's device.

    Raises:
        ShapeError: the latent does not have the channels of this model.
        OptionError: guidance is asked of a model without a negative prompt.
    """
    spec = unet.spec
    if latent.shape[1] != spec.arch.in_channels:
        raise ShapeError(
            f"expected a latent of {spec.arch.in_channels} channels (front {spec.front}), got {latent.shape[1]}:"
            " encode with the model's own front"
        )
    weight = spec.guidance if guidance is None else guidance
    device = (host or Host()).residency.acquire(unet.network, 0)
    scaled = latent.to(device) * spec.input_scaling
    restored = spec.c_out * _predict(scaled.to(unet.dtype), unet, weight).float()
    if spec.c_skip != 0.0:
        restored = restored + spec.c_skip * scaled
    return restored / spec.output_scaling


def _predict(latent: Tensor, unet: GenDRUNet, weight: float) -> Tensor:
    """Return the guided prediction, [B, C, h, w] in the dtype of ``latent``."""
    batch = latent.shape[0]
    positive = unet.positive.to(latent).expand(batch, -1, -1)
    if weight == 1.0:
        return unet.network(latent, unet.spec.timestep, positive)
    if unet.negative is None:
        raise OptionError(
            f"expected a model with a negative prompt for guidance {weight}, got one without: set guidance to 1"
        )
    negative = unet.negative.to(latent).expand(batch, -1, -1)
    both = unet.network(latent.repeat(2, 1, 1, 1), unet.spec.timestep, torch.cat([negative, positive]))
    unguided, guided = both.chunk(2)
    return unguided + weight * (guided - unguided)
