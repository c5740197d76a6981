"""LDM names of our networks' tensors, built from how LDM counts its blocks: the way opposite to ``layouts``."""

import re
from collections.abc import Mapping
from typing import TypeVar

from gendr_core.spec import UNetArch

T = TypeVar("T")

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_to_ldm(named: Mapping[str, T], arch: UNetArch) -> dict[str, T]:
    """Return the same values under LDM's names."""
    return {_unet_name(name, arch): value for name, value in named.items()}


def vae_to_ldm(named: Mapping[str, T], num_levels: int) -> dict[str, T]:
    """Return the same values under LDM's names."""
    return {_vae_name(name, num_levels): value for name, value in named.items()}


def _unet_name(name: str, arch: UNetArch) -> str:
    module, leaf = name.rsplit(".", 1)
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{leaf}"
    block, rest = name.split(".", 1)
    if block == "mid_block":
        part, number, rest = rest.split(".", 2)
        return f"middle_block.1.{rest}" if part == "attentions" else f"middle_block.{2 * int(number)}.{_resnet(rest)}"
    level, part, layer, rest = rest.split(".", 3)
    per_level = arch.layers_per_block + 1
    if block == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{(int(level) + 1) * per_level}.0.op.{leaf}"
        number = 1 + int(level) * per_level + int(layer)
        return f"input_blocks.{number}." + (f"1.{rest}" if part == "attentions" else f"0.{_resnet(rest)}")
    if part == "upsamplers":
        attention = arch.attention_levels[arch.num_levels - 1 - int(level)]
        return f"output_blocks.{int(level) * per_level + arch.layers_per_block}.{2 if attention else 1}.conv.{leaf}"
    number = int(level) * per_level + int(layer)
    return f"output_blocks.{number}." + (f"1.{rest}" if part == "attentions" else f"0.{_resnet(rest)}")


def _resnet(rest: str) -> str:
    module, leaf = rest.rsplit(".", 1)
    return f"{RESNET[module]}.{leaf}"


def _vae_name(name: str, num_levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"mid_block\.attentions\.0\.(.+)\.(\w+)$", lambda m: f"mid.attn_1.{VAE_ATTENTION[m[1]]}.{m[2]}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{num_levels - 1 - int(m[1])}.block", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{num_levels - 1 - int(m[1])}.upsample", name)
