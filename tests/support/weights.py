"""Tiny weight files of every kind that the loaders meet."""

from pathlib import Path

import torch
from networks import seeded, tiny_unet, tiny_vae
from safetensors.torch import save_file

from gendr_core.checkpoint import write_unet, write_vae
from gendr_core.nets import VAE
from gendr_core.spec import VAEArch, VAESpec

PIXEL, LATENT, TINY_VAE = "tiny-pixel.safetensors", "tiny-latent.safetensors", "tiny-vae.safetensors"
LATENT_4PX, VAE_4PX = "tiny-latent-4px.safetensors", "tiny-vae-4px.safetensors"
"""A pair with 4 pixels per latent cell."""


def write_tiny_weights(models: Path) -> None:
    """Write a pixel-space UNet, a 16-channel UNet and its VAE into a host's ``models`` folder."""
    unets, vaes = models / "diffusion_models", models / "vae"
    unets.mkdir(parents=True, exist_ok=True)
    vaes.mkdir(parents=True, exist_ok=True)
    pixel = tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8", c_skip=1.0, c_out=0.05)
    latent = tiny_unet(16, negative=True)
    for name, unet in ((PIXEL, pixel), (LATENT, latent)):
        write_unet(unets / name, unet.spec, unet.network.state_dict(), unet.positive, unet.negative)
    arch = VAEArch(block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_groups=4)
    write_vae(vaes / TINY_VAE, VAESpec(arch=arch), seeded(VAE(arch), 4).state_dict())


def write_small_cells(models: Path) -> None:
    """Write, beside them, a UNet of 4 channels and its VAE, both for cells of 4 pixels."""
    unet, vae = tiny_unet(4, cell_px=4), tiny_vae(4)
    write_unet(models / "diffusion_models" / LATENT_4PX, unet.spec, unet.network.state_dict(), unet.positive)
    write_vae(models / "vae" / VAE_4PX, vae.spec, vae.network.state_dict())


WRONG_UNETS = {
    "truncated": "cut short",
    "text": "expected a safetensors file",
    "empty": "got an empty file",
    "pickle": "expected a safetensors file",
    "absurd": "expected a safetensors file",
    "vae": "expected kind 'unet', got 'vae16'",
    "sdxl": "expected a UNet of SD2.1's kind, got a UNet with extra conditioning, such as SDXL's",
    "flux": "expected a UNet of SD2.1's kind, got a diffusion transformer",
    "lora": "expected a UNet of SD2.1's kind, got a LoRA",
}
"""Names of wrong files in the UNet folder and what their error says."""


def write_wrong_weights(models: Path) -> None:
    """Write, beside the tiny ones, files that are not what their folder promises: ``WRONG_UNETS`` and one VAE."""
    unets, vaes = models / "diffusion_models", models / "vae"
    whole = (unets / PIXEL).read_bytes()
    contents = {
        "truncated": whole[: len(whole) // 2],
        "text": b"not weights at all",
        "empty": b"",
        "pickle": b"\x80\x02}q\x00.",
        "absurd": (2**60).to_bytes(8, "little") + b"{}",
        "vae": (vaes / TINY_VAE).read_bytes(),
    }
    for name, content in contents.items():
        (unets / f"{name}.safetensors").write_bytes(content)
    unet = tiny_unet(4).network.state_dict()
    foreign = {
        "sdxl": {**unet, "add_embedding.linear_1.weight": torch.zeros(2, 2)},
        "flux": {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)},
        "lora": {"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2, 2)},
    }
    for name, state in foreign.items():
        save_file(state, unets / f"{name}.safetensors")
    (vaes / "unet.safetensors").write_bytes(whole)
