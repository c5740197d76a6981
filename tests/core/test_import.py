import json
import subprocess
import sys

HEAVY = ("accelerate", "comfy", "comfy_api", "diffusers", "gendr_train", "peft", "transformers")
PUBLIC = ("GenDRError", "RestoreOptions", "load_unet", "load_vae", "restore")


def modules_after(statement: str) -> set[str]:
    """Return the names of all modules that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_library_loads_no_heavy_package() -> None:
    loaded = modules_after("import gendr_core")
    assert "gendr_core.pipeline" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_library_loads_neither_the_command_line_nor_optional_modules() -> None:
    loaded = modules_after("import gendr_core")
    assert loaded.isdisjoint({"gendr_core.cli", "gendr_core.reference", "imagecodecs", "tifffile", "yaml"})


def test_the_public_names_are_there() -> None:
    modules_after(f"from gendr_core import {', '.join(PUBLIC)}")


def test_importing_prints_nothing_and_adds_no_log_handler() -> None:
    code = "import logging, gendr_core; assert not logging.root.handlers; assert not logging.getLogger('gendr_core').handlers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
