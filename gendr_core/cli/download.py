"""``gendr download``: one model of the list from its hub, after its licence was shown, to where ComfyUI finds it too.

Role: the only command that uses the network; ``hub`` does the work.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

from ..errors import HubError, OptionError
from ..hub import (
    Fetched,
    Hub,
    Model,
    ModelFolders,
    Offer,
    RemoteFile,
    check_space,
    choose_offer,
    fetch_file,
    find_model,
    find_present,
)
from .options import add_common_options
from .places import add_comfyui_option, choose_folders, size_text

SUMMARY = 'Fetch a model that "gendr models" lists. Files that are there already are checked, not fetched again.'
CHECKED = {
    "list": "checksum as listed",
    "hub": "checksum as the hub says; the list has none to compare it with",
    "not": "could not be verified, as no checksum is known",
}

Job = tuple[RemoteFile, Offer, Path]
"""A file, who offers it, and the path it gets."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument("name", metavar="NAME", help="of a model")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--to", metavar="FOLDER", type=Path, help="where it goes (default: see --comfyui, else here)")
    add_comfyui_option(place)
    parser.add_argument("--revision", metavar="R", help="another commit or branch; the list's checksums do not count")
    parser.add_argument(
        "--endpoint", metavar="URL", help="address of a mirror (default: the variable HF_ENDPOINT, else Hugging Face)"
    )
    parser.add_argument(
        "--local-only",
        "--offline",
        action="store_true",
        help="use no network, only find and check what is there; the variable HF_HUB_OFFLINE=1 does the same",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file of the same name that is another one")
    parser.add_argument("--yes", action="store_true", help="accept the licence and the size without being asked")
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Print the paths of the model's files; return True.

    Raises:
        HubError: a file cannot be had.
        OptionError: the model or an option is wrong, or the user was asked and did not agree.
    """
    model = _chosen(options)
    folders = choose_folders(options.comfyui, options.to)
    local_only = options.local_only or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    found = {file: find_present(file, folders) for file in model.files}
    if local_only or not model.sources:
        _require_all(model, folders, found, local_only=local_only)
    elif any(fetched is None or fetched.checked != "list" for fetched in found.values()):
        # It prints its warnings itself; handed on, they would come twice.
        getLogger("huggingface_hub").propagate = False
        hub = Hub(options.endpoint or os.environ.get("HF_ENDPOINT"))
        jobs = _jobs(hub, model, folders, found)
        if any(options.overwrite or not target.exists() for _, _, target in jobs):
            _agree(model, jobs, yes=options.yes)
        for file, offer, target in jobs:
            found[file] = fetch_file(hub, offer, file, target, overwrite=options.overwrite)
    _report(model, [fetched for fetched in found.values() if fetched is not None], as_json=options.json)
    return True


def _chosen(options: argparse.Namespace) -> Model:
    """Return the model that the options name."""
    model = find_model(options.name)
    if options.revision is None:
        return model
    if not model.sources:
        raise OptionError(f"expected no --revision for {model.name}: it is on no hub, only at {model.url}")
    return model.at_revision(options.revision)


def _require_all(
    model: Model, folders: ModelFolders, found: dict[RemoteFile, Fetched | None], *, local_only: bool
) -> None:
    """Raise unless every file is there; say how to get the others."""
    missing = [file for file, fetched in found.items() if fetched is None]
    if not missing:
        return
    places = ", ".join(str(folders.target(file)) for file in missing)
    if model.sources:
        raise HubError(f"expected {places}, found no such file, and nothing is fetched: run it without --local-only")
    how = "" if local_only else f" {_license(model)}. {model.note}".rstrip()
    raise HubError(
        f"{model.title}: GenDR cannot fetch it, as no hub holds it in a known form.{how} Open {model.url} in a browser,"
        f" save the file as {places}, and run this command again to check it"
    )


def _jobs(hub: Hub, model: Model, folders: ModelFolders, found: dict[RemoteFile, Fetched | None]) -> list[Job]:
    """Return what the hub is needed for: files that are not there, and files that only it knows a checksum of."""
    jobs: list[Job] = []
    for file, fetched in found.items():
        if fetched is None or fetched.checked != "list":
            target = folders.target(file) if fetched is None else fetched.path
            jobs.append((file, choose_offer(hub, model.sources, file), target))
    check_space((offer, target) for _, offer, target in jobs if not target.exists())
    return jobs


def _agree(model: Model, jobs: Sequence[Job], *, yes: bool) -> None:
    """Show what would be fetched and under which licence, and raise unless the user agrees."""
    sizes = [offer.num_bytes for _, offer, _ in jobs]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    lines = [model.title, _license(model), *filter(None, [model.note])]
    for _, offer, target in jobs:
        lines.append(f"  {size_text(offer.num_bytes):>12}  {offer.source.repo} at {offer.source.revision} -> {target}")
        if not offer.source.pinned:
            lines.append(f"{'':>16}{offer.source.revision} is a branch: what it holds may change")
    print("\n".join(lines), file=sys.stderr)
    if yes:
        return
    if not sys.stdin.isatty():
        raise OptionError("expected --yes where nobody can be asked: it accepts the licence above")
    print(f"Fetch {size_text(total)} under this licence? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise OptionError("expected y, got another answer: nothing was fetched")


def _license(model: Model) -> str:
    limit = ", NOT for commercial use" if model.license.non_commercial else ""
    return f"Licence: {model.license.name}{limit} ({model.license.url})"


def _report(model: Model, files: Sequence[Fetched], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "path": str(fetched.path),
                "bytes": fetched.digest.num_bytes,
                "sha256": fetched.digest.sha256,
                "state": fetched.state,
                "checked": fetched.checked,
            }
            for fetched in files
        ]
        print(json.dumps({"model": model.name, "files": rows}, indent=2))
        return
    for fetched in files:
        detail = f"{fetched.state}, {CHECKED[fetched.checked]}, sha256 {fetched.digest.sha256}"
        print(fetched.path)
        print(f"  {detail}", file=sys.stderr)
    if model.kind == "relative":
        needs = "".join(f' "gendr download {name}",' for name in model.needs)
        print(f'To run it:{needs} then "gendr convert" (see docs/models.md)', file=sys.stderr)
