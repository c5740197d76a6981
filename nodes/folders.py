"""The host's model folders as ``convert`` needs them: what could be converted, from which base, and where results go.

Role: above ``host``, through which it reaches the host's own list of folders; no file is opened here.
"""

import re
from pathlib import Path, PurePath

from ..gendr_core.checkpoint import SUFFIXES
from ..gendr_core.errors import CheckpointError
from ..gendr_core.model import bundled_weights
from ..gendr_core.relatives import RELATIVES, Relative
from .host import folder_paths

FOLDER = "gendr"
"""Key of the folder for what relatives publish: models/gendr, or what extra_model_paths.yaml says."""
PUBLISHED_SUFFIXES = (".pkl", ".pth", *SUFFIXES)
OWN_BASES = {"diffusion_models": "diffusion_pytorch_model.safetensors", "vae": "vae.ckpt"}
"""What TVT publishes in place of a base, in models/gendr too, by the folder where a base is looked for."""
SHORT_KEY = 3
"""Letters of a name that others may have in the middle of a word."""


def register_folder() -> None:
    """Make models/gendr known to the host; where it is already, nothing happens."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def published_files() -> list[str]:
    """Return what may be a relative's file: all in models/gendr, and LoRAs that have a relative's name."""
    register_folder()
    own = _listed(FOLDER, PUBLISHED_SUFFIXES)
    loras = [name for name in _listed("loras", PUBLISHED_SUFFIXES) if named_after(name) is not None]
    return own + [name for name in loras if name not in own]


def published_path(name: str) -> Path:
    """Return the file of a name from ``published_files``.

    Raises:
        CheckpointError: there is none.
    """
    register_folder()
    return _path((FOLDER, "loras"), name)


def named_after(name: str) -> Relative | None:
    """Return the relative that a file is named after; None where it has another name."""
    stem = PurePath(name).stem
    letters, words = _letters(stem), re.split(r"[^a-z0-9]+", stem.casefold())
    keys = ((relative, _letters(relative.key)) for relative in RELATIVES)
    return next((relative for relative, key in keys if key in (words if len(key) <= SHORT_KEY else letters)), None)


def base_files(folder: str) -> list[str]:
    """Return the files that may hold a base network: those of ``folder``, then whole checkpoints, then TVT's own.

    Args:
        folder: ``diffusion_models`` or ``vae``.
    """
    own = [name for name in _listed(folder, SUFFIXES) if name not in bundled_weights()]
    register_folder()
    others = _listed("checkpoints", SUFFIXES)
    others += [name for name in _listed(FOLDER, (OWN_BASES[folder],)) if PurePath(name).name == OWN_BASES[folder]]
    return own + [name for name in others if name not in own]


def base_path(folder: str, name: str) -> Path:
    """Return the file of a name from ``base_files``.

    Raises:
        CheckpointError: there is none.
    """
    register_folder()
    return _path((folder, "checkpoints", FOLDER), name)


def output_path(folder: str, name: str) -> Path:
    """Return the host's file of that name, or where a new one goes: a loader that is given the name reads this file.

    Args:
        folder: ``diffusion_models`` or ``vae``.
        name: without folders.
    """
    found = folder_paths.get_full_path(folder, name)
    if found is not None:
        return Path(found)
    folders = [Path(path) for path in folder_paths.get_folder_paths(folder)]
    # The host's first folder for diffusion_models is the old models/unet.
    return next((path for path in folders if path.name == folder), folders[0]) / name


def _listed(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    try:
        names = folder_paths.get_filename_list(folder)
    except OSError:  # A drive that is gone must not take the whole list of nodes with it.
        return []
    return [name for name in names if name.lower().endswith(suffixes)]


def _path(folders: tuple[str, ...], name: str) -> Path:
    for folder in folders:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return Path(path)
    places = " or ".join(f"models/{folder}" for folder in folders)
    raise CheckpointError(f"expected a file {name!r} in {places}, found none: choose another or put it there")


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())
