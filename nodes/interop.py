"""Our models where the host expects another kind: a restoration as an upscale model, for every node that takes one.

Role: after ``loaders``, beside ``restore``, which does the same without the tiles of others and is to be preferred.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..gendr_core.config import ColorMethod, RestoreOptions
from ..gendr_core.errors import OptionError, OutOfMemoryError
from ..gendr_core.host import SilentProgress
from ..gendr_core.model import GenDRVAE
from ..gendr_core.pipeline import check_pair, restore
from ..gendr_core.step import guidance_weight
from .host import HostedUNet, HostedVAE, gendr_vae, host_for
from .sockets import model_input, node_schema, vae_input
from .widgets import BY_FACTOR, color_input, guidance_input, memory_inputs, memory_options, restore_options

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self, Unpack

    from .widgets import MemoryWidgets


@dataclass(frozen=True, kw_only=True, slots=True)
class Upscaler:
    """What an UPSCALE_MODEL socket carries here: as much of spandrel's descriptor as nodes for such models use."""

    hosted: HostedUNet
    hosted_vae: HostedVAE | None
    vae: GenDRVAE | None
    options: RestoreOptions
    """With ``scale`` as the factor."""
    scale: int
    """Output size over input size."""
    input_channels: int = 3
    output_channels: int = 3

    @property
    def model(self) -> torch.nn.Module:
        """The network, whose size hosts before 0.29 make room for."""
        return self.hosted.unet.network

    @property
    def patcher(self) -> object:
        """The host's handle on the network, which hosts from 0.29 on load themselves."""
        return self.hosted.patcher

    def to(self, device: torch.device | str) -> "Self":
        """Return itself: whatever is asked for, the host's memory management alone moves the networks."""
        del device
        return self

    def __call__(self, pixels: "Tensor") -> "Tensor":
        """Return ``pixels`` restored at ``scale`` times their size: [B, 3, H, W] in 0 to 1, float32, on their device.

        Args:
            pixels: [B, C, h, w] in 0 to 1, float, any size from 1x1. The alpha of 4 channels does not come back.

        Raises:
            torch.cuda.OutOfMemoryError: it fits in no way; where whoever asks makes tiles, smaller ones may fit.
        """
        # The bar belongs to the node that asks; every tile would start it anew.
        host = replace(host_for(self.hosted, self.hosted_vae), progress=SilentProgress(), preview=None)
        image = pixels.movedim(1, -1).to("cpu", torch.float32)
        try:
            restored = restore(image, self.hosted.unet, self.vae, self.options, host=host)
        except OutOfMemoryError as error:
            # The host knows torch's own error only, and answers it with smaller tiles.
            raise torch.cuda.OutOfMemoryError(str(error)) from error
        return restored[..., :3].movedim(-1, 1).to(pixels.device)


class AsUpscaleModel(io.ComfyNode):
    """GenDR as Upscale Model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_UpscaleModel",
            "GenDR as Upscale Model",
            "Makes a restoration model usable wherever an upscale model goes: Upscale Image (using Model), Ultimate SD"
            " Upscale and other tile upscalers. By itself, GenDR Restore gives more even results, since it needs no"
            " tiles.",
            inputs=[
                model_input(),
                vae_input(),
                color_input(
                    "How the colours of the input are kept, tile by tile. wavelet: coarse colours from the input,"
                    " detail from the model; adain: mean and contrast per channel; lab: distribution in CIELAB; ycbcr:"
                    " the input's chroma; none."
                ),
                guidance_input(),
                *memory_inputs(),
            ],
            outputs=[
                io.UpscaleModel.Output(
                    display_name="upscale_model",
                    tooltip="For nodes that take an upscale model. The factor is the model's own, 4 for gendr-mini.",
                )
            ],
            search_aliases=[
                "upscale model",
                "ESRGAN",
                "tile upscaler",
                "UltimateSDUpscale",
                "upscale image using model",
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HostedUNet,
        color: ColorMethod,
        guidance: float,
        vae: HostedVAE | None = None,
        **memory: "Unpack[MemoryWidgets]",
    ) -> io.NodeOutput:
        """Wrap the model; what does not fit together is named here, not at the first tile."""
        factor, ours = model.unet.spec.scale, gendr_vae(vae)
        if not factor.is_integer():
            raise OptionError(
                f"expected a model for a whole factor, as upscale models have one, got one for {factor}: use GenDR"
                " Restore instead"
            )
        check_pair(model.unet, ours)
        widgets = memory_options(**memory)
        options = restore_options(BY_FACTOR, factor, 1, color=color, guidance=guidance, memory=widgets)
        guidance_weight(model.unet, options.guidance)
        upscaler = Upscaler(hosted=model, hosted_vae=vae, vae=ours, options=options, scale=int(factor))
        return io.NodeOutput(upscaler)
