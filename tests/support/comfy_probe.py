"""A node pack for tests, copied into the server's custom_nodes: shows floats as they are and counts living networks."""

import gc
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from aiohttp import web
from comfy import model_management
from server import PromptServer


class ProbeSave:
    """Writes an IMAGE to output/NAME.npy, untouched."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        """Return the inputs."""
        return {"required": {"image": ("IMAGE",), "name": ("STRING",)}}

    def save(self, image: torch.Tensor, name: str) -> dict[str, Any]:
        """Write the file."""
        np.save(Path(folder_paths.get_output_directory()) / f"{name}.npy", image.numpy())
        return {"ui": {"saved": [name]}}


@PromptServer.instance.routes.get("/probe")
async def probe(_request: web.Request) -> web.Response:
    """Return the loaded models and the number of living networks of the pack."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    alive = [
        kind.__name__
        for kind in kinds
        if str(kind.__module__).endswith(("gendr_core.nets.unet", "gendr_core.nets.vae"))
    ]
    loaded = [
        type(entry.model.model).__name__ for entry in model_management.current_loaded_models if entry.model is not None
    ]
    return web.json_response({"alive": [name for name in alive if name in ("UNet", "VAE")], "loaded": loaded})


NODE_CLASS_MAPPINGS = {"ProbeSave": ProbeSave}
