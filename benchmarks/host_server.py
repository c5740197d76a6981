"""A ComfyUI under measurement: the tests' server with this folder's probe in it, and its events with their times.

Role: used by the parts of ``host``.
"""

import asyncio
import json
import queue
import runpy
import shutil
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import psutil

SUPPORT = Path(__file__).parents[1] / "tests" / "support"
sys.path.append(str(SUPPORT))

from comfy_server import Graph, Server, node  # noqa: E402 - found by the line above

EVENT_TIMEOUT_S = 300
CLIENT = "benchmark"
UNET, PAIR = "gendr-mini-pixel.safetensors", "gendr-mini-unet16.safetensors"
VAE = "gendr-mini-vae16.safetensors"

__all__ = ["PAIR", "UNET", "Event", "Graph", "Part", "Watched", "comfyui_version", "node", "restoring"]

Event = tuple[float, str, Any]
"""When it came by ``time.perf_counter``, its type, its data (None for pictures)."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the benchmark found."""

    title: str
    markdown: str
    figures: Mapping[str, Any]
    """The same for programs."""


class Watched(Server):
    """A server with a client that listens as the browser does: preview pictures included."""

    def __init__(self, comfyui: Path, base: Path) -> None:
        """Start it on an empty base directory and connect."""
        folder = base / "custom_nodes"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("host_probe.py"), folder / "host_probe.py")
        super().__init__(comfyui, base)
        self.process = psutil.Process(self.get("/bench")["pid"])
        self.events: queue.Queue[Event] = queue.Queue()
        self._listener = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)
        self._listener.start()
        self.wait_for(lambda kind, _data: kind == "status")

    def __enter__(self) -> "Watched":
        """Return the running server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def start(self, graph: Graph) -> str:
        """Queue a graph in the client's name and return the prompt's id."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": CLIENT})
        assert "prompt_id" in answer, answer
        return answer["prompt_id"]

    def complete(self, graph: Graph) -> None:
        """Run a graph to its end.

        Raises:
            RuntimeError: it failed, or was not executed but answered from the cache.
        """
        prompt_id = self.start(graph)
        ends = ("execution_success", "execution_error", "execution_interrupted")
        _, kind, data = self.wait_for(lambda kind, data: kind in ends and data["prompt_id"] == prompt_id)
        if kind != "execution_success":
            raise RuntimeError(f"{kind}: {data}")

    def wait_for(self, wanted: Callable[[str, Any], bool]) -> Event:
        """Return the next event that is wanted; those before it are lost."""
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        while True:
            event = self.events.get(timeout=max(0.0, deadline - time.monotonic()))
            if wanted(event[1], event[2]):
                return event

    def resident_bytes(self) -> int:
        """Return the resident memory of the server's process."""
        return self.process.memory_info().rss

    async def _listen(self) -> None:
        url = f"{self.url}/ws?" + urllib.parse.urlencode({"clientId": CLIENT})
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            async for message in socket:
                now = time.perf_counter()
                if message.type == aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    self.events.put((now, content["type"], content["data"]))
                else:
                    self.events.put((now, "picture", None))


def restoring(unet: str, picture: Graph, end: Graph, **widgets: str | float) -> Graph:
    """Return a graph that restores node ``picture`` and hands the result to node ``end``, which reads ``restore``."""
    values: dict[str, Any] = {"size": "by factor", "factor": 4.0, "edge": 64, "color": "wavelet", "guidance": 0.0}
    values |= {"detail": 1.0, "feather": 0, **widgets}
    graph = {
        **picture,
        "unet": node("GenDR_LoadUNet", unet=unet),
        "restore": node("GenDR_Restore", image=["picture", 0], model=["unet", 0], **values),
        **end,
    }
    if unet == PAIR:
        graph["vae"] = node("GenDR_LoadVAE16", vae_file=VAE)
        graph["restore"]["inputs"]["vae"] = ["vae", 0]
    return graph


def comfyui_version(comfyui: Path) -> str:
    """Return what the checkout says of itself."""
    return runpy.run_path(str(comfyui / "comfyui_version.py"))["__version__"]
