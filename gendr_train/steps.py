"""One function per kind of update: a pair of images in, named losses per sample out.

Role: called by ``loop`` under its autocast; ``restored`` is the same computation without losses, for ``validate``.
Pixels are [B, 3, H, W] float32 in [-1, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gendr_core.spec import SPATIAL_FACTOR

from .data.dataset import Batch
from .losses import divergence, reconstruction
from .roles import Roles
from .schema import LossWeights

Losses = dict[str, Tensor]
"""Name as in ``LossWeights`` -> [B], unweighted."""

_IMAGE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": reconstruction.l1,
    "charbonnier": reconstruction.charbonnier,
    "chroma": reconstruction.chroma,
    "gradient": reconstruction.gradient,
    "spectrum": reconstruction.spectrum,
}


class Pair(NamedTuple):
    """What an update sees."""

    original: Tensor
    """[B, 3, H, W], the target."""
    upsampled: Tensor
    """[B, 3, H, W], the damaged image resized to the size of the original."""


def to_pair(batch: Batch) -> Pair:
    """Return the batch as pixels of one size; the damaged image is enlarged as ``gendr_core.prepare`` does it.

    Args:
        batch: from the data loader, on any device.
    """
    original = batch.original.to(torch.float32) / 127.5 - 1.0
    size = original.shape[2:]
    upsampled = functional.interpolate(batch.damaged, size=size, mode="bicubic", antialias=True, align_corners=False)
    return Pair(original, upsampled.clamp(0.0, 1.0) * 2.0 - 1.0)


def update_losses(roles: Roles, pair: Pair, weights: LossWeights, generator: torch.Generator) -> Losses:
    """Return the losses of the run's stage.

    Args:
        roles: the networks.
        pair: the images.
        weights: losses of weight 0 are not computed.
        generator: CPU source of the posterior noise in stage vae16.
    """
    if roles.stage == "vae16":
        return vae16_step(roles, pair, weights, generator)
    return latent_step(roles, pair, weights) if roles.stage == "latent" else pixel_step(roles, pair, weights)


def vae16_step(roles: Roles, pair: Pair, weights: LossWeights, generator: torch.Generator) -> Losses:
    """Return the losses of decode(sample(encode(original))) against the original.

    Args:
        roles: with an ``Autoencoder`` in training.
        pair: only the original is used.
        weights: losses of weight 0 are not computed.
        generator: CPU source of the noise.
    """
    batch, _, height, width = pair.original.shape
    channels = roles.latent_channels
    size = (batch, channels, height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)
    noise = torch.randn(size, generator=generator).to(pair.original.device)
    reconstructed, mean, logvar = roles.trained(pair.original, noise)
    losses = _image_losses(reconstructed, pair.original, weights)
    if weights.kl:
        losses["kl"] = divergence.kl(mean, logvar)
    return losses


def pixel_step(roles: Roles, pair: Pair, weights: LossWeights) -> Losses:
    """Return the losses of the pixel-space restoration against the original.

    Args:
        roles: with a UNet of 192 channels in training.
        pair: both images.
        weights: losses of weight 0 are not computed.
    """
    return _image_losses(_restored_pixels(roles, pair.upsampled), pair.original, weights)


def latent_step(roles: Roles, pair: Pair, weights: LossWeights) -> Losses:
    """Return the losses of the latent-space restoration: on latents, and on the decoded image.

    Args:
        roles: with a UNet in training and a frozen VAE; gradients pass through its decoder.
        pair: both images.
        weights: losses of weight 0 are not computed, nor is the decoding where all image losses are left out.
    """
    assert roles.vae is not None, "the config demands a VAE in the latent stage"
    latent = _one_step(roles, unet_input(roles, pair.upsampled))
    losses: Losses = {}
    if any(getattr(weights, name) for name in _IMAGE_LOSSES):
        losses = _image_losses(roles.vae.decode(latent / roles.latent_scaling), pair.original, weights)
    if weights.latent:
        with torch.no_grad():
            target = roles.vae.encode(pair.original) * roles.latent_scaling
        losses["latent"] = reconstruction.l1(latent, target)
    return losses


@torch.no_grad()
def restored(roles: Roles, pair: Pair) -> Tensor:
    """Return what the trained network makes of the pair, clamped pixels [B, 3, H, W]: no noise, no gradient.

    Args:
        roles: the networks.
        pair: stage vae16 reconstructs the original, the others restore the damaged image.
    """
    if roles.stage == "vae16":
        pixels = roles.trained(pair.original, None)[0]
    elif roles.vae is not None:
        pixels = roles.vae.decode(_one_step(roles, unet_input(roles, pair.upsampled)) / roles.latent_scaling)
    else:
        pixels = _restored_pixels(roles, pair.upsampled)
    return pixels.float().clamp(-1.0, 1.0)


def _one_step(roles: Roles, latent: Tensor) -> Tensor:
    """z_SR = c_skip z_LQ + c_out UNet(z_LQ)   (docs/algorithm.md, A2)."""
    context = roles.prompt.expand(latent.shape[0], -1, -1)
    predicted = roles.trained(latent, roles.model.timestep, context)
    return roles.model.c_skip * latent + roles.model.c_out * predicted


@torch.no_grad()
def unet_input(roles: Roles, upsampled: Tensor) -> Tensor:
    """Return what the UNet sees of the damaged images: unshuffled pixels, or scaled latents; [B, C, H/8, W/8].

    Args:
        roles: with a UNet in training.
        upsampled: [B, 3, H, W] in [-1, 1].
    """
    if roles.vae is None:
        return functional.pixel_unshuffle(upsampled, SPATIAL_FACTOR)
    return roles.vae.encode(upsampled).float() * roles.latent_scaling


def _restored_pixels(roles: Roles, upsampled: Tensor) -> Tensor:
    return functional.pixel_shuffle(_one_step(roles, unet_input(roles, upsampled)), SPATIAL_FACTOR)


def _image_losses(output: Tensor, target: Tensor, weights: LossWeights) -> Losses:
    return {name: loss(output, target) for name, loss in _IMAGE_LOSSES.items() if getattr(weights, name)}
