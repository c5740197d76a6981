"""The list of nodes, in the order of the menu.

Role: returned to the host by the pack's ``comfy_entrypoint``.
"""

from comfy_api.latest import ComfyExtension, io

from .color import MatchColor
from .convert import Convert
from .interop import AsUpscaleModel
from .latent import Decode, Encode, OneStep
from .loaders import LoadBase, LoadUNet, LoadVAE16
from .plan import Plan
from .prompt import FixPrompt
from .restore import Restore


class GenDRExtension(ComfyExtension):
    """What the host learns of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node."""
        return [
            LoadUNet,
            LoadVAE16,
            LoadBase,
            Convert,
            Restore,
            Plan,
            FixPrompt,
            Encode,
            OneStep,
            Decode,
            MatchColor,
            AsUpscaleModel,
        ]
