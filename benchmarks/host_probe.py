"""A node pack for ``host``, copied into the server's custom_nodes: clocks, the core without its nodes.

Role: runs inside ComfyUI; ``host_server`` installs it and reads what it has noted at ``/bench``.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import comfy.model_management  # noqa: TID251 - this file runs inside the host
import torch
from aiohttp import web
from server import PromptServer

if TYPE_CHECKING:
    from gendr_core import GenDRUNet

Reading: TypeAlias = tuple[float, float, float]
"""Seconds on the wall, of all threads on the processor, of this thread on the processor."""

seconds: dict[str, list[Reading]] = {}
"""By name, readings of the clocks and durations of the core."""
checks: list[tuple[Reading, str]] = []
"""When the cancel button was looked at, and from where."""
plain: dict[str, Any] = {}
"""UNets of the core's own layers, by file."""


class _Hosted(Protocol):
    """As much of the pack's HostedUNet as is needed here."""

    unet: "GenDRUNet"


class BenchClock:
    """Hands on ``image`` and reads the clock, once ``after`` is there too."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "read"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        """Return the inputs."""
        return {"required": {"image": ("IMAGE",), "after": ("IMAGE",), "name": ("STRING",)}}

    def read(self, image: torch.Tensor, after: torch.Tensor, name: str) -> tuple[torch.Tensor]:
        """Return ``image``."""
        del after
        if name == "begin":
            checks.clear()
        seconds.setdefault(name, []).append(_now())
        return (image,)


class BenchCore:
    """Restores as GenDR Restore does, by a plain call of the core that the pack has loaded."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        """Return the inputs."""
        required = {"image": ("IMAGE",), "model": ("GENDR_MODEL",), "layers": (["host", "own"],)}
        return {"required": {**required, "name": ("STRING",), "factor": ("FLOAT",)}}

    def restore(
        self, image: torch.Tensor, model: "_Hosted", layers: str, name: str, factor: float
    ) -> tuple[torch.Tensor]:
        """Return the picture, with the layers of the model or with the core's own."""
        home = type(model.unet).__module__.removesuffix(".model")
        core = sys.modules[home]
        unet = model.unet
        if layers == "own":
            unet = plain[layers] = plain.get(layers) or core.load_unet()
        begin = _now()
        result = core.restore(image, unet, None, core.RestoreOptions(scale=factor))
        end = _now()
        seconds.setdefault(name, []).append((end[0] - begin[0], end[1] - begin[1], end[2] - begin[2]))
        return (result,)


class BenchSink:
    """The end of a graph that keeps nothing."""

    RETURN_TYPES = ()
    FUNCTION = "drop"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        """Return the inputs."""
        return {"required": {"image": ("IMAGE",)}}

    def drop(self, image: torch.Tensor) -> dict[str, Any]:
        """Return that there was one."""
        return {"ui": {"shape": [list(image.shape)]}}


def _now() -> Reading:
    return time.perf_counter(), time.process_time(), time.thread_time()


def _where(frame: FrameType | None) -> str:
    """Return the innermost place that is no part of asking: neither ``nodes/host.py`` nor the meter."""
    asking = ("host.py", Path(__file__).name, "preview.py", "utils.py", "main.py")
    while frame is not None and Path(frame.f_code.co_filename).name in asking:
        frame = frame.f_back
    if frame is None:
        return "?"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"


def _watch() -> None:
    """Note from now on when the cancel button is looked at."""
    check: Callable[[], None] = comfy.model_management.throw_exception_if_processing_interrupted

    def noted() -> None:
        checks.append((_now(), _where(sys._getframe(1))))
        check()

    comfy.model_management.throw_exception_if_processing_interrupted = noted


@PromptServer.instance.routes.get("/bench")
async def bench(_request: web.Request) -> web.Response:
    """Return what was noted since the last time, and forget it; also which process this is."""
    noted = {"seconds": dict(seconds), "checks": list(checks), "pid": os.getpid()}
    seconds.clear()
    checks.clear()
    return web.json_response(noted)


@PromptServer.instance.routes.get("/bench/watch")
async def watch(_request: web.Request) -> web.Response:
    """Begin to note when the cancel button is looked at."""
    _watch()
    return web.json_response({})


@PromptServer.instance.routes.get("/bench/trim")
async def trim(_request: web.Request) -> web.Response:
    """Have the C library hand back what it keeps of freed memory, where it is glibc."""
    library = ctypes.CDLL(None)
    return web.json_response({"trimmed": hasattr(library, "malloc_trim") and library.malloc_trim(0)})


NODE_CLASS_MAPPINGS = {
    "BenchClock": BenchClock,
    "BenchCore": BenchCore,
    "BenchSink": BenchSink,
}
