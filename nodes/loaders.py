"""The two loaders: files of the host's model folders, or of the pack itself, become a model or a VAE.

Role: the first nodes of a workflow; ``restore`` and ``latent`` take what they give.
"""

from comfy_api.latest import io

from ..gendr_core.model import DEFAULT_UNET
from .host import file_stamp, load_hosted_unet, load_hosted_vae, weight_files
from .sockets import GenDRModel, node_schema

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
                )
            ],
            outputs=[GenDRModel.Output(display_name="model", tooltip="The restoration model, for the GenDR nodes.")],
            search_aliases=["upscale model", "restoration model"],
        )

    @classmethod
    def fingerprint_inputs(cls, unet: str) -> str:
        """Return a text that changes with the file, so that a replaced file is read again."""
        return file_stamp("diffusion_models", unet)

    @classmethod
    def execute(cls, unet: str) -> io.NodeOutput:
        """Load the file."""
        return io.NodeOutput(load_hosted_unet(unet))


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
                )
            ],
            outputs=[
                io.Vae.Output(
                    display_name="vae", tooltip="The VAE, for the GenDR nodes and for ComfyUI's own VAE nodes."
                )
            ],
            search_aliases=["vae-kl-f8-d16"],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_file: str) -> str:
        """Return a text that changes with the file, so that a replaced file is read again."""
        return file_stamp("vae", vae_file)

    @classmethod
    def execute(cls, vae_file: str) -> io.NodeOutput:
        """Load the file."""
        return io.NodeOutput(load_hosted_vae(vae_file))
