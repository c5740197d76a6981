"""The main node: a whole restoration in one step.

Role: after ``loaders``; the same work in parts is in ``latent`` and ``color``.
"""

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..gendr_core.config import ColorMethod
from ..gendr_core.pipeline import restore
from .frames import guides_of
from .host import HostedUNet, HostedVAE, gendr_vae, host_for
from .sockets import guide_inputs, image_input, model_input, node_schema, vae_input
from .widgets import (
    color_input,
    finish_inputs,
    guidance_input,
    memory_inputs,
    memory_options,
    restore_options,
    size_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from .widgets import MemoryWidgets


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
                *guide_inputs(),
                *size_inputs(),
                color_input(
                    "How the colours of the input are kept. wavelet: coarse colours from the input, detail from the"
                    " model; adain: mean and contrast per channel; lab: distribution in CIELAB; ycbcr: the input's"
                    " chroma; none."
                ),
                *finish_inputs(),
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
        detail: float,
        feather: int,
        guidance: float,
        vae: HostedVAE | None = None,
        mask: "Tensor | None" = None,
        color_reference: "Tensor | None" = None,
        **memory: "Unpack[MemoryWidgets]",
    ) -> io.NodeOutput:
        """Restore the batch."""
        finish = {"color": color, "detail": detail, "feather": feather}
        options = restore_options(size, factor, edge, guidance=guidance, memory=memory_options(**memory), **finish)
        host, guides = host_for(model, vae), guides_of(mask, color_reference)
        return io.NodeOutput(restore(image, model.unet, gendr_vae(vae), options, host=host, guides=guides))
