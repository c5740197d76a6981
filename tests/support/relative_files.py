"""Files of GenDR's relatives with seeded random weights: a small base model, and what each relative publishes for it.

Names and shapes are those of the published files. Recorded results of the relatives' own code on exactly these weights
are in tests/parity/relatives; a change here makes them useless.
"""

import json
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gendr_core.nets import VAE, UNet
from gendr_core.pickled_child import VALUES_KEY, flatten
from gendr_core.spec import UNetArch, VAEArch

UNET_ARCH = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(64, 64, 128, 128),
    layers_per_block=1,
    cross_attention_dim=32,
)
VAE_ARCH = VAEArch(latent_channels=4, block_out_channels=(32, 32, 64, 64), layers_per_block=1)
TVT_UNET_ARCH = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(64, 64, 64, 128, 128),
    attention_levels=(False, True, True, True, False),
    layers_per_block=1,
    cross_attention_dim=32,
)
TVT_VAE_ARCH = VAEArch(latent_channels=4, block_out_channels=(32, 64, 64), mid_attention=False, mid_block=False)
TVT_TRAINED = ("down_blocks.0", "up_blocks.3.upsamplers.0", "up_blocks.4", "conv_in", "conv_out")
"""What TVT's file has whole, by parts of the names."""
TOKENS = 5
RANK = 4
S3DIFF_RANKS = {"unet": 8, "vae": 4}
DEGRADATION = (0.3, 0.6)

PATTERNS = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out"),
    *("proj_out", "proj_in", "ff.net.2", "ff.net.0.proj"),
)
"""Names that mark a layer for an adapter."""

File = dict[str, object]


def noise(name: str, shape: Iterable[int], scale: float = 1.0) -> Tensor:
    """Return normals whose seed is ``name``: float32, the same on every machine."""
    seed = sum((index + 1) * ord(letter) for index, letter in enumerate(name))
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) * scale


@cache
def base_unet() -> dict[str, Tensor]:
    """Return the base UNet's weights under diffusers names, the same dict every time."""
    return _weights("unet", UNet(UNET_ARCH, device="meta").state_dict())


@cache
def base_vae() -> dict[str, Tensor]:
    """Return the base VAE's weights likewise; its pixels stay mostly within [-1, 1]."""
    state = _weights("vae", VAE(VAE_ARCH, device="meta").state_dict())
    state["decoder.conv_out.weight"] *= 0.3
    return state


@cache
def tvt_unet() -> dict[str, Tensor]:
    """Return the UNet in TVT's folder TVTUNet, likewise."""
    return _weights("tvt unet", UNet(TVT_UNET_ARCH, device="meta").state_dict())


@cache
def tvt_vae() -> dict[str, Tensor]:
    """Return the VAE in TVT's vae.ckpt, likewise and without its prefix."""
    state = _weights("tvt vae", VAE(TVT_VAE_ARCH, device="meta").state_dict())
    state["decoder.conv_out.weight"] *= 0.3
    return state


def prompts() -> dict[str, Tensor]:
    """Return both embeddings under the names of a prompt file."""
    return {
        f"prompt.{which}": noise(which, (TOKENS, UNET_ARCH.cross_attention_dim)) for which in ("positive", "negative")
    }


def picture() -> Tensor:
    """Return the picture that the relatives restored, [1, 3, 64, 64] in [-1, 1]."""
    return noise("picture", (1, 3, 64, 64), 0.5).clamp(-1.0, 1.0)


def write_bases(folder: Path) -> tuple[Path, Path, Path]:
    """Write the base as diffusers does and a prompt file; return the folder twice, for UNet and VAE, and the file."""
    for name, state in (("unet", base_unet()), ("vae", base_vae())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(state, folder / name / "diffusion_pytorch_model.safetensors")
    save_file(prompts(), folder / "prompts.safetensors")
    return folder, folder, folder / "prompts.safetensors"


def write_tvt_bases(folder: Path) -> tuple[Path, Path, Path]:
    """Write what TVT publishes beside its adapters and a prompt file; return folder TVTUNet, vae.ckpt and that file."""
    (folder / "TVTUNet" / "unet").mkdir(parents=True, exist_ok=True)
    save_file(tvt_unet(), folder / "TVTUNet" / "unet" / "diffusion_pytorch_model.safetensors")
    state = {f"vaeDe4.{name}": tensor for name, tensor in tvt_vae().items()}
    trained_beside = {"loss.discriminator.main.0.weight": noise("discriminator", (8, 3, 4, 4))}
    torch.save({"epoch": 1, "global_step": 2, "state_dict": {**state, **trained_beside}}, folder / "vae.ckpt")
    save_file(prompts(), folder / "prompts.safetensors")
    return folder / "TVTUNet", folder / "vae.ckpt", folder / "prompts.safetensors"


def osediff() -> File:
    """Return what osediff.pkl holds."""
    unet, vae = base_unet(), base_vae()
    parts = _parts(unet, decoder_ends=("up_blocks", "conv_out"))
    tensors: dict[str, Tensor] = {}
    for part, layers in parts.items():
        tensors.update(_adapters(unet, layers, f"default_{part}", RANK))
    for leaf in ("weight", "bias"):
        tensors[f"conv_in.base_layer.{leaf}"] = noise(f"trained {leaf}", unet[f"conv_in.{leaf}"].shape, 0.2)
    encoder = [
        name.removesuffix(".weight")
        for name in _weight_names(vae)
        if ("encoder" in name and any(pattern in name for pattern in PATTERNS[:10])) or name == "quant_conv.weight"
    ]
    return {
        "vae_lora_encoder_modules": encoder,
        **{f"unet_lora_{part}_modules": layers for part, layers in parts.items()},
        "rank_unet": RANK,
        "rank_vae": RANK,
        "state_dict_unet": tensors,
        "state_dict_vae": _adapters(vae, encoder, "default_encoder", RANK),
    }


def pisa_sr() -> File:
    """Return what pisa_sr.pkl holds."""
    unet = base_unet()
    parts = _parts(unet, decoder_ends=("up_blocks", "conv_out"))
    kinds = ("pix", "sem")
    tensors: dict[str, Tensor] = {}
    for kind in kinds:
        for part, layers in parts.items():
            tensors.update(_adapters(unet, layers, f"default_{part}_{kind}", RANK))
    lists = {f"unet_lora_{part}_modules_{kind}": layers for kind in kinds for part, layers in parts.items()}
    return {**lists, "lora_rank_unet_pix": RANK, "lora_rank_unet_sem": RANK, "state_dict_unet": tensors}


def hypir() -> File:
    """Return what HYPIR_sd2.pth holds."""
    unet = base_unet()
    suffixes = tuple(pattern for pattern in PATTERNS if pattern != "conv_in")
    return dict(_adapters(unet, _ending(unet, suffixes), "default", RANK))


def s3diff() -> File:
    """Return what s3diff.pkl holds."""
    unet, vae = base_unet(), base_vae()
    suffixes = tuple(pattern for pattern in PATTERNS if pattern != "conv_in")
    encoder = [layer for layer in _ending(vae, PATTERNS[:10]) if layer.startswith("encoder.")]
    conv_in = {
        f"conv_in.{leaf}": noise(f"trained {leaf}", unet[f"conv_in.{leaf}"].shape, 0.2) for leaf in ("weight", "bias")
    }
    file: File = {
        "unet_lora_target_modules": list(suffixes),
        "vae_lora_target_modules": r"^encoder\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_k|to_q|to_v|to_out\.0)$",  # noqa: E501 - as published
        "rank_unet": S3DIFF_RANKS["unet"],
        "rank_vae": S3DIFF_RANKS["vae"],
        "state_dict_unet": {**_adapters(unet, _ending(unet, suffixes), "default", S3DIFF_RANKS["unet"]), **conv_in},
        "state_dict_vae": _adapters(vae, encoder, "vae_skip", S3DIFF_RANKS["vae"]),
        "w": torch.nn.Parameter(noise("w", (64,)), requires_grad=False),
        "state_embeddings": {
            f"state_dict_{which}_block": {"weight": noise(f"{which} blocks", (blocks, 64))}
            for which, blocks in (("vae", 6), ("unet", 10))
        },
    }
    for which, rank in S3DIFF_RANKS.items():
        for part, layer, shape in (
            ("de_mlp", "0.", (256, 256)),
            ("block_mlp", "0.", (64, 64)),
            ("fuse_mlp", "", (rank**2, 320)),
        ):
            name = f"{which} {part}"
            file[f"state_dict_{which}_{part}"] = {
                f"{layer}weight": noise(f"{name} weight", shape, shape[1] ** -0.5),
                f"{layer}bias": noise(f"{name} bias", shape[:1], 0.1),
            }
    return file


def tvt() -> File:
    """Return what model_TVT.pkl holds."""
    unet = tvt_unet()
    parts = _parts(unet, decoder_ends=("up_blocks",))
    tensors: dict[str, Tensor] = {}
    for part, layers in parts.items():
        tensors.update(_adapters(unet, layers, f"default_{part}", RANK))
    adapted = {layer for layers in parts.values() for layer in layers}
    for name, tensor in unet.items():
        layer, _, leaf = name.rpartition(".")
        if any(part in name for part in TVT_TRAINED):
            saved = f"{layer}.base_layer.{leaf}" if layer in adapted else name
            tensors[saved] = tensor + noise(f"trained {name}", tensor.shape, 0.05)
    lists = {f"unet_lora_{part}_modules": layers for part, layers in parts.items()}
    return {**lists, "rank_unet": RANK, "state_dict_unet": tensors}


def write_published(path: Path, relative: str) -> Path:
    """Write what a relative publishes and return ``path``: as safetensors where it ends so, else pickled."""
    file = FILES[relative]()
    if path.suffix != ".safetensors":
        torch.save(file, path)
        return path
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {}
    flatten(file, "", tensors, values)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {VALUES_KEY: json.dumps(values)})
    return path


FILES = {"osediff": osediff, "pisa-sr": pisa_sr, "hypir-sd2": hypir, "s3diff": s3diff, "tvt": tvt}
"""What each relative publishes, by its name on the command line."""


def _weights(network: str, shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, like in shapes.items():
        one = noise(f"{network}.{name}", like.shape)
        if like.ndim > 1:
            state[name] = one / math.sqrt(math.prod(like.shape[1:]))
        else:
            norm = re.search(r"norm\w*\.weight$", name) is not None
            state[name] = 0.1 * one + (1.0 if norm else 0.0)
    return state


def _weight_names(state: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in state.items() if name.endswith(".weight") and tensor.ndim > 1]


def _parts(unet: dict[str, Tensor], decoder_ends: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the layers with adapters, on the way down, on the way up, and the others."""
    parts: dict[str, list[str]] = {"encoder": [], "decoder": [], "others": []}
    for name in _weight_names(unet):
        if "norm" in name or not any(pattern in name for pattern in PATTERNS):
            continue
        down = "down_blocks" in name or "conv_in" in name
        part = "encoder" if down else "decoder" if any(end in name for end in decoder_ends) else "others"
        parts[part].append(name.removesuffix(".weight"))
    return parts


def _ending(state: dict[str, Tensor], suffixes: tuple[str, ...]) -> list[str]:
    layers = (name.removesuffix(".weight") for name in _weight_names(state))
    return [
        layer for layer in layers if layer.endswith(tuple(f".{suffix}" for suffix in suffixes)) or layer in suffixes
    ]


def _adapters(state: dict[str, Tensor], layers: list[str], adapter: str, rank: int) -> dict[str, Tensor]:
    """Return both halves for each layer; together they change it by about a third of its size."""
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        channels_out, *rest = state[f"{layer}.weight"].shape
        down = f"{layer}.lora_A.{adapter}.weight"
        up = f"{layer}.lora_B.{adapter}.weight"
        tensors[down] = noise(down, (rank, *rest), 0.3 / math.sqrt(math.prod(rest)))
        tensors[up] = noise(up, (channels_out, rank, *(1 for _ in rest[1:])), 0.5)
    return tensors
