"""The list of models in ``models.json`` as values: what each is, under which licence, its files and where they are.

Role: what ``gendr download`` and ``gendr models`` choose from. Sizes and checksums in the list come from the hubs' own
records; where one is not known the list says so, and nothing is made up.
"""

import json
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypedDict, cast

from ..errors import OptionError

MODELS_FILE = Path(__file__).with_name("models.json")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One repository that holds a model's files."""

    repo: str
    """``owner/name``."""
    revision: str
    """A commit where one is known, which can never change, else a branch."""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit."""
        return COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file of a model."""

    path: str
    """In the repository."""
    folder: str
    """ComfyUI's name of the kind of folder it belongs to, such as ``vae``."""
    name: str
    """In that folder; may have folders of its own."""
    num_bytes: int | None = None
    sha256: str | None = None
    git_blob: str | None = None
    """The name that git gives the content, a SHA-1; known for files that lie in git itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class License:
    """Under which terms a model may be used."""

    name: str
    url: str
    non_commercial: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One entry of the list."""

    name: str
    title: str
    kind: str
    """``vae16``, ``base``, ``text encoder``, or ``relative``: needs ``gendr convert``."""
    needs: tuple[str, ...]
    """Names of other entries."""
    license: License
    url: str
    """A page that people can read."""
    sources: tuple[Source, ...]
    """The first that answers is taken; none where the files can only be fetched by hand, from ``url``."""
    files: tuple[RemoteFile, ...]
    note: str

    @property
    def num_bytes(self) -> int | None:
        """Size of all files, None where one of them is not known."""
        sizes = [file.num_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def at_revision(self, revision: str) -> "Model":
        """Return the model at another revision of its first repository, of which no size and no checksum is known."""
        files = tuple(replace(file, num_bytes=None, sha256=None, git_blob=None) for file in self.files)
        return replace(self, sources=(replace(self.sources[0], revision=revision),), files=files)


class _Entry(TypedDict):
    """One entry of the JSON file."""

    name: str
    title: str
    kind: str
    needs: list[str]
    license: dict[str, str | bool]
    url: str
    sources: list[dict[str, str]]
    files: list[dict[str, str | int]]
    note: str


def load_catalog() -> dict[str, Model]:
    """Return the models by name, in the order of the list, which is trusted: it is a part of this package."""
    listed = cast("dict[str, list[_Entry]]", json.loads(MODELS_FILE.read_text(encoding="utf-8")))["models"]
    return {entry["name"]: _model(entry) for entry in listed}


def find_model(name: str) -> Model:
    """Return the model of this name.

    Raises:
        OptionError: the list has none.
    """
    catalog = load_catalog()
    if name in catalog:
        return catalog[name]
    close = get_close_matches(name, catalog, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else 'run "gendr models" to see them with their licences'
    raise OptionError(f"expected one of {', '.join(catalog)}, got {name!r}: {hint}")


def _model(entry: _Entry) -> Model:
    license_ = entry["license"]
    return Model(
        name=entry["name"],
        title=entry["title"],
        kind=entry["kind"],
        needs=tuple(entry["needs"]),
        license=License(
            name=str(license_["name"]), url=str(license_["url"]), non_commercial=bool(license_["non_commercial"])
        ),
        url=entry["url"],
        sources=tuple(Source(repo=source["repo"], revision=source["revision"]) for source in entry["sources"]),
        files=tuple(_file(values) for values in entry["files"]),
        note=entry["note"],
    )


def _file(values: dict[str, str | int]) -> RemoteFile:
    return RemoteFile(
        path=str(values["path"]),
        folder=str(values["folder"]),
        name=str(values["name"]),
        num_bytes=int(values["bytes"]) if "bytes" in values else None,
        sha256=str(values["sha256"]) if "sha256" in values else None,
        git_blob=str(values["git_blob"]) if "git_blob" in values else None,
    )
