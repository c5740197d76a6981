"""What ComfyUI's registry asks of the pack, what its archive holds, and what its scanners are known to reject."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

# comfy-cli reads these of [tool.comfy] and no others; "web" stays away, since WEB_DIRECTORY serves the same folder.
COMFY_KEYS = {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui", "includes", "Models", "version"}
# One classifier that is none of these, and comfy-cli drops all of its kind.
SYSTEMS = ("Microsoft", "POSIX", "MacOS", "OS Independent")
ACCELERATORS = {
    "GPU :: NVIDIA CUDA",
    "GPU :: AMD ROCm",
    "GPU :: Intel Arc",
    "NPU :: Huawei Ascend",
    "GPU :: Apple Metal",
}

SHIPPED_FOLDERS = {"example_workflows", "gendr_core", "locales", "nodes", "subgraphs", "web"}
SHIPPED_FILES = {
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "__init__.py",
    "pyproject.toml",
}
LEFT_OUT = {"gendr_core/reference.py"}

# Scanners look at text: these count in comments and strings, too. The calls themselves are in test_house.py.
FORBIDDEN = {
    r"\beval\(": "the registry will refuse eval; a method of that name reads the same, so it is train(False)",
    r"\bexec\(": "the registry will refuse exec",
    r"os\.(system|popen|exec|spawn)|\bsubprocess\b": "starts processes",
    r"\burllib\b|\burlopen\b|\bsocket\.|\brequests\.|\bhttp\.client\b": "talks to the network",
    r"\bb64decode\b|\bmarshal\b|\bzlib\.decompress": "hides code",
    r"\bimport pickle\b|\bpickle\.loads?\b|weights_only=False": "loading runs code",
    r"\bmd5\b|__import__": "reported as weak or obscure",
    r"except[^\n]*:\n\s+pass\b": "hides errors",
    r"\.cuda\(|\.to\(\s*(torch\.device\(\s*)?[\"']cuda": "the host chooses the device",
    r"torch\.autocast|amp\.autocast": "the host chooses the dtype",
    r"(?<![\w.])(torch\.)?nn\.(Linear|Conv[123]d|ConvTranspose[12]d|LayerNorm|GroupNorm|Embedding)\(": (
        "layers come from an operations namespace, so that the host can manage them"
    ),
}


def git(*arguments: str) -> set[str]:
    """Return the names that ``git ls-files`` lists."""
    program = shutil.which("git")
    if program is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [program, "ls-files", "-z", *arguments]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name}


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """Every file in git."""
    return git()


@pytest.fixture(scope="module")
def archive(tracked: set[str]) -> set[str]:
    """What comfy-cli packs: files in git less those that .comfyignore, which has .gitignore's syntax, names."""
    return tracked - git("--cached", "--ignored", "--exclude-from=.comfyignore")


@pytest.fixture(scope="module")
def metadata() -> ModuleType:
    """The script that completes pyproject.toml before it is published."""
    spec = importlib.util.spec_from_file_location("registry_metadata", ROOT / ".github" / "registry_metadata.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(metadata: ModuleType) -> dict[str, Any]:
    """The completed pyproject.toml."""
    text = metadata.complete(PYPROJECT, "https://github.com/o/n", "https://raw.test/o/n/c0ffee")
    return tomllib.loads(text)


def test_name_and_version_have_the_form_that_the_registry_takes() -> None:
    project = tomllib.loads(PYPROJECT)["project"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,97}[a-z0-9]", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", project["version"])
    assert project["license"] == "MIT"
    assert project["description"]


def test_the_newest_version_of_the_changelog_is_the_version() -> None:
    headings = re.findall(r"^## (\S+)", CHANGELOG, re.MULTILINE)
    numbered = [heading for heading in headings if heading != "Unreleased"]
    assert headings
    assert numbered[:1] in ([], [tomllib.loads(PYPROJECT)["project"]["version"]])
    assert "Unreleased" not in headings[1:]


def test_the_comfy_table_has_known_keys_and_three_part_versions() -> None:
    comfy = tomllib.loads(PYPROJECT)["tool"]["comfy"]
    assert set(comfy) <= COMFY_KEYS
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]
    for part in comfy["requires-comfyui"].split(","):
        assert re.fullmatch(r"(==|>=|<=|!=|~=|>|<)\d+\.\d+\.\d+", part.strip()), part


def test_classifiers_are_of_those_that_the_registry_reads() -> None:
    classifiers = [line.partition(" :: ") for line in tomllib.loads(PYPROJECT)["project"]["classifiers"]]
    systems = [value for kind, _, value in classifiers if kind == "Operating System"]
    assert systems
    assert [value for value in systems if not value.startswith(SYSTEMS)] == []
    assert {value for kind, _, value in classifiers if kind == "Environment"} <= ACCELERATORS


def test_the_archive_holds_what_runs_and_nothing_else(archive: set[str], tracked: set[str]) -> None:
    wanted = {name for name in tracked if name.partition("/")[0] in SHIPPED_FOLDERS | SHIPPED_FILES}
    assert archive == wanted - LEFT_OUT
    assert archive >= SHIPPED_FILES
    assert {"web/docs/GenDR_Restore.md", "gendr_core/weights/gendr-mini-pixel.safetensors"} <= archive


def test_nothing_in_the_archive_imports_what_is_left_out(archive: set[str]) -> None:
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in archive if name.endswith(".py")}
    for module in (Path(name).stem for name in LEFT_OUT):
        pattern = rf"^\s*(from \.+(gendr_core)?(\.{module} import| import \(?.*\b{module}\b)|import .*\.{module}\b)"
        assert [name for name, text in sources.items() if re.search(pattern, text, re.MULTILINE)] == []


def test_names_in_the_archive_are_ascii(archive: set[str]) -> None:
    # git writes others in quotes, and comfy-cli, which asks git, then does not find the file.
    assert [name for name in archive if not name.isascii() or '"' in name or "\\" in name] == []


def test_sources_in_the_archive_can_be_shown_by_a_windows_console(archive: set[str]) -> None:
    sources = [name for name in archive if name.endswith(".py")]
    assert len(sources) > len(SHIPPED_FOLDERS)
    for name in sources:
        (ROOT / name).read_text(encoding="utf-8").encode("cp1252")


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_source_in_the_archive_has_what_scanners_report(pattern: str, archive: set[str]) -> None:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in archive if name.endswith(".py")}
    assert [name for name, text in texts.items() if re.search(pattern, text)] == [], FORBIDDEN[pattern]


def test_only_the_kinds_of_files_that_are_needed_are_in_the_archive(archive: set[str]) -> None:
    kinds = {".json", ".jpg", ".md", ".py", ".safetensors", ".toml", ".typed", ""}
    assert [name for name in archive if Path(name).suffix not in kinds] == []


def test_the_icon_is_a_small_square_and_the_banner_is_wide() -> None:
    with Image.open(ROOT / "assets" / "icon.png") as icon, Image.open(ROOT / "assets" / "banner.png") as banner:
        assert icon.format == banner.format == "PNG"
        assert icon.width == icon.height <= 400
        assert banner.width * 9 == banner.height * 21
    assert (ROOT / "assets" / "icon.png").stat().st_size <= 40_000
    assert (ROOT / "assets" / "banner.png").stat().st_size <= 120_000


def test_what_is_published_says_where_the_repository_and_the_pictures_are(published: dict[str, Any]) -> None:
    assert published["project"]["urls"] == {
        "Repository": "https://github.com/o/n",
        "Issues": "https://github.com/o/n/issues",
        "Documentation": "https://github.com/o/n#readme",
    }
    for key in ("Icon", "Banner"):
        address = published["tool"]["comfy"][key]
        assert address.startswith("https://raw.test/o/n/c0ffee/")
        assert (ROOT / address.removeprefix("https://raw.test/o/n/c0ffee/")).is_file()
    assert set(published["tool"]["comfy"]) <= COMFY_KEYS


def test_publishing_changes_nothing_else(published: dict[str, Any]) -> None:
    before = tomllib.loads(PYPROJECT)
    del published["project"]["urls"]
    del published["tool"]["comfy"]["Icon"], published["tool"]["comfy"]["Banner"]
    assert published == before


def test_a_pyproject_that_cannot_be_completed_is_refused(metadata: ModuleType) -> None:
    once = metadata.complete(PYPROJECT, "https://github.com/o/n", "https://raw.test")
    with pytest.raises(ValueError, match="completed before"):
        metadata.complete(once, "https://github.com/o/n", "https://raw.test")
    with pytest.raises(ValueError, match="0 times"):
        metadata.complete(PYPROJECT.replace("[tool.comfy]", "[tool.other]"), "", "")


def test_the_section_of_the_version_is_what_is_new(metadata: ModuleType) -> None:
    changelog = "# Changelog\n\n## Unreleased\n\n- c\n\n## 1.2.3 (2027-01-31)\n\n### Added\n- b\n\n## 1.2.2\n\n- a\n"
    assert metadata.released('version = "1.2.3"\n', changelog) == "### Added\n- b\n"
    assert metadata.released('version = "1.2.2"\n', changelog) == "- a\n"
    with pytest.raises(ValueError, match=r"section '## 1\.2'"):
        metadata.released('version = "1.2"\n', changelog)


def test_the_publishing_workflow_has_one_secret_and_may_only_read() -> None:
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert re.findall(r"secrets\.(\w+)", text) == ["REGISTRY_ACCESS_TOKEN"]
    # Only GitHub's own actions: nobody else's code runs in the job that holds the secret, comfy-cli aside.
    used = {step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step}
    assert {name for name in used if not name.startswith("actions/")} == set()
    assert "${{" not in "".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])
