"""Tiny bundled weights and pictures for the tests of the command line."""

from collections.abc import Callable
from pathlib import Path

import torch
from networks import tiny_unet, tiny_vae

from gendr_core.checkpoint import write_unet, write_vae
from gendr_core.model import DEFAULT_UNET

UNET16, VAE16 = "gendr-mini-unet16.safetensors", "gendr-mini-vae16.safetensors"

Run = Callable[..., tuple[int, str, str]]
"""Runs ``gendr`` with the arguments; returns exit code, stdout and stderr."""


def write_bundle(folder: Path) -> None:
    """Write a pixel-space UNet, which is the default, and a pair on latents; all enlarge by 2."""
    pixel = tiny_unet(
        192, front="pixel_unshuffle8", back="pixel_shuffle8", c_skip=1.0, c_out=0.05, scale=2.0, title="tiny"
    )
    latent = tiny_unet(scale=2.0)
    for name, unet in ((DEFAULT_UNET, pixel), (UNET16, latent)):
        write_unet(folder / name, unet.spec, unet.network.state_dict(), unet.positive)
    vae = tiny_vae()
    write_vae(folder / VAE16, vae.spec, vae.network.state_dict())


def picture(channels: int = 3, height: int = 6, width: int = 9) -> torch.Tensor:
    """Return seeded noise [1, height, width, channels] in 0 to 1."""
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(channels))
