"""S3Diff (arXiv:2409.17058) at one degradation: its adapters are mixed anew for every image, a file holds one mixture.

Its own code estimates blur and noise of each image with a further network, and from these two numbers and the block's
embedding makes a matrix M for each block, so that a layer is W + scale * B @ M^T @ A. Here the two numbers are given
once. Guidance is 1.07, between two fixed prompts.

File: s3diff.pkl, adapters of the UNet and of the VAE's encoder, the whole ``conv_in``, the small networks that make M.
Base: SD-Turbo, which has the shapes of SD2.1.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters import State, check_layers, merge, peft_scale, split_adapters, with_trained
from ..errors import CheckpointError
from .relative import SD_TURBO, Bases, Degradation, Merged, Published, Relative, epsilon_coefficients, suffix_layers

TIMESTEP = 999
VAE_LAYERS = ("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0")
"""Layers of the VAE's encoder with adapters, by the ends of their names."""
MID, UP, LAST = 4, 5, -1
"""Where the block embeddings of the UNet begin: four levels down, the middle, four levels up, all other layers."""


def merged(published: Published, bases: Bases, degradation: Degradation | None) -> Merged:
    """Return the UNet and the VAE with their adapters mixed for ``degradation`` and merged.

    Raises:
        CheckpointError: the file is incomplete or does not fit the base.
    """
    assert degradation is not None, "convert asks for it"
    unet, vae = (split_adapters(published.group(f"state_dict_{name}")) for name in ("unet", "vae"))
    unet_layers, vae_layers = unet.layers("default"), vae.layers("vae_skip")
    check_layers(unet_layers, _wanted(published, bases.unet), "UNet")
    encoder = [layer for layer in suffix_layers(bases.vae, VAE_LAYERS) if layer.startswith("encoder.")]
    check_layers(vae_layers, encoder, "VAE")
    unet_mix = _by_layer(_mixes(published, "unet", degradation), _unet_block)
    vae_mix = _by_layer(_mixes(published, "vae", degradation), _vae_block)
    return Merged(
        unets={"": merge(with_trained(bases.unet, unet.trained, "UNet"), unet_layers, peft_scale, unet_mix)},
        vae=merge(with_trained(bases.vae, vae.trained, "VAE"), vae_layers, peft_scale, vae_mix),
    )


def _wanted(published: Published, unet: State) -> list[str]:
    """Return the UNet's layers that the file was trained with, by its own list."""
    return suffix_layers(unet, tuple(published.names("unet_lora_target_modules")))


def _mixes(published: Published, which: str, degradation: Degradation) -> Tensor:
    """Return M^T of every block of a network, [blocks, rank, rank], float32."""
    # Fourier features of both numbers, the sines and cosines of one after those of the other.
    frequencies = published.tensors.get("w")
    if frequencies is None:
        raise CheckpointError("the file has no tensor 'w': it is incomplete, or another model's")
    angles = torch.tensor(degradation)[:, None] * frequencies.float() * (2.0 * math.pi)
    features = torch.cat([angles.sin(), angles.cos()], dim=1).flatten()
    damage = F.relu(_linear(published, f"state_dict_{which}_de_mlp", "0.", features))
    embeddings = published.group(f"state_embeddings/state_dict_{which}_block")["weight"].float()
    blocks = F.relu(_linear(published, f"state_dict_{which}_block_mlp", "0.", embeddings))
    joined = torch.cat([damage.expand(len(blocks), -1), blocks], dim=1)
    mixes = _linear(published, f"state_dict_{which}_fuse_mlp", "", joined)
    rank = math.isqrt(mixes.shape[1])
    return mixes.reshape(len(blocks), rank, rank).transpose(1, 2)


def _linear(published: Published, group: str, layer: str, x: Tensor) -> Tensor:
    weights = published.group(group)
    return F.linear(x, weights[f"{layer}weight"].float(), weights[f"{layer}bias"].float())


def _by_layer(mixes: Tensor, block: Callable[[list[str]], int]) -> Callable[[str], Tensor]:
    return lambda layer: mixes[block(layer.split("."))]


def _unet_block(parts: list[str]) -> int:
    if parts[0] == "mid_block":
        return MID
    return {"down_blocks": 0, "up_blocks": UP}[parts[0]] + int(parts[1]) if parts[0].endswith("_blocks") else LAST


def _vae_block(parts: list[str]) -> int:
    if parts[1] == "down_blocks":
        return int(parts[2])
    return -2 if parts[1] == "mid_block" else LAST


S3DIFF = Relative(
    key="s3diff",
    title="S3Diff",
    license="Apache-2.0; base model: Stability AI Community License",
    source="https://github.com/ArcticHare105/S3Diff",
    base=SD_TURBO,
    timestep=TIMESTEP,
    coefficients=epsilon_coefficients(TIMESTEP),
    guidance=1.07,
    needs_degradation=True,
    marks=frozenset({"state_dict_unet_de_mlp", "state_dict_vae_de_mlp"}),
    merge=merged,
)
