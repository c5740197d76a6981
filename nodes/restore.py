"""The main node: a whole restoration in one step.

Role: after ``loaders``; the same work in parts is in ``latent`` and ``color``.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..gendr_core.config import MAX_DETAIL, MAX_FEATHER_PX, ColorMethod, RestoreOptions
from ..gendr_core.finish import Guides
from ..gendr_core.pipeline import restore
from .host import HostedUNet, HostedVAE, gendr_vae, host_for
from .sockets import (
    advanced,
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

DEFAULTS = RestoreOptions()


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
                *_guide_inputs(),
                *size_inputs(),
                color_input(
                    "How the colours of the input are kept. wavelet: coarse colours from the input, detail from the"
                    " model; adain: mean and contrast per channel; lab: distribution in CIELAB; ycbcr: the input's"
                    " chroma; none."
                ),
                guidance_input(),
                *memory_inputs(),
                *_finish_inputs(),
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
        mask: "Tensor | None" = None,
        color_reference: "Tensor | None" = None,
        detail: float = DEFAULTS.detail,
        feather: int = DEFAULTS.feather_px,
        **memory: "Unpack[MemoryWidgets]",
    ) -> io.NodeOutput:
        """Restore the batch."""
        widgets = memory_options(**memory)
        options = restore_options(size, factor, edge, color=color, guidance=guidance, memory=widgets)
        options = replace(options, detail=detail, feather_px=feather)
        host, guides = host_for(model, vae), Guides(mask=mask, color_reference=color_reference)
        return io.NodeOutput(restore(image, model.unet, gendr_vae(vae), options, host=host, guides=guides))


def _guide_inputs() -> list[io.Input]:
    """Return the sockets for the pictures beside the image."""
    return [
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where to restore: 1 (white) is restored, 0 (black) stays the resized input. Any size; one mask can"
            " serve a whole batch. Nothing connected restores everything.",
        ),
        io.Image.Input(
            "color_reference",
            optional=True,
            tooltip="Image whose colours are taken instead of the input's. Any size; one can serve a whole batch.",
        ),
    ]


def _finish_inputs() -> list[io.Input]:
    """Return the widgets for the strength of detail and the border of a mask; optional and last, as they came last."""
    return [
        io.Float.Input(
            "detail",
            default=DEFAULTS.detail,
            min=0.0,
            max=MAX_DETAIL,
            step=0.05,
            optional=True,
            tooltip="How much of the fine detail that the model adds is kept. 1: as the model made it. 0: none, only"
            " coarse structure changes. Above 1: exaggerated.",
        ),
        advanced(
            io.Int.Input(
                "feather",
                default=DEFAULTS.feather_px,
                min=0,
                max=MAX_FEATHER_PX,
                optional=True,
                tooltip="How far the border of the mask is smoothed to each side, in output pixels. 0 leaves it as it"
                " is. Without a mask it does nothing.",
            )
        ),
    ]
