"""A stand-in for a text-to-image checkpoint of another project, as far as a host looks at one: all weights are zero.

Role: lets a workflow run that ends in GenDR and begins with a model too large for a test. The picture it makes is an
even grey.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ldm import unet_to_ldm

from gendr_core.nets import VAE, UNet
from gendr_core.spec import UNetArch, VAEArch

UNET_NAMES, CLIP_NAMES = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
VAE_NAMES = "first_stage_model."
# What the host knows SD1.5 by: the first width and the width of a prompt. Everything else is read from the file.
FIRST_WIDTH, PROMPT_WIDTH, LATENT_CHANNELS = 320, 768, 4
CLIP_LAYERS, CLIP_HIDDEN, CLIP_TOKENS, CLIP_WORDS = 12, 3072, 77, 49408
DECODER_WIDTH = 64

Shape = tuple[int, ...]


def write_text_to_image(path: Path) -> None:
    """Write a checkpoint of SD1.5's kind: a UNet of two levels, CLIP-L and the small decoder that goes with it.

    The file says that it has 250 MB.
    """
    write_zeros(path, {**_unet(), **_text_encoder(), **_decoder()})


def write_kl_vae(path: Path, latent_channels: int) -> None:
    """Write a VAE of the widths that the host takes for granted: SD1.5's with 4 latent channels, SD3's with 16."""
    arch = VAEArch(
        latent_channels=latent_channels, block_out_channels=(128, 256, 512, 512), quant_conv=latent_channels == 4
    )
    named = {name: tuple(weight.shape) for name, weight in VAE(arch, device="meta").state_dict().items()}
    write_zeros(path, named)


def write_zeros(path: Path, shapes: Mapping[str, Shape]) -> None:
    """Write a safetensors file of half-precision zeros, which take no room on disks that can leave holes."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _unet() -> dict[str, Shape]:
    """Return the shapes of the UNet; the layers around attention are convolutions in SD1.5."""
    arch = UNetArch(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(FIRST_WIDTH, FIRST_WIDTH),
        attention_levels=(True, False),
        layers_per_block=1,
        cross_attention_dim=PROMPT_WIDTH,
    )
    named = {name: tuple(weight.shape) for name, weight in UNet(arch, device="meta").state_dict().items()}
    linear = ("proj_in.weight", "proj_out.weight")
    shapes = unet_to_ldm(named, arch)
    return {UNET_NAMES + name: (*shape, 1, 1) if name.endswith(linear) else shape for name, shape in shapes.items()}


def _text_encoder() -> dict[str, Shape]:
    """Return the shapes of CLIP-L."""
    width = PROMPT_WIDTH
    shapes: dict[str, Shape] = {
        "embeddings.token_embedding.weight": (CLIP_WORDS, width),
        "embeddings.position_embedding.weight": (CLIP_TOKENS, width),
    }
    linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (CLIP_HIDDEN, width), "mlp.fc2": (width, CLIP_HIDDEN)}
    norms = ["final_layer_norm"]
    for layer in range(CLIP_LAYERS):
        within = f"encoder.layers.{layer}."
        norms += [f"{within}layer_norm1", f"{within}layer_norm2"]
        for name, shape in linear.items():
            shapes |= {f"{within}{name}.weight": shape, f"{within}{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {CLIP_NAMES + name: shape for name, shape in shapes.items()}


def _decoder() -> dict[str, Shape]:
    """Return the shapes of the small decoder of SD1.5, which are those of its layers in a row."""
    width, shapes, index = DECODER_WIDTH, dict[str, Shape](), 3
    shapes |= {"1.weight": (width, LATENT_CHANNELS, 3, 3), "1.bias": (width,)}
    for blocks in (3, 3, 3, 1):
        for _ in range(blocks):
            for conv in (0, 2, 4):
                shapes |= {f"{index}.conv.{conv}.weight": (width, width, 3, 3), f"{index}.conv.{conv}.bias": (width,)}
            index += 1
        if blocks == 3:  # An enlargement, which has no weights, and a convolution without bias.
            shapes[f"{index + 1}.weight"] = (width, width, 3, 3)
            index += 2
    shapes |= {f"{index}.weight": (3, width, 3, 3), f"{index}.bias": (3,)}
    return {f"{VAE_NAMES}taesd_decoder.{name}": shape for name, shape in shapes.items()}
