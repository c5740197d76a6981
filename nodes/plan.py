"""What a restoration would take, before it runs.

Role: beside ``restore``, whose inputs it shares; asks the core's planner and nobody else. Networks stay where they are.
"""

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..gendr_core.config import ColorMethod
from ..gendr_core.memory import format_bytes
from ..gendr_core.pipeline import check_pair
from ..gendr_core.planner import Planner
from ..gendr_core.tensors import check_image
from .frames import guides_of, image_task
from .host import HostedUNet, HostedVAE, gendr_vae, host_for
from .sockets import guide_inputs, image_input, model_input, node_schema, vae_input
from .widgets import (
    GIB,
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

    from ..gendr_core.plan import Plan as CorePlan
    from .widgets import MemoryWidgets


class Plan(io.ComfyNode):
    """GenDR Plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_Plan",
            "GenDR Plan",
            "Says how GenDR Restore would run with these settings, and what memory and work that takes. Nothing is"
            " restored and no network is loaded onto the device.",
            inputs=[
                image_input("Image that would be restored; only its size counts."),
                model_input(),
                vae_input(),
                *guide_inputs(),
                *size_inputs(),
                color_input("How colours would be kept; only its memory counts."),
                *finish_inputs(),
                guidance_input(),
                *memory_inputs(),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The plan in words, one line for each stage."),
                io.Float.Output(
                    display_name="peak_gib", tooltip="Most memory in GiB at once, model included, input image left out."
                ),
                io.Float.Output(display_name="tflop", tooltip="Work in TFLOP, for the whole batch."),
                io.String.Output(display_name="mode", tooltip="whole or tiles."),
            ],
            search_aliases=["memory", "vram", "estimate"],
            is_output_node=True,
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
        """Plan for the batch."""
        check_image(image)
        guides = guides_of(mask, color_reference)
        guides.check(len(image))
        unet, vae16 = model.unet, gendr_vae(vae)
        check_pair(unet, vae16)
        finish = {"color": color, "detail": detail, "feather": feather}
        options = restore_options(size, factor, edge, guidance=guidance, memory=memory_options(**memory), **finish)
        task = image_task(image, guides.shapes())
        plan = Planner(unet, vae16, task, options, host=host_for(model, vae)).plan()
        text, mode = _text(plan), plan.stages["step"].mode
        return io.NodeOutput(text, plan.peak_bytes / GIB, plan.flops / 1e12, mode, ui=ui.PreviewText(text))


def _text(plan: "CorePlan") -> str:
    """Return the plan in lines."""
    stages = (
        f"{name}: {stage.flops / 1e12:.4g} TFLOP, {format_bytes(stage.activation_bytes)} of activations"
        for name, stage in plan.stages.items()
    )
    return "\n".join(
        [
            plan.describe(),
            f"padded to {plan.padded}, {plan.passes} pass{'' if plan.passes == 1 else 'es'} through the UNet",
            *stages,
            f"in all: {plan.flops / 1e12:.4g} TFLOP, at most {format_bytes(plan.peak_bytes)} with the weights",
        ]
    )
