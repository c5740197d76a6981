"""What the nodes have in common: the model socket, the category, shared inputs and what their values mean.

Role: used by every node file; the only place that builds an ``io.Schema``, so that one pack fits older and newer hosts.
"""

import dataclasses
from collections.abc import Sequence

from comfy_api.latest import io

from ..gendr_core.config import COLOR_METHODS, MAX_SCALE, MIN_SCALE, ColorMethod, RestoreOptions
from ..gendr_core.geometry import MAX_EDGE

CATEGORY = "image/upscaling/GenDR"

GenDRModel = io.Custom("GENDR_MODEL")
"""A restoration UNet under the host's memory management (``host.HostedUNet``)."""

BY_FACTOR, LONGEST_EDGE, SHORTEST_EDGE = "by factor", "longest edge", "shortest edge"
SIZE_RULES = (BY_FACTOR, LONGEST_EDGE, SHORTEST_EDGE)


def node_schema(
    node_id: str,
    display_name: str,
    description: str,
    *,
    inputs: Sequence[io.Input],
    outputs: Sequence[io.Output],
    search_aliases: Sequence[str] = (),
) -> io.Schema:
    """Return the schema of a node, without the fields that this host does not know yet.

    Args:
        node_id: never changed once published, since saved workflows name it.
        display_name: title of the node.
        description: what it does, shown where the node is looked up.
        inputs: sockets first, then widgets.
        outputs: in order.
        search_aliases: further words under which the node is found (hosts from 0.11 on).
    """
    fields: dict[str, object] = {
        "node_id": node_id,
        "display_name": display_name,
        "category": CATEGORY,
        "description": description,
        "inputs": list(inputs),
        "outputs": list(outputs),
        "search_aliases": list(search_aliases),
    }
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})  # pyright: ignore[reportArgumentType]


def image_input(tooltip: str) -> io.Input:
    """Return the input for the image to work on."""
    return io.Image.Input("image", tooltip=tooltip)


def model_input() -> io.Input:
    """Return the input for the restoration UNet."""
    return GenDRModel.Input("model", tooltip="Restoration model from Load GenDR UNet.")


def vae_input() -> io.Input:
    """Return the input for the VAE, which only some models need."""
    return io.Vae.Input(
        "vae",
        optional=True,
        tooltip="VAE from Load GenDR VAE16. Models that work on pixels, such as gendr-mini-pixel, do not need one.",
    )


def size_inputs() -> list[io.Input]:
    """Return the three widgets that choose the output size; ``restore_options`` reads them."""
    return [
        io.Combo.Input(
            "size",
            options=list(SIZE_RULES),
            default=BY_FACTOR,
            tooltip="How the output size is chosen: the input size times the factor, or so that its longest or shortest"
            " edge is the given number of pixels. The aspect ratio is kept.",
        ),
        io.Float.Input(
            "factor",
            default=4.0,
            min=MIN_SCALE,
            max=MAX_SCALE,
            step=0.05,
            tooltip="Output size over input size. Used with 'by factor'. 1 restores at the size of the input.",
        ),
        io.Int.Input(
            "edge",
            default=2048,
            min=1,
            max=MAX_EDGE,
            tooltip="Edge of the output in pixels. Used with 'longest edge' and 'shortest edge'.",
        ),
    ]


def color_input(tooltip: str) -> io.Input:
    """Return the widget for the colour method."""
    return io.Combo.Input("color", options=list(COLOR_METHODS), default="wavelet", tooltip=tooltip)


def guidance_input() -> io.Input:
    """Return the widget for the guidance weight, folded away where the host can do that."""
    widget = io.Float.Input(
        "guidance",
        default=0.0,
        min=0.0,
        max=20.0,
        step=0.01,
        tooltip="Strength of the prompt that is baked into the model. 0 takes the model's own value; 1 runs the network"
        " once, any other value twice.",
    )
    # Not a constructor argument on every host that is supported; those that do not know the key ignore it.
    widget.extra_dict["advanced"] = True
    return widget


def restore_options(
    size: str, factor: float, edge: int, color: ColorMethod = "wavelet", guidance: float = 0.0
) -> RestoreOptions:
    """Return the options that the shared widgets mean.

    Raises:
        OptionError: a value is out of its range.
    """
    return RestoreOptions(
        scale=factor if size == BY_FACTOR else None,
        longest_edge=edge if size == LONGEST_EDGE else None,
        shortest_edge=edge if size == SHORTEST_EDGE else None,
        color=color,
        guidance=guidance_weight(guidance),
    )


def guidance_weight(guidance: float) -> float | None:
    """Return what the guidance widget means: 0 stands for the model's own weight."""
    return guidance or None
