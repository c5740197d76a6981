"""The loaders: files of the host's model folders, or of the pack itself, become a model or a VAE.

Role: the first nodes of a workflow; ``restore`` and ``latent`` take what they give, samplers of the host the base.
"""

from comfy_api.latest import io

from ..gendr_core.checkpoint import read_unet
from ..gendr_core.config import WeightFormat
from ..gendr_core.errors import CheckpointError
from ..gendr_core.model import DEFAULT_UNET, bundled_weights
from ..gendr_core.spec import ModelSpec, UNetArch
from .host import file_stamp, host_diffusion_model, load_hosted_unet, load_hosted_vae, weight_files, weight_path
from .sockets import GenDRModel, node_schema
from .widgets import weights_input

DEFAULT_VAE = "gendr-mini-vae16.safetensors"


class LoadUNet(io.ComfyNode):
    """Load GenDR UNet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_LoadUNet",
            "Load GenDR UNet",
            "Loads a one-step restoration model. The gendr-mini models come with this pack; other files go into the"
            " diffusion_models folder.",
            inputs=[
                io.Combo.Input(
                    "unet",
                    options=weight_files("diffusion_models"),
                    default=DEFAULT_UNET,
                    tooltip="Weight file (.safetensors) from models/diffusion_models, or a gendr-mini of this pack."
                    " gendr-mini-pixel works by itself, gendr-mini-unet16 needs the VAE gendr-mini-vae16.",
                ),
                weights_input(),
            ],
            outputs=[GenDRModel.Output(display_name="model", tooltip="The restoration model, for the GenDR nodes.")],
            search_aliases=["upscale model", "restoration model"],
        )

    @classmethod
    def fingerprint_inputs(cls, unet: str, weights: WeightFormat = "dtype") -> str:
        """Return a text that changes with the file, so that a replaced file is read again."""
        del weights
        return file_stamp("diffusion_models", unet)

    @classmethod
    def execute(cls, unet: str, weights: WeightFormat = "dtype") -> io.NodeOutput:
        """Load the file."""
        return io.NodeOutput(load_hosted_unet(unet, weights))


class LoadVAE16(io.ComfyNode):
    """Load GenDR VAE16."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_LoadVAE16",
            "Load GenDR VAE16",
            "Loads a VAE with 16 latent channels, which ComfyUI's own Load VAE cannot read. The result is an ordinary"
            " VAE: VAE Encode, VAE Decode and their tiled forms take it too.",
            inputs=[
                io.Combo.Input(
                    "vae_file",
                    display_name="vae",
                    options=weight_files("vae"),
                    default=DEFAULT_VAE,
                    tooltip="Weight file (.safetensors) from models/vae, or the gendr-mini-vae16 of this pack.",
                ),
                weights_input(),
            ],
            outputs=[
                io.Vae.Output(
                    display_name="vae", tooltip="The VAE, for the GenDR nodes and for ComfyUI's own VAE nodes."
                )
            ],
            search_aliases=["vae-kl-f8-d16"],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_file: str, weights: WeightFormat = "dtype") -> str:
        """Return a text that changes with the file, so that a replaced file is read again."""
        del weights
        return file_stamp("vae", vae_file)

    @classmethod
    def execute(cls, vae_file: str, weights: WeightFormat = "dtype") -> io.NodeOutput:
        """Load the file."""
        return io.NodeOutput(load_hosted_vae(vae_file, weights))


class LoadBase(io.ComfyNode):
    """Load SD2.1-VAE16 Base."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_LoadBase",
            "Load SD2.1-VAE16 Base",
            "Loads a text-to-image model of SD2.1's shape on 16-channel latents as an ordinary model for KSampler. It"
            " goes with the CLIP of SD2.x, Load GenDR VAE16 and an empty latent of 16 channels (EmptySD3LatentImage).",
            inputs=[
                io.Combo.Input(
                    "base",
                    options=[name for name in weight_files("diffusion_models") if name not in bundled_weights()],
                    tooltip="Weight file (.safetensors) from models/diffusion_models, as stage base of the training"
                    " writes it.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model, for KSampler and the other nodes of ComfyUI's own."
                )
            ],
            search_aliases=["SD2.1", "text to image", "VAE16", "16 channel latent"],
        )

    @classmethod
    def fingerprint_inputs(cls, base: str) -> str:
        """Return a text that changes with the file, so that a replaced file is read again."""
        return file_stamp("diffusion_models", base)

    @classmethod
    def execute(cls, base: str) -> io.NodeOutput:
        """Load the file."""
        checkpoint = read_unet(weight_path("diffusion_models", base))
        return io.NodeOutput(host_diffusion_model(checkpoint, ldm_shape(base, checkpoint.spec)))


def ldm_shape(name: str, spec: ModelSpec) -> dict[str, object]:
    """Return the shape of a UNet in the words of LDM, which the host knows SD2.1 by.

    Raises:
        CheckpointError: the host would not take it for SD2.1, or it does not work on latents.
    """
    arch, like = spec.arch, UNetArch()
    first, heads = arch.block_out_channels[0], (arch.head_dim, arch.cross_attention_dim, arch.norm_groups)
    expected = (like.block_out_channels[0], (like.head_dim, like.cross_attention_dim, like.norm_groups))
    if (first, heads) != expected or any(width % first for width in arch.block_out_channels):
        raise CheckpointError(
            f"{name}: expected a UNet of SD2.1's shape (widths that are multiples of 320, heads of 64, prompts of 1024,"
            f" 32 groups), got widths {arch.block_out_channels}, heads of {arch.head_dim}, prompts of"
            f" {arch.cross_attention_dim}, {arch.norm_groups} groups: choose a file of stage base at full size"
        )
    if (spec.front, spec.back) != ("vae16", "vae16"):
        raise CheckpointError(
            f"{name}: expected a UNet from latents to latents, got one from {spec.front} to {spec.back}: choose a file"
            " of stage base"
        )
    depths = [int(attention) for attention in arch.attention_levels]
    return {
        "num_res_blocks": [arch.layers_per_block] * arch.num_levels,
        "channel_mult": [width // first for width in arch.block_out_channels],
        "transformer_depth": [depth for depth in depths for _ in range(arch.layers_per_block)],
        "transformer_depth_output": [depth for depth in depths for _ in range(arch.layers_per_block + 1)],
        "transformer_depth_middle": 1,
    }
