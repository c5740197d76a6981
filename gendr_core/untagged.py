"""What a file without GenDR metadata is: the network's shape from its tensors, and the values that go without saying.

Role: stands in for ``metadata`` in ``checkpoint`` when a file has none. Works on shapes under diffusers names
(``layouts``); what it cannot know is left for the user to give.
"""

from collections.abc import Mapping
from dataclasses import asdict

from .errors import CheckpointError
from .header import Shape
from .layouts import count_distinct
from .spec import PIXEL_CHANNELS, ModelSpec, UNetArch, VAEArch

KNOWN_VAE_SCALING = {57_266_643: 0.2614, 83_653_863: 0.18215, 15_162_343: 0.18215}
"""Scaling factor by number of parameters: VAE16 (algorithm.md A1), the 4-channel VAE of SD 1 and 2, and that of TVT."""

OTHER_VAES = {83_819_683: "the VAE of SD3 or FLUX"}
"""By number of parameters: as many latent channels as VAE16, which mean something else."""

GENDR_CHANNELS = 16
"""Latent channels of GenDR, whose paper says how such a UNet is run (algorithm.md A2)."""

SD1_CONTEXT_DIM = 768
"""Width of SD 1.x's text embedding; its UNets have 8 heads at every width, which SD2.1's rule cannot express."""


def infer_unet_arch(shapes: Mapping[str, Shape]) -> UNetArch:
    """Return the UNet's shape from tensor shapes under diffusers names.

    Head width and norm groups leave no trace in shapes: 64 and 32 are taken, as in SD2.1.

    Raises:
        CheckpointError: a tensor that is needed is missing, the widths do not fit 64 and 32, or it is an SD 1.x UNet.
    """
    levels = count_distinct(shapes, r"down_blocks\.(\d+)\.")
    context_dim = _size(shapes, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1, 2)
    if context_dim == SD1_CONTEXT_DIM:
        raise CheckpointError(
            f"expected an SD2.1-style UNet with heads of 64 channels, got SD 1.x (text width {SD1_CONTEXT_DIM}, 8 heads"
            " at every width): use a model made from SD2.1"
        )
    widths = tuple(_size(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0, 4) for i in range(levels))
    in_channels, out_channels = _size(shapes, "conv_in.weight", 1, 4), _size(shapes, "conv_out.weight", 0, 4)
    try:
        return UNetArch(
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=widths,
            attention_levels=tuple(f"down_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(levels)),
            layers_per_block=count_distinct(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
            cross_attention_dim=context_dim,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error} (no GenDR metadata: 32 norm groups and heads of 64 are assumed)") from error


def infer_vae_arch(shapes: Mapping[str, Shape]) -> VAEArch:
    """Return the VAE's shape from tensor shapes under diffusers names; 32 norm groups are taken, as in SD.

    Raises:
        CheckpointError: a tensor that is needed is missing, or the widths do not divide by 32.
    """
    levels = count_distinct(shapes, r"encoder\.down_blocks\.(\d+)\.")
    widths = tuple(_size(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0, 4) for i in range(levels))
    in_channels, latent_channels = (_size(shapes, f"{side}coder.conv_in.weight", 1, 4) for side in ("en", "de"))
    out_channels = _size(shapes, "decoder.conv_out.weight", 0, 4)
    try:
        return VAEArch(
            in_channels=in_channels,
            out_channels=out_channels,
            latent_channels=latent_channels,
            block_out_channels=widths,
            layers_per_block=count_distinct(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            quant_conv="quant_conv.weight" in shapes or "post_quant_conv.weight" in shapes,
            mid_attention="encoder.mid_block.attentions.0.group_norm.weight" in shapes,
            mid_block=any(name.startswith("encoder.mid_block.") for name in shapes),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error} (no GenDR metadata: 32 norm groups are assumed)") from error


def unstated_unet(arch: UNetArch) -> dict[str, object]:
    """Return the spec's values that go without saying, by the channels; what is left out, a user has to give.

    16 in and out: all of GenDR's paper. 192: that end is pixel (un)shuffle, and latents have no scale if both ends are.
    Different channels in and out leave nothing to skip: c_skip is 0.

    Raises:
        CheckpointError: different channels in and out, none of them pixels.
    """
    pixels_in, pixels_out = arch.in_channels == PIXEL_CHANNELS, arch.out_channels == PIXEL_CHANNELS
    same = arch.in_channels == arch.out_channels
    if same and arch.in_channels == GENDR_CHANNELS:
        return asdict(ModelSpec(arch=arch))
    if not (same or pixels_in or pixels_out):
        raise CheckpointError(
            f"expected as many channels out as in, got {arch.in_channels} in and {arch.out_channels} out, as"
            " inpainting, depth and upscaling models have: use a plain text-to-image UNet or a GenDR UNet"
        )
    spec = ModelSpec(
        arch=arch,
        c_skip=0.0,
        front="pixel_unshuffle8" if pixels_in else "vae16",
        back="pixel_shuffle8" if pixels_out else "vae16",
        latent_scaling=1.0,
    )
    values: dict[str, object] = asdict(spec)
    unknown = {"timestep", "prediction", "c_out"}
    unknown |= {"c_skip"} if same else set()
    unknown |= set() if pixels_in and pixels_out else {"latent_scaling"}
    return {name: value for name, value in values.items() if name not in unknown}


def unstated_vae(num_parameters: int) -> dict[str, object]:
    """Return the VAE's scaling factor by the spec's name, or nothing where the number of parameters is not known.

    Raises:
        CheckpointError: it is a VAE that is easily mistaken for VAE16.
    """
    if num_parameters in OTHER_VAES:
        raise CheckpointError(
            f"expected VAE16 (vae-kl-f8-d16, 57,266,643 parameters), got {OTHER_VAES[num_parameters]}"
            f" ({num_parameters:,} parameters), whose latents no GenDR model knows: choose the model's own VAE"
        )
    return {"latent_scaling": KNOWN_VAE_SCALING[num_parameters]} if num_parameters in KNOWN_VAE_SCALING else {}


def _size(shapes: Mapping[str, Shape], name: str, axis: int, rank: int) -> int:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"the tensor {name} is missing: the file is incomplete")
    if len(shape) != rank:
        raise CheckpointError(f"expected {rank} axes in {name}, got shape {list(shape)}: the file is damaged")
    return shape[axis]
