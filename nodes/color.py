"""Colour matching by itself, for images from any source.

Role: after ``latent.Decode``, with the reference from ``latent.Encode``; ``restore`` does the same inside.
"""

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..gendr_core.color import match_color
from ..gendr_core.config import ColorMethod
from ..gendr_core.finish import check_count, of_frames
from ..gendr_core.geometry import Extent, Span
from ..gendr_core.prepare import prepare, restore_layout
from ..gendr_core.tensors import check_image
from .frames import each_group
from .host import host_for
from .sockets import image_input, node_schema
from .widgets import color_input

if TYPE_CHECKING:
    from torch import Tensor

    from ..gendr_core.host import Interrupt


class MatchColor(io.ComfyNode):
    """GenDR Match Color."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_MatchColor",
            "GenDR Match Color",
            "Gives an image the colours of another one that shows the same. The reference is resized to the image.",
            inputs=[
                image_input("Image whose colours change. Its alpha stays."),
                io.Image.Input(
                    "reference", tooltip="Image whose colours are taken; any size. One can serve a whole batch."
                ),
                color_input(
                    "wavelet: coarse colours of the reference under the image's own detail; adain: mean and contrast"
                    " per channel; lab: distribution in CIELAB; ycbcr: the reference's chroma; none: the image as is."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The image in the colours of the reference, same size.")
            ],
            search_aliases=["color fix", "colour match", "color transfer"],
        )

    @classmethod
    def execute(cls, image: "Tensor", reference: "Tensor", color: ColorMethod) -> io.NodeOutput:
        """Match every image of the batch with its reference."""
        check_image(image)
        check_image(reference)
        check_count("reference", reference, image.shape[0])

        host = host_for()

        def match(frame: Span) -> "Tensor":
            return _match_frame(of_frames(image, frame), of_frames(reference, frame), color, host.interrupt)

        return io.NodeOutput(each_group(len(image), 1, host, match))


def _match_frame(image: "Tensor", reference: "Tensor", method: ColorMethod, interrupt: "Interrupt") -> "Tensor":
    """Return ``image`` [1, H, W, C] in the colours of ``reference`` [1, any, any, any]."""
    extent = Extent(height=image.shape[1], width=image.shape[2])
    own, wanted = prepare(image, extent), prepare(reference, extent)
    return restore_layout(match_color(own.reference, wanted.reference, method, interrupt=interrupt), own)
