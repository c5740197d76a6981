"""House rules for every test: the same examples each time, and no network."""

import socket
from typing import Any

import pytest
from hypothesis import settings

# No deadline: the first call of a torch operator may take long. Derandomised: a run says the same thing twice.
settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("house")

REWRITE = "--rewrite"

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes a change of what is recorded a deliberate act."""
    parser.addoption(REWRITE, action="store_true", help="write recorded schemas and texts anew")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether recorded files are written instead of compared."""
    return bool(request.config.getoption(REWRITE))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to anywhere but this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            pytest.fail(f"expected a test without network, got a connection to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
