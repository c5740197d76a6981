"""The restoration in parts: encode, one step, decode, joined by an ordinary LATENT.

Role: after ``loaders``; ``color`` finishes what comes out. ``restore`` is these in a line. The latent carries, beside
the samples, what Decode needs to give back the promised size and the alpha; core's latent nodes pass that along.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..gendr_core.decode import decode
from ..gendr_core.encode import encode
from ..gendr_core.errors import ShapeError
from ..gendr_core.geometry import Extent, Padding, output_extent
from ..gendr_core.prepare import Prepared, prepare, restore_layout
from ..gendr_core.spec import SPATIAL_FACTOR
from ..gendr_core.step import one_step
from ..gendr_core.tensors import crop, to_image
from .frames import each_frame
from .host import HostedUNet, HostedVAE, gendr_vae, host_for
from .sockets import (
    guidance_input,
    guidance_weight,
    image_input,
    model_input,
    node_schema,
    restore_options,
    size_inputs,
    vae_input,
)

if TYPE_CHECKING:
    from torch import Tensor

FRAME_KEY = "gendr_frame"
"""Where a LATENT keeps its ``Prepared``, without the pictures."""


class Encode(io.ComfyNode):
    """GenDR Encode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_Encode",
            "GenDR Encode",
            "Resizes an image to its final size and turns it into the latent that the model works on.",
            inputs=[image_input("Image to restore, at its own size."), model_input(), vae_input(), *size_inputs()],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For GenDR One Step. Also remembers size and alpha for GenDR Decode."
                ),
                io.Image.Output(
                    display_name="reference",
                    tooltip="The input resized to the final size: the reference for GenDR Match Color.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, image: "Tensor", model: HostedUNet, size: str, factor: float, edge: int, vae: HostedVAE | None = None
    ) -> io.NodeOutput:
        """Encode the batch."""
        host, spec = host_for(model, vae), model.unet.spec
        source = Extent(height=image.shape[1], width=image.shape[2])
        prepared = prepare(image, output_extent(source, restore_options(size, factor, edge), spec.scale))
        stage = partial(encode, front=spec.front, vae=gendr_vae(vae), host=host)
        latent = {"samples": each_frame(stage, host, prepared.pixels), FRAME_KEY: _without_pictures(prepared)}
        return io.NodeOutput(latent, to_image(prepared.reference))


class OneStep(io.ComfyNode):
    """GenDR One Step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_OneStep",
            "GenDR One Step",
            "Restores a latent in one pass through the model, without noise, sampler or text prompt.",
            inputs=[io.Latent.Input("latent", tooltip="Latent from GenDR Encode."), model_input(), guidance_input()],
            outputs=[io.Latent.Output(display_name="restored", tooltip="The restored latent, for GenDR Decode.")],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], model: HostedUNet, guidance: float) -> io.NodeOutput:
        """Restore the batch."""
        host = host_for(model)
        stage = partial(one_step, unet=model.unet, guidance=guidance_weight(guidance), host=host)
        return io.NodeOutput({**latent, "samples": each_frame(stage, host, latent["samples"])})


class Decode(io.ComfyNode):
    """GenDR Decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_Decode",
            "GenDR Decode",
            "Turns a restored latent into an image of exactly the size asked of GenDR Encode, with its alpha.",
            inputs=[io.Latent.Input("latent", tooltip="Latent from GenDR One Step."), model_input(), vae_input()],
            outputs=[io.Image.Output(display_name="image", tooltip="The image, before any colour matching.")],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], model: HostedUNet, vae: HostedVAE | None = None) -> io.NodeOutput:
        """Decode the batch."""
        host, frame = host_for(model, vae), _frame_of(latent)
        stage = partial(decode, back=model.unet.spec.back, vae=gendr_vae(vae), host=host)
        pixels = crop(each_frame(stage, host, latent["samples"]), frame.padding, frame.extent)
        return io.NodeOutput(restore_layout(pixels, frame))


def _without_pictures(prepared: Prepared) -> Prepared:
    """Return what Decode needs; the samples and the reference output already carry the pictures."""
    nothing = prepared.pixels.new_empty(0)
    return replace(prepared, pixels=nothing, reference=nothing)


def _frame_of(latent: dict[str, Any]) -> Prepared:
    """Return what Encode noted in this latent, or a plain RGB frame of its whole size if it comes from elsewhere.

    Raises:
        ShapeError: another node changed the size, or the number of images where they have alpha.
    """
    samples = latent["samples"]
    whole = Extent(height=samples.shape[2] * SPATIAL_FACTOR, width=samples.shape[3] * SPATIAL_FACTOR)
    frame: Prepared | None = latent.get(FRAME_KEY)
    if frame is None:
        nothing, no_padding = samples.new_empty(0), Padding(left=0, right=0, top=0, bottom=0)
        return Prepared(pixels=nothing, reference=nothing, alpha=None, channels=3, extent=whole, padding=no_padding)
    padded = frame.padding.around(frame.extent)
    if padded != whole:
        raise ShapeError(
            f"expected the latent of a {padded} frame, got one of {whole}: resize the image, not the latent"
        )
    if frame.alpha is not None and frame.alpha.shape[0] != samples.shape[0]:
        raise ShapeError(
            f"expected {frame.alpha.shape[0]} latents, one for each alpha from GenDR Encode, got {samples.shape[0]}:"
            " pick images before GenDR Encode"
        )
    return frame
