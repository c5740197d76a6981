"""A hub on this machine with one large file, and no proxy in between."""

import hashlib
import random
from collections.abc import Iterator

import pytest
from hub_server import REPO, REVISION, HubServer, running_hub
from huggingface_hub import close_session

from gendr_core.hub import Hub, RemoteFile, Source

CONTENT = random.Random(7).randbytes(300_000)
SOURCE = Source(repo=REPO, revision=REVISION)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that holds ``CONTENT`` as ``weights.safetensors``."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    # It keeps what came in pieces of this size, of which the last is lost with the connection: 10 MB, for a small file.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    close_session()
    with running_hub() as hub:
        hub.files[f"{REPO}/weights.safetensors"] = CONTENT
        yield hub
    close_session()


@pytest.fixture
def hub(server: HubServer) -> Hub:
    """The client's side of it, without pauses."""
    return Hub(server.endpoint, wait_s=0.0)


@pytest.fixture
def content() -> bytes:
    """What the large file holds."""
    return CONTENT


@pytest.fixture
def file() -> RemoteFile:
    """The large file as a careful list describes it."""
    return RemoteFile(
        path="weights.safetensors",
        folder="vae",
        name="weights.safetensors",
        num_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


@pytest.fixture
def source() -> Source:
    """Where it is."""
    return SOURCE
