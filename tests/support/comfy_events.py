"""A prompt watched over the websocket, as the frontend does it."""

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comfy_server import RUN_TIMEOUT_S, Graph, Server

PREVIEW, PREVIEW_WITH_METADATA = 1, 4
"""Kinds of binary messages, in their first four bytes."""
ENDS = ("execution_success", "execution_error", "execution_interrupted")

Event = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Watched:
    """What the server told about one prompt, in order."""

    events: list[Event] = field(default_factory=list)
    previews: list[tuple[str | None, bytes]] = field(default_factory=list)
    """The node each picture belongs to, where the host says it, and the picture's file."""

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the data of all events of that name."""
        return [data for event, data in self.events if event == name]

    def begun(self) -> set[str]:
        """Return the ids of the nodes that ran or were taken from the cache."""
        ran = {data["node"] for data in self.of("executing") if data["node"] is not None}
        return ran.union(*(data["nodes"] for data in self.of("execution_cached")))


def watch(server: Server, graph: Graph, react: Callable[[Event], None] | None = None) -> Watched:
    """Queue a prompt and return what came until its end.

    Args:
        server: where to queue it.
        graph: the prompt.
        react: is given every event as it comes.
    """
    return asyncio.run(asyncio.wait_for(_watch(server, graph, react), RUN_TIMEOUT_S))


async def _watch(server: Server, graph: Graph, react: Callable[[Event], None] | None) -> Watched:
    import aiohttp  # The host's own, which is only where the host is.

    client, watched = uuid.uuid4().hex, Watched()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        answer = await asyncio.to_thread(server.post, "/prompt", {"prompt": graph, "client_id": client})
        assert "prompt_id" in answer, answer
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                _add_preview(watched, message.data)
            elif message.type == aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                event = (content["type"], content["data"])
                watched.events.append(event)
                if react is not None:
                    await asyncio.to_thread(react, event)
                if event[0] in ENDS and event[1]["prompt_id"] == answer["prompt_id"]:
                    break
    return watched


def _add_preview(watched: Watched, message: bytes) -> None:
    """Take a preview apart: its kind, then the format or the length of its metadata, then the file."""
    kind, second = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if kind == PREVIEW:
        watched.previews.append((None, message[8:]))
    elif kind == PREVIEW_WITH_METADATA:
        metadata = json.loads(message[8 : 8 + second])
        watched.previews.append((metadata["node_id"], message[8 + second :]))
