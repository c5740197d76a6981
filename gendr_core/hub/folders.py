"""Where weights lie: ComfyUI's folders with those of its ``extra_model_paths.yaml``, or one folder of the user's.

Role: tells ``fetch`` where to look for a file and where a new one goes, so that one copy serves ComfyUI and GenDR.
The YAML file is read as ComfyUI does: a ``base_path``, several lines for a kind, ``is_default`` before all others.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ..errors import OptionError
from .catalog import RemoteFile

EXTRA_PATHS = "extra_model_paths.yaml"
OLD_NAMES = {"unet": "diffusion_models", "clip": "text_encoders"}
"""What ComfyUI called kinds of folders before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolders:
    """Folders by kind, the one that new files go to first."""

    root: Path
    by_kind: bool = True
    """Whether a kind without an entry has the folder of its name in ``root``; else everything lies in ``root``."""
    extra: Mapping[str, tuple[Path, ...]] = field(default_factory=dict[str, tuple[Path, ...]])

    def of(self, kind: str) -> tuple[Path, ...]:
        """Return the folders of a kind, whether they exist or not."""
        return self.extra.get(kind, (self.root / kind if self.by_kind else self.root,))

    def target(self, file: RemoteFile) -> Path:
        """Return the path that a new file gets."""
        return self.of(file.folder)[0] / file.name

    def files(self, kind: str) -> Iterator[Path]:
        """Yield every file in the folders of a kind and below them, but for hidden ones, by name."""
        for folder in self.of(kind):
            # Links are followed, as ComfyUI does: many keep their models on another disk.
            for place, below, names in os.walk(folder, followlinks=True):
                below.sort()
                yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def plain_folder(folder: Path) -> ModelFolders:
    """Return one folder for files of every kind."""
    return ModelFolders(root=folder, by_kind=False)


def comfyui_folders(path: Path) -> ModelFolders:
    """Return the model folders of the ComfyUI at ``path``, or of its base directory.

    Raises:
        OptionError: there is none, or its ``extra_model_paths.yaml`` cannot be read.
    """
    root = path / "models"
    if not root.is_dir():
        raise OptionError(f"expected the folder of a ComfyUI, which has a folder models, found none in {path}")
    folders = {
        "diffusion_models": [root / "diffusion_models", root / "unet"],
        "text_encoders": [root / "text_encoders", root / "clip"],
    }
    extra = path / EXTRA_PATHS
    if extra.is_file():
        for kind, folder, first in _extra_paths(extra):
            known = folders.setdefault(kind, [root / kind])
            if first or folder not in known:
                folders[kind] = [folder, *(each for each in known if each != folder)] if first else [*known, folder]
    return ModelFolders(root=root, extra={kind: tuple(paths) for kind, paths in folders.items()})


def comfyui_around(path: Path) -> Path | None:
    """Return the ComfyUI in whose ``custom_nodes`` a file lies, None where it lies in none."""
    for parent in path.absolute().parents:
        if parent.name == "custom_nodes" and (parent.parent / "folder_paths.py").is_file():
            return parent.parent
    return None


def _extra_paths(path: Path) -> Iterator[tuple[str, Path, bool]]:
    """Yield kind, folder, and whether it goes before the others."""
    try:
        import yaml
    except ImportError as error:
        raise OptionError(f'{path} names more folders, but PyYAML is missing: pip install "gendr[hub]"') from error
    try:
        content: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(f"{path} cannot be read as YAML: mend it, ComfyUI cannot read it either") from error
    if not isinstance(content, dict):
        return
    for section in cast("dict[str, object]", content).values():
        if isinstance(section, dict):
            yield from _section(path, cast("dict[str, object]", section))


def _section(path: Path, section: dict[str, object]) -> Iterator[tuple[str, Path, bool]]:
    """Yield the folders of one installation, which ``base_path`` is before."""
    base = path.parent.absolute() / Path(os.path.expandvars(str(section.get("base_path") or ""))).expanduser()
    first = bool(section.get("is_default"))
    for kind, value in section.items():
        if kind in ("base_path", "is_default") or not isinstance(value, str):
            continue
        for line in filter(None, value.split("\n")):
            yield OLD_NAMES.get(kind, kind), Path(os.path.normpath(base / line)), first
