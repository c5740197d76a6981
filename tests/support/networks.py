"""Tiny real networks with seeded weights."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.nets import VAE, UNet
from gendr_core.spec import ModelSpec, UNetArch, VAEArch, VAESpec

TOKENS, PROMPT_DIM = 3, 8

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def seeded(module: AnyModule, seed: int) -> AnyModule:
    """Give every parameter seeded normals scaled by fan-in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.requires_grad_(False).train(False)


def prompt(seed: int) -> Tensor:
    """Return a random embedding [TOKENS, PROMPT_DIM]."""
    return torch.randn(TOKENS, PROMPT_DIM, generator=torch.Generator().manual_seed(seed))


def tiny_unet(channels: int = 4, *, negative: bool = False, **spec: object) -> GenDRUNet:
    """Return a two-level UNet on ``channels`` with the given ModelSpec fields."""
    arch = UNetArch(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        attention_levels=(True, False),
        layers_per_block=1,
        head_dim=8,
        cross_attention_dim=PROMPT_DIM,
        norm_groups=4,
    )
    network = UNet(arch)
    seeded(network, 1)
    return GenDRUNet(
        network=network,
        spec=ModelSpec(arch=arch, **spec),  # type: ignore[arg-type]
        positive=prompt(2),
        negative=prompt(3) if negative else None,
        dtype=torch.float32,
    )


def tiny_vae(cell_px: int = 8) -> GenDRVAE:
    """Return a VAE with 4 latent channels and 4 or 8 pixels per cell; that of 4 has no middle block, as TVT's."""
    arch = VAEArch(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 16) if cell_px == 8 else (8, 8, 16),
        layers_per_block=1,
        norm_groups=4,
        mid_attention=cell_px == 8,
        mid_block=cell_px == 8,
    )
    network = VAE(arch)
    seeded(network, 4)
    return GenDRVAE(network=network, spec=VAESpec(arch=arch), dtype=torch.float32)
