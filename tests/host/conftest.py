"""A real ComfyUI, named by the environment variable COMFYUI_PATH; without it these tests are skipped.

Run in an environment that ComfyUI itself runs in: ``COMFYUI_PATH=/path/to/ComfyUI pytest -m host tests/host``.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from comfy_server import Server
from pack import load_pack
from weights import write_tiny_weights, write_wrong_weights


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The checkout of ComfyUI."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH does not name a ComfyUI")
    return Path(os.environ["COMFYUI_PATH"])


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory for ComfyUI with tiny weights, good and wrong, in its models folder."""
    base = tmp_path_factory.mktemp("comfyui")
    write_tiny_weights(base / "models")
    write_wrong_weights(base / "models")
    return base


@pytest.fixture(scope="session")
def server(comfyui: Path, base: Path) -> Iterator[Server]:
    """A running server."""
    server = Server(comfyui, base)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def hosted(comfyui: Path, base: Path) -> ModuleType:
    """The pack's nodes/host.py with ComfyUI inside this process."""
    # First, so that "import nodes" inside ComfyUI finds its own.
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(base)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # Reads the arguments as it is imported.

    sys.argv = arguments
    load_pack("gendr_in_comfyui").comfy_entrypoint()
    return sys.modules["gendr_in_comfyui.nodes.host"]
