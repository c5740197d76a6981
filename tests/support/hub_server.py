"""A small hub on this machine that answers as Hugging Face's does, and goes wrong when it is told to.

Large files are on another host, as there: the hub answers with their size and checksum and where they are.
"""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

REPO, REVISION = "someone/some-model", "a" * 40
DRIP_BYTES = 4096


class Seen(NamedTuple):
    """A request that came."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    user_agent: str


class Fault(NamedTuple):
    """What goes wrong with the next request of a method, once.

    Kinds: ``status`` answers ``value``; ``cut`` closes after ``value`` bytes; ``other`` sends as many other bytes;
    ``drip`` sends little by little; ``whole`` ignores a range; ``hold`` waits until ``HubServer.release`` is set.
    """

    method: str
    kind: str
    value: int = 0


@dataclass
class HubServer:
    """What the hub holds, what it is to do wrong, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By ``owner/name/path``, the same at every revision."""
    small: set[str] = field(default_factory=set)
    """Of these, those that lie in git itself: no other host, and git's name of the content as their tag."""
    refused: dict[str, int] = field(default_factory=dict)
    """Status by ``owner/name`` of repositories that give nothing."""
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def endpoint(self) -> str:
        """Address of the hub."""
        return f"http://127.0.0.1:{self.port}"

    def gets(self) -> list[str | None]:
        """Return the ranges that were asked for, one for each time that content was sent, None for all of it."""
        return [seen.range for seen in self.seen if seen.method == "GET" and seen.path.startswith("/cdn/")]

    def take(self, method: str) -> Fault | None:
        """Return the first fault for this method, which is then gone, None where there is none."""
        for fault in self.faults:
            if fault.method == method:
                self.faults.remove(fault)
                return fault
        return None


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """Yield a hub that runs in threads of this process until the end of the block."""
    hub = HubServer()

    class Handler(_Handler):
        server_hub = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        hub = self.server_hub
        told = (self.headers["Range"], self.headers["Authorization"], self.headers["User-Agent"])
        hub.seen.append(Seen(self.command, self.path, *told))
        # On the way to a large file the hub itself only points elsewhere: what goes wrong goes wrong there.
        if self.path.startswith("/cdn/"):
            self._send(hub.files[self.path.removeprefix("/cdn/")], hub.take(self.command))
            return
        owner, name, _, revision, path = self.path.removeprefix("/").split("/", 4)
        key = f"{owner}/{name}/{path}"
        fault = hub.take("HEAD") if self.command == "HEAD" else None
        if fault is not None:
            self._status(fault.value)
        elif f"{owner}/{name}" in hub.refused:
            self._status(hub.refused[f"{owner}/{name}"])
        elif key not in hub.files:
            self._status(404, "EntryNotFound")
        elif key in hub.small:
            content = hub.files[key]
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._send(content, None, {"X-Repo-Commit": revision, "ETag": f'"{blob}"'})
        else:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{hub.port}/cdn/{key}")
            self.send_header("X-Repo-Commit", revision)
            self.send_header("X-Linked-Size", str(len(hub.files[key])))
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(hub.files[key]).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _status(self, status: int, code: str | None = None) -> None:
        """Answer that it does not work, and as a careless hub does, repeat what the caller told in confidence."""
        body = f"you sent {self.headers['Authorization']}".encode()
        self.send_response(status)
        if status == 401:
            code = "GatedRepo"
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send(self, content: bytes, fault: Fault | None, headers: dict[str, str] | None = None) -> None:
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            self._status(fault.value)
            return
        if kind == "hold":
            self.server_hub.release.wait(60)
        if kind == "other":
            content = bytes(255 - value for value in content)
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and kind != "whole" else 0
        if start >= len(content) > 0:
            self._status(416)
            return
        self.send_response(206 if start else 200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self._body(content[start:], fault)

    def _body(self, content: bytes, fault: Fault | None) -> None:
        if fault and fault.kind == "cut":
            self.wfile.write(content[: fault.value])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        elif fault and fault.kind == "drip":
            for start in range(0, len(content), DRIP_BYTES):
                self.wfile.write(content[start : start + DRIP_BYTES])
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.wfile.write(content)
