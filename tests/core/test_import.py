import json
import subprocess
import sys
from typing import NamedTuple

import pytest

PUBLIC = ("GenDRError", "RestoreOptions", "load_unet", "load_vae", "restore")
# One interpreter for all tests here: what counts is its start, and torch takes seconds to import.
PROGRAM = f"""
from gendr_core import {", ".join(PUBLIC)}
import json, logging, sys
print(json.dumps([sorted(sys.modules), [len(logging.getLogger(n).handlers) for n in (None, "gendr_core")]]))
"""


class Import(NamedTuple):
    """What a fresh interpreter shows after importing the library."""

    modules: set[str]
    num_handlers: list[int]
    stdout: list[str]
    stderr: str


@pytest.fixture(scope="module")
def imported() -> Import:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    *lines, report = done.stdout.splitlines()
    modules, num_handlers = json.loads(report)
    return Import(set(modules), num_handlers, lines, done.stderr)


def test_importing_the_library_loads_no_heavy_package(imported: Import) -> None:
    assert "gendr_core.pipeline" in imported.modules
    assert imported.modules.isdisjoint({"accelerate", "comfy", "comfy_api", "diffusers", "peft", "transformers"})


def test_importing_the_library_loads_only_what_it_needs(imported: Import) -> None:
    others = {"gendr_core.cli", "gendr_core.reference", "gendr_train", "imagecodecs", "tifffile", "yaml"}
    assert imported.modules.isdisjoint(others)


def test_importing_the_library_is_silent(imported: Import) -> None:
    assert (imported.stdout, imported.stderr, imported.num_handlers) == ([], "", [0, 0])
