import ast
import subprocess
import sys
from pathlib import Path

import pytest
from pack import ROOT, Pack

IN_A_FRESH_PROCESS = """
import importlib.util, sys
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("gendr_pack", sys.argv[1])
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
new = {name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names}
print(sorted(new), hasattr(pack, "NODE_CLASS_MAPPINGS"), callable(pack.comfy_entrypoint), pack.WEB_DIRECTORY)
"""


def test_importing_the_root_imports_nothing_else() -> None:
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(ROOT / "__init__.py")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["[]", "False", "True", "./web"]


def test_nodes_come_in_menu_order(pack: Pack) -> None:
    assert list(pack.nodes) == [
        "GenDR_LoadUNet",
        "GenDR_LoadVAE16",
        "GenDR_LoadBase",
        "GenDR_Convert",
        "GenDR_Restore",
        "GenDR_Plan",
        "GenDR_FixPrompt",
        "GenDR_Encode",
        "GenDR_OneStep",
        "GenDR_Decode",
        "GenDR_MatchColor",
        "GenDR_UpscaleModel",
    ]


def test_only_the_hosts_own_files_import_the_host() -> None:
    guilty = {path.name for path in (ROOT / "nodes").glob("*.py") if _host_imports(path)}
    # Layer classes apart from the rest: a file has at most 300 lines.
    assert guilty == {"host.py", "operations.py"}


def _host_imports(path: Path) -> bool:
    """Whether a file imports ComfyUI's own modules when it runs; what stands under TYPE_CHECKING does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    running = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    modules = [
        alias.name
        for node in running
        for part in ast.walk(node)
        if isinstance(part, ast.Import)
        for alias in part.names
    ]
    modules += [
        part.module or ""
        for node in running
        for part in ast.walk(node)
        if isinstance(part, ast.ImportFrom) and not part.level
    ]
    return any(module.split(".")[0] in ("comfy", "folder_paths", "nodes", "server", "execution") for module in modules)


@pytest.mark.parametrize(
    "path", [ROOT / "__init__.py", *sorted((ROOT / "nodes").glob("*.py"))], ids=lambda path: path.name
)
def test_sources_are_ascii(path: Path) -> None:
    path.read_text(encoding="ascii")
