"""GenDR as a ComfyUI node pack.

Importing this file does nothing: the host calls ``comfy_entrypoint`` when it is ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes.extension import GenDRExtension

WEB_DIRECTORY = "./web"


def comfy_entrypoint() -> GenDRExtension:
    """Return the extension that lists the nodes."""
    from .nodes.extension import GenDRExtension  # Only the host can import this: it needs comfy_api.

    return GenDRExtension()
