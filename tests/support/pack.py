"""Imports the repository as ComfyUI does: from its path, under a name that is not on the import path."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from comfy_stub import Record

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Pack:
    """The pack loaded on the stub, and what the stub recorded."""

    nodes: dict[str, Any]
    """Node classes by id."""
    host: ModuleType
    """The pack's nodes/host.py."""
    sockets: ModuleType
    """The pack's nodes/sockets.py."""
    widgets: ModuleType
    """The pack's nodes/widgets.py."""
    record: Record


def load_pack(name: str) -> ModuleType:
    """Return the root package, imported as ``name`` and entered in ``sys.modules``, so that relative imports work."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def forget(*names: str) -> None:
    """Take modules of these names and everything below them out of ``sys.modules``."""
    for loaded in list(sys.modules):
        if loaded in names or loaded.startswith(tuple(f"{name}." for name in names)):
            del sys.modules[loaded]
