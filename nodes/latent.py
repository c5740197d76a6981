"""The restoration in parts: encode, one step, decode, joined by an ordinary LATENT.

Role: after ``loaders``; ``color`` finishes what comes out. ``restore`` is these in a line. The latent carries, beside
the samples, what Decode needs to give back the promised size and the alpha; core's latent nodes pass that along.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..gendr_core.decode import decode
from ..gendr_core.encode import encode
from ..gendr_core.errors import ShapeError
from ..gendr_core.geometry import Padding, Span
from ..gendr_core.pipeline import check_pair
from ..gendr_core.planner import Planner
from ..gendr_core.prepare import Prepared, prepare, restore_layout
from ..gendr_core.spec import ModelSpec
from ..gendr_core.step import one_step
from ..gendr_core.tensors import check_image, check_latent, crop, to_image
from .frames import StageRun, each_group, image_task, latent_extent, latent_planner
from .host import HostedUNet, HostedVAE, gendr_vae, host_for
from .sockets import image_input, model_input, node_schema, vae_input
from .widgets import (
    budget_input,
    guidance_input,
    latent_options,
    memory_inputs,
    memory_options,
    restore_options,
    size_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from .widgets import MemoryWidgets

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
            inputs=[
                image_input("Image to restore, at its own size."),
                model_input(),
                vae_input(),
                *size_inputs(),
                budget_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For GenDR One Step. Also remembers size and alpha for GenDR Decode."
                ),
                io.Image.Output(
                    display_name="reference",
                    tooltip="The input resized to the final size: the reference for GenDR Match Color.",
                ),
            ],
            search_aliases=["vae encode", "image to latent", "resize"],
        )

    @classmethod
    def execute(
        cls,
        image: "Tensor",
        model: HostedUNet,
        size: str,
        factor: float,
        edge: int,
        vae: HostedVAE | None = None,
        **memory: "Unpack[MemoryWidgets]",
    ) -> io.NodeOutput:
        """Encode the batch."""
        check_image(image)
        host, unet, vae16 = host_for(model, vae), model.unet, gendr_vae(vae)
        if vae16 is not None:
            check_pair(unet, vae16)
        options = restore_options(size, factor, edge, memory=memory_options(**memory))
        planner = Planner(unet, vae16, image_task(image), options, host=host)
        references = torch.empty(len(image), planner.output.height, planner.output.width, 3)
        frames: list[Prepared] = []

        run, front = StageRun("encode", planner.encode, host, len(image)), unet.spec.front

        def encode_frames(places: Span) -> "Tensor":
            prepared = prepare(image[places.places], planner.output, planner.pad_multiple)
            references[places.places] = to_image(prepared.reference)
            frames.append(_without_pictures(prepared))
            return run(prepared.pixels, lambda x, plan: encode(x, front, vae16, plan=plan, meter=run.meter))

        samples = each_group(len(image), planner.together, run.host, encode_frames)
        return io.NodeOutput({"samples": samples, FRAME_KEY: _joined(frames)}, references)


class OneStep(io.ComfyNode):
    """GenDR One Step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_OneStep",
            "GenDR One Step",
            "Restores a latent in one pass through the model, without noise, sampler or text prompt.",
            inputs=[
                io.Latent.Input("latent", tooltip="Latent from GenDR Encode."),
                model_input(),
                guidance_input(),
                *memory_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="restored", tooltip="The restored latent, for GenDR Decode.")],
            search_aliases=["one-step diffusion", "sampler", "restore latent"],
        )

    @classmethod
    def execute(
        cls, latent: dict[str, Any], model: HostedUNet, guidance: float, **memory: "Unpack[MemoryWidgets]"
    ) -> io.NodeOutput:
        """Restore the batch."""
        host, samples = host_for(model), _samples_of(latent)
        options = latent_options(guidance=guidance, memory=memory_options(**memory))
        planner = latent_planner(samples, model.unet, None, options, host=host)
        run, weight = StageRun("step", planner.step, host, len(samples)), options.guidance

        def step(frames: Span) -> "Tensor":
            part = samples[frames.places]
            return run(part, lambda x, plan: one_step(x, model.unet, guidance=weight, plan=plan, meter=run.meter))

        return io.NodeOutput({**latent, "samples": each_group(len(samples), planner.together, run.host, step)})


class Decode(io.ComfyNode):
    """GenDR Decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_Decode",
            "GenDR Decode",
            "Turns a restored latent into an image of exactly the size asked of GenDR Encode, with its alpha.",
            inputs=[
                io.Latent.Input("latent", tooltip="Latent from GenDR One Step."),
                model_input(),
                vae_input(),
                budget_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The image, before any colour matching.")],
            search_aliases=["vae decode", "latent to image"],
        )

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        model: HostedUNet,
        vae: HostedVAE | None = None,
        **memory: "Unpack[MemoryWidgets]",
    ) -> io.NodeOutput:
        """Decode the batch."""
        samples, frame = _samples_of(latent), _frame_of(latent, model.unet.spec)
        host, vae16 = host_for(model, vae), gendr_vae(vae)
        if vae16 is not None:
            check_pair(model.unet, vae16)
        planner = latent_planner(samples, model.unet, vae16, latent_options(memory=memory_options(**memory)), host=host)
        run, back = StageRun("decode", planner.decode, host, len(samples)), model.unet.spec.back

        def decode_frames(frames: Span) -> "Tensor":
            pixels = run(
                samples[frames.places], lambda x, plan: decode(x, back, vae16, plan=plan, meter=run.meter).cpu()
            )
            alpha = None if frame.alpha is None else frame.alpha[frames.places]
            return restore_layout(crop(pixels, frame.padding, frame.extent), replace(frame, alpha=alpha))

        return io.NodeOutput(each_group(len(samples), planner.together, run.host, decode_frames))


def _samples_of(latent: dict[str, Any]) -> "Tensor":
    """Return the latents [B, C, h, w], float32; those of a host that keeps halves are widened.

    Raises:
        ShapeError: they are no batch of single frames.
    """
    check_latent(latent["samples"])
    return latent["samples"].float()


def _without_pictures(prepared: Prepared) -> Prepared:
    """Return what Decode needs; the samples and the reference output already carry the pictures."""
    nothing = prepared.pixels.new_empty(0)
    return replace(prepared, pixels=nothing, reference=nothing)


def _joined(frames: "list[Prepared]") -> Prepared:
    """Return the frames of a batch as one."""
    alphas = [frame.alpha for frame in frames if frame.alpha is not None]
    return replace(frames[0], alpha=torch.cat(alphas) if alphas else None)


def _frame_of(latent: dict[str, Any], spec: ModelSpec) -> Prepared:
    """Return what Encode noted in this latent, or a plain RGB frame of its whole size if it comes from elsewhere.

    Raises:
        ShapeError: another node changed the size, or the number of images where they have alpha.
    """
    samples = latent["samples"]
    whole = latent_extent(samples, spec)
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
