import ast
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SHIPPED = [ROOT / "__init__.py", *sorted(ROOT.glob("gendr_core/**/*.py")), *sorted(ROOT.glob("nodes/**/*.py"))]
HOUSE = [*SHIPPED, *sorted(ROOT.glob("gendr_train/**/*.py"))]
MAX_FILE_BYTES = 8 * 2**20
MAX_WEIGHTS_BYTES = 16 * 2**20
MAX_LINES = 300

BANNED_MODULES = {"base64", "ctypes", "pickle", "requests", "socket", "subprocess", "urllib"}
BANNED_CALLS = {"__import__", "compile", "eval", "exec"}
BANNED_ATTRIBUTES = {"autocast", "cuda", "md5", "popen", "system", "urlopen"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of every absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def called(tree: ast.AST) -> Iterator[str]:
    """Yield the last name of every call: ``eval`` of ``eval(x)``, ``.system`` of ``os.system(x)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield f".{node.func.attr}"


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Every file in git."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in (ROOT / line for line in listed.stdout.split("\0") if line) if path.is_file()]


def test_requirements_are_lower_bounds_only_and_installed_by_no_manager() -> None:
    runtime = [requirement for requirement in map(Requirement, requires("gendr") or []) if requirement.marker is None]
    assert len(runtime) == 6
    for requirement in runtime:
        assert {specifier.operator for specifier in requirement.specifier} == {">="}, requirement
    assert not (ROOT / "requirements.txt").exists()


@pytest.mark.parametrize("path", HOUSE, ids=name)
def test_sources_are_ascii_and_short(path: Path) -> None:
    # A Windows console in its own encoding can show every source; ASCII is a part of every such encoding.
    text = path.read_text(encoding="ascii")
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_shipped_code_has_nothing_that_registry_scanners_reject(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert BANNED_MODULES.isdisjoint(module.partition(".")[0] for module in imported(tree))
    assert (BANNED_CALLS | {f".{attribute}" for attribute in BANNED_ATTRIBUTES}).isdisjoint(called(tree))


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_shipped_code_imports_its_own_modules_relatively(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert {"gendr_core", "gendr_train", "nodes"}.isdisjoint(module.partition(".")[0] for module in imported(tree))


def test_files_in_git_are_small(tracked: list[Path]) -> None:
    assert {name(path): path.stat().st_size for path in tracked if path.stat().st_size > MAX_FILE_BYTES} == {}


def test_bundled_weights_fit_their_budget() -> None:
    assert sum(path.stat().st_size for path in ROOT.glob("gendr_core/weights/*")) <= MAX_WEIGHTS_BYTES


def test_every_sample_names_its_source() -> None:
    sources = (ROOT / "examples" / "SOURCES.md").read_text(encoding="utf-8")
    samples = [*ROOT.glob("examples/*.jpg"), *ROOT.glob("examples/*.png")]
    assert samples
    assert [path.name for path in samples if f"| {path.name} |" not in sources] == []
