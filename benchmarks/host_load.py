"""A node pack for ``host_start``: loads the pack by the host's own function between two clocks.

Role: copied into custom_nodes in the place of the pack, whose path is in ``GENDR_PACK``; prints one line.
"""

import json
import os
import time

from comfy_api.latest import ComfyExtension, io

import nodes


class NoNodes(ComfyExtension):
    """An extension without nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return none."""
        return []


async def comfy_entrypoint() -> NoNodes:
    """Load the pack, print the seconds on the wall and on the processor, and return nothing of this one's own."""
    begin = time.perf_counter(), time.process_time()
    load = nodes.load_custom_node  # pyright: ignore[reportAttributeAccessIssue] - the host's nodes.py, not ours
    assert await load(os.environ["GENDR_PACK"], module_parent="custom_nodes")
    seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    print("GenDR loaded in", json.dumps(seconds), flush=True)
    return NoNodes()
