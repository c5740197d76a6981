"""Where weights are looked for and put: options that ``download`` and ``models`` share, and sizes in words.

Role: between these commands and ``hub.folders``.
"""

import argparse
from pathlib import Path

from ..hub import ModelFolders, comfyui_around, comfyui_folders, plain_folder


def add_comfyui_option(parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup) -> None:  # pyright: ignore[reportPrivateUsage] argparse has no public name for it
    """Add ``--comfyui``."""
    parser.add_argument(
        "--comfyui",
        metavar="PATH",
        type=Path,
        help="a ComfyUI: its model folders and those of its extra_model_paths.yaml"
        " (default: the one that this package lies in)",
    )


def comfyui_of(given: Path | None) -> ModelFolders | None:
    """Return the model folders of the ComfyUI that was given, or that this package lies in; None where it lies in none.

    Raises:
        OptionError: what was given is no ComfyUI.
    """
    path = given or comfyui_around(Path(__file__))
    return None if path is None else comfyui_folders(path)


def choose_folders(comfyui: Path | None, folder: Path | None) -> ModelFolders:
    """Return where files are put: in the folder given, else in ComfyUI's, else in the current folder.

    Raises:
        OptionError: what was given is no ComfyUI.
    """
    if folder is not None:
        return plain_folder(folder)
    return comfyui_of(comfyui) or plain_folder(Path())


def size_text(num_bytes: int | None) -> str:
    """Return a size as people read it, ``size unknown`` for None."""
    if num_bytes is None:
        return "size unknown"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} bytes"
