"""What the nodes have in common: the schema, the category, the model socket and the sockets that several nodes have.

Role: used by every node file, beside ``widgets``; the only place that builds an ``io.Schema``, so that one pack fits
older and newer hosts.
"""

import dataclasses
from collections.abc import Sequence

from comfy_api.latest import io

CATEGORY = "image/upscaling/GenDR"

GenDRModel = io.Custom("GENDR_MODEL")
"""A restoration UNet under the host's memory management (``host.HostedUNet``)."""


def node_schema(
    node_id: str,
    display_name: str,
    description: str,
    *,
    inputs: Sequence[io.Input],
    outputs: Sequence[io.Output],
    search_aliases: Sequence[str] = (),
    is_output_node: bool = False,
) -> io.Schema:
    """Return the schema of a node, without the fields that this host does not know yet.

    Args:
        node_id: never changed once published, since saved workflows name it.
        display_name: title of the node.
        description: what it does, shown where the node is looked up.
        inputs: sockets first, then widgets.
        outputs: in order.
        search_aliases: further words under which the node is found (hosts from 0.11 on).
        is_output_node: whether it runs although nothing is connected to its outputs.
    """
    fields: dict[str, object] = {
        "node_id": node_id,
        "display_name": display_name,
        "category": CATEGORY,
        "description": description,
        "inputs": list(inputs),
        "outputs": list(outputs),
        "search_aliases": list(search_aliases),
        "is_output_node": is_output_node,
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


def guide_inputs() -> list[io.Input]:
    """Return the sockets for the pictures beside the image that is restored."""
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
