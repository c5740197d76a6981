"""``gendr models``: which weights are here, and which could be fetched, under which licence.

Role: the headers of files are read, as by ``gendr inspect``; the network is not used.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..checkpoint import SUFFIXES, inspect
from ..header import PICKLE_SUFFIXES
from ..hub import Model, RemoteFile, load_catalog, plain_folder
from ..model import bundled_weights
from .options import add_common_options
from .places import add_comfyui_option, comfyui_of, size_text

SUMMARY = "List the weights that are here and those that can be fetched. Nothing is fetched."
KINDS = ("diffusion_models", "vae", "checkpoints", "diffusers", "text_encoders", "gendr")
"""ComfyUI's folders in which weights for GenDR can lie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """A weight file that is here."""

    path: Path
    place: str
    """``bundled``, a kind of ComfyUI folder, or the folder that was given."""
    kind: str
    """As of ``checkpoint.inspect``, or ``pickle``, which is never opened here."""
    num_bytes: int
    model: str | None
    """The entry of the list that it looks like, by its size or its name."""
    problem: str | None
    """Why GenDR cannot run it as it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    add_comfyui_option(parser)
    parser.add_argument("--folder", metavar="FOLDER", type=Path, action="append", default=[], help="look here too")
    parser.add_argument("--all", action="store_true", help="show weights of other models too, which are only counted")
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Print both lists; return True.

    Raises:
        OptionError: ``--comfyui`` names no ComfyUI.
    """
    catalog = load_catalog()
    # By path, so that a folder that is given twice, or lies in another, counts once.
    files = dict(_weight_files(options))
    everything = [_look(path, place, catalog) for path, place in files.items()]
    shown = [each for each in everything if options.all or each.problem is None or each.model is not None]
    if options.json:
        print(json.dumps(_report(shown, len(everything) - len(shown), catalog), indent=2, default=str))
    else:
        print("\n".join(_lines(shown, len(everything) - len(shown), catalog)))
    return True


def _weight_files(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    yield from ((path, "bundled") for path in bundled_weights().values())
    comfyui = comfyui_of(options.comfyui)
    places = [(comfyui, kind, kind) for kind in KINDS] if comfyui else []
    for folders, kind, place in (*places, *((plain_folder(each), "", str(each)) for each in options.folder)):
        for path in folders.files(kind):
            if path.suffix.lower() in (*SUFFIXES, *PICKLE_SUFFIXES) and path.is_file():
                yield path, place


def _look(path: Path, place: str, catalog: dict[str, Model]) -> Installed:
    """Return what a file is, by its header; pickles are not opened."""
    num_bytes = path.stat().st_size
    names = [model.name for model in catalog.values() if any(_resembles(path, num_bytes, file) for file in model.files)]
    pickled = path.suffix.lower() in PICKLE_SUFFIXES
    report = None if pickled else inspect(path)
    return Installed(
        path=path,
        place=place,
        kind="pickle" if report is None else report.kind,
        num_bytes=num_bytes,
        model=names[0] if names else None,
        problem='a pickle: "gendr convert" reads it' if report is None else report.problem,
    )


def _resembles(path: Path, num_bytes: int, file: RemoteFile) -> bool:
    """Return whether a file may be this one of the list; its checksum is left to ``gendr download``."""
    if path.suffix.lower() != Path(file.name).suffix:
        return False
    return path.name == Path(file.name).name if file.num_bytes is None else num_bytes == file.num_bytes


def _here(model: Model, shown: Sequence[Installed]) -> bool:
    """Return whether every weight file of a model seems to be here."""
    return all(
        any(_resembles(each.path, each.num_bytes, file) for each in shown)
        for file in model.files
        if Path(file.name).suffix in (*SUFFIXES, *PICKLE_SUFFIXES)
    )


def _report(shown: Sequence[Installed], num_others: int, catalog: dict[str, Model]) -> dict[str, object]:
    available = [
        {**asdict(model), "bytes": model.num_bytes, "by_hand": not model.sources, "installed": _here(model, shown)}
        for model in catalog.values()
    ]
    return {"installed": [asdict(each) for each in shown], "others": num_others, "available": available}


def _lines(shown: Sequence[Installed], num_others: int, catalog: dict[str, Model]) -> Iterator[str]:
    yield "Here:"
    for each in shown:
        name = each.path.name if each.place == "bundled" else str(each.path)
        notes = [f"looks like {each.model}"] if each.model else []
        if each.problem is not None:
            notes.append('a pickle, for "gendr convert"' if each.kind == "pickle" else 'see "gendr inspect"')
        yield f"  {each.kind:<12}{size_text(each.num_bytes):>10}  {name}  {', '.join(notes)}".rstrip()
    if num_others:
        yield f"  and {num_others} files of other models (--all shows them)"
    yield ""
    yield 'To be had with "gendr download NAME":'
    for model in catalog.values():
        state = "is here" if _here(model, shown) else size_text(model.num_bytes)
        limit = ", NOT for commercial use" if model.license.non_commercial else ""
        yield f"  {model.name:<20}{state:>12}  {model.license.name}{limit}"
        by_hand = "; to be fetched by hand" if not model.sources else ""
        needs = f"; needs {', '.join(model.needs)}" if model.needs else ""
        yield f"  {'':<20}{'':>12}  {model.title}{needs}{by_hand}"
