"""The main node: a whole restoration in one step.

Role: after ``loaders``; the same work in parts is in ``latent`` and ``color``.
"""

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..gendr_core.config import ColorMethod
from ..gendr_core.pipeline import restore
from .host import HostedUNet, HostedVAE, gendr_vae, host_for
from .sockets import (
    color_input,
    guidance_input,
    image_input,
    memory_inputs,
    memory_options,
    model_input,
    node_schema,
    restore_options,
    size_inputs,
    vae_input,
)

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from .sockets import MemoryWidgets


class Restore(io.ComfyNode):
    """GenDR Restore."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_Restore",
            "GenDR Restore",
            "Restores and enlarges an image in one step: noise, blur and compression blocks go, detail comes back. The"
            " same input always gives the same output. Any size from 1x1 pixel, batches, gray, RGB and RGBA.",
            inputs=[
                image_input("Image to restore, at its own size. Every image of a batch is restored by itself."),
                model_input(),
                vae_input(),
                *size_inputs(),
                color_input(
                    "How the colours of the input are kept. wavelet: coarse colours from the input, detail from the"
                    " model; adain: mean and contrast per channel; lab: distribution in CIELAB; ycbcr: the input's"
                    " chroma; none."
                ),
                guidance_input(),
                *memory_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The restored image, of exactly the size asked for.")
            ],
            search_aliases=["upscale", "super resolution", "restore", "enhance", "denoise", "deblur", "x4", "one-step"],
        )

    @classmethod
    def execute(
        cls,
        image: "Tensor",
        model: HostedUNet,
        size: str,
        factor: float,
        edge: int,
        color: ColorMethod,
        guidance: float,
        vae: HostedVAE | None = None,
        **memory: "Unpack[MemoryWidgets]",
    ) -> io.NodeOutput:
        """Restore the batch."""
        widgets = memory_options(**memory)
        options = restore_options(size, factor, edge, color=color, guidance=guidance, memory=widgets)
        return io.NodeOutput(restore(image, model.unet, gendr_vae(vae), options, host=host_for(model, vae)))
