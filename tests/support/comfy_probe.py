"""A node pack for tests, copied into the server's custom_nodes.

Shows floats as they are, makes pictures, makes prompts without a text encoder and counts living networks and tensors.
"""

import gc
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
import torch.nn.functional as F
from aiohttp import web
from comfy import model_management
from comfy_execution.progress import get_progress_state
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


class ProbePrompt:
    """Gives a random CONDITIONING, as if a text encoder of that width had made it."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        """Return the inputs."""
        return {"required": {"width": ("INT", {"max": 8192}), "seed": ("INT",)}}

    def encode(self, width: int, seed: int) -> tuple[list[Any]]:
        """Return 77 tokens."""
        prompt = torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed))
        return ([[prompt, {"pooled_output": None}]],)


class ProbeImages:
    """Gives a list of random images, one for each size."""

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "images"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        """Return the inputs."""
        return {"required": {"sizes": ("STRING",)}}

    def images(self, sizes: str) -> tuple[list[torch.Tensor]]:
        """Return images [1, H, W, 3] for sizes such as ``8x6 3x3``, width first."""
        extents = [tuple(map(int, size.split("x"))) for size in sizes.split()]
        return ([torch.rand(1, height, width, 3) for width, height in extents],)


class ProbePicture:
    """Makes pictures with large shapes and grain; another seed makes others, so that nothing comes from a cache."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        """Return the inputs."""
        number = ("INT", {"max": 2**31})
        return {"required": {"width": number, "height": number, "count": number, "seed": number}}

    def make(self, width: int, height: int, count: int, seed: int) -> tuple[torch.Tensor]:
        """Return [count, height, width, 3]."""
        draws = torch.Generator().manual_seed(seed)
        shapes = F.interpolate(torch.rand(count, 3, 9, 9, generator=draws), (height, width), mode="bicubic")
        grain = 0.05 * torch.randn(count, 3, height, width, generator=draws)
        return ((shapes + grain).clamp(0.0, 1.0).permute(0, 2, 3, 1).contiguous(),)


@PromptServer.instance.routes.get("/probe")
async def probe(_request: web.Request) -> web.Response:
    """Return the loaded models and the living networks of the pack; the planner's, without memory, do not count."""
    gc.collect()
    alive = [
        type(thing).__name__
        for thing in gc.get_objects()
        if str(type(thing).__module__).endswith(("gendr_core.nets.unet", "gendr_core.nets.vae"))
        and type(thing).__name__ in ("UNet", "VAE")
        and not next(thing.parameters()).is_meta
    ]
    loaded = [
        type(entry.model.model).__name__ for entry in model_management.current_loaded_models if entry.model is not None
    ]
    return web.json_response({"alive": alive, "loaded": loaded})


@PromptServer.instance.routes.get("/probe/tensors")
async def tensors(_request: web.Request) -> web.Response:
    """Return how many tensors with memory there are in the process, and the bytes of it."""
    gc.collect()
    # Not isinstance, which asks lazily imported modules for their class and so imports them.
    things = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and not thing.is_meta]
    stored = {thing.untyped_storage()._cdata: thing.untyped_storage().nbytes() for thing in things}
    return web.json_response({"count": len(things), "bytes": sum(stored.values())})


@PromptServer.instance.routes.get("/probe/progress")
async def progress(_request: web.Request) -> web.Response:
    """Return how far each node of the running prompt is, from 0 to 1."""
    nodes = get_progress_state().nodes
    return web.json_response({name: state["value"] / state["max"] for name, state in nodes.items()})


NODE_CLASS_MAPPINGS = {
    "ProbeSave": ProbeSave,
    "ProbePrompt": ProbePrompt,
    "ProbeImages": ProbeImages,
    "ProbePicture": ProbePicture,
}
