"""Our networks against diffusers 0.42 on the same seeded random weights, fp32, and their parameter counts."""

from typing import cast

import pytest
import torch
from networks import seeded
from torch import nn

from gendr_core.nets import VAE, UNet
from gendr_core.reference import diffusers_unet, diffusers_vae
from gendr_core.spec import UNetArch, VAEArch, VAESpec

TOLERANCE = 1e-5
"""Bound on max |difference| / max |reference| in fp32."""

TINY_UNETS = {
    "sd21_shape": UNetArch(
        in_channels=16,
        out_channels=16,
        block_out_channels=(32, 64, 64, 64),
        head_dim=16,
        cross_attention_dim=24,
        norm_groups=8,
    ),
    "pixel": UNetArch(
        in_channels=192,
        out_channels=192,
        block_out_channels=(32, 48),
        attention_levels=(False, True),
        layers_per_block=1,
        head_dim=16,
        cross_attention_dim=8,
        norm_groups=4,
    ),
    "deep": UNetArch(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 48),
        attention_levels=(True, False, True),
        layers_per_block=3,
        head_dim=8,
        cross_attention_dim=8,
        norm_groups=8,
    ),
}
TINY_VAES = {
    "vae16_shape": VAEArch(block_out_channels=(16, 16, 32, 64), norm_groups=8),
    "no_quant_no_attention": VAEArch(
        block_out_channels=(8, 8, 16, 24),
        layers_per_block=1,
        latent_channels=4,
        norm_groups=4,
        quant_conv=False,
        mid_attention=False,
    ),
}


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.inference_mode()
def check_unet(arch: UNetArch, height: int, width: int, batch: int = 1) -> None:
    reference = seeded(diffusers_unet(arch).to_empty(device="cpu"), seed=0)
    ours = UNet(arch).train(False)
    ours.load_state_dict(reference.state_dict())
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(batch, arch.in_channels, height, width, generator=generator)
    context = torch.randn(batch, 77, arch.cross_attention_dim, generator=generator)
    expected = reference(latent, 354, encoder_hidden_states=context, return_dict=False)[0]
    assert relative_error(ours(latent, 354, context), expected) <= TOLERANCE


@torch.inference_mode()
def check_vae(arch: VAEArch, height: int, width: int) -> None:
    reference = seeded(diffusers_vae(VAESpec(arch=arch)).to_empty(device="cpu"), seed=0)
    ours = VAE(arch).train(False)
    ours.load_state_dict(reference.state_dict())
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    (posterior,) = reference.encode(pixels, return_dict=False)
    mean, log_variance = ours.moments(pixels)
    # diffusers declares its decoder for a legacy type that no tensor has.
    latent = cast("torch.FloatTensor", posterior.mode())
    assert relative_error(mean, latent) <= TOLERANCE
    assert relative_error(log_variance.clamp(-30, 20), posterior.logvar) <= TOLERANCE
    assert relative_error(ours.decode(mean), reference.decode(latent, return_dict=False)[0]) <= TOLERANCE


@pytest.mark.parametrize("arch", TINY_UNETS.values(), ids=TINY_UNETS.keys())
@pytest.mark.parametrize("size", [(16, 24), (13, 17), (1, 5)], ids=str)
def test_tiny_unet_equals_diffusers(arch: UNetArch, size: tuple[int, int]) -> None:
    check_unet(arch, *size, batch=2)


@pytest.mark.parametrize("arch", TINY_VAES.values(), ids=TINY_VAES.keys())
def test_tiny_vae_equals_diffusers(arch: VAEArch) -> None:
    check_vae(arch, 48, 72)


@pytest.mark.slow
def test_full_unet16_equals_diffusers_at_an_odd_size() -> None:
    check_unet(UNetArch(), 65, 65)


@pytest.mark.slow
def test_full_vae16_equals_diffusers() -> None:
    check_vae(VAEArch(), 256, 320)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("channels", "expected"), [(16, 865_979_856), (192, 866_993_792), (4, 865_910_724)])
def test_unet_parameter_count(channels: int, expected: int) -> None:
    assert num_parameters(UNet(UNetArch(in_channels=channels, out_channels=channels), device="meta")) == expected


def test_vae16_parameter_count() -> None:
    assert num_parameters(VAE(VAEArch(), device="meta")) == 57_266_643
