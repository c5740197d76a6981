"""Which files a run reads and writes, settled and checked before any work begins.

Role: used by ``restore`` and ``evaluate``, whose images ``image_io`` reads and writes, and where weights are baked.
"""

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from ..checkpoint import SUFFIXES
from ..errors import ImageError, OptionError
from ..image_io import BIT_DEPTHS, WITHOUT_ALPHA
from ..samples import BitDepth

FORMATS = ("auto", *(suffix[1:] for suffix in BIT_DEPTHS))
TIFF_SUFFIXES = (".tif", ".tiff")

_log = getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One image to restore."""

    source: Path
    target: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """How outputs in a folder are called: ``<name><suffix>.<format>``."""

    suffix: str = ""
    format: str = "auto"
    """A file type, or ``auto``: TIFF stays TIFF, everything else becomes PNG, which loses nothing."""

    def target(self, source: Path) -> Path:
        """Return the file name for the result of ``source``."""
        own = source.suffix if source.suffix.lower() in TIFF_SUFFIXES else ".png"
        return Path(f"{source.stem}{self.suffix}{own if self.format == 'auto' else '.' + self.format}")


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder by name, without hidden ones and without those in folders below it.

    Raises:
        ImageError: there are none.
    """
    found = sorted(path for path in folder.iterdir() if _is_image(path))
    if not found:
        raise ImageError(f"expected images ({', '.join(BIT_DEPTHS)}) in the folder {folder}, found none")
    return found


def find_sources(inputs: Sequence[str]) -> list[Path]:
    """Return the files that the arguments name, each once, in order: files, folders and glob patterns.

    Raises:
        ImageError: an argument names nothing.
    """
    found: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found += images_in(path)
        elif path.is_file():
            found.append(path)
        else:
            # Shells on Windows leave patterns to the program. Unlike Path.glob this takes absolute ones.
            matches = (Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207
            images = sorted(match for match in matches if _is_image(match))
            if not images:
                raise ImageError(f"expected an image file, a folder of them or a pattern, found nothing at {name}")
            found += images
    return list(dict.fromkeys(found))


def plan_jobs(inputs: Sequence[str], out: Path, naming: Naming) -> list[Job]:
    """Return what is read and where each result goes.

    One file may be written under the name ``out``; otherwise ``out`` is a folder. A name without a type, such as
    ``-o results``, means a folder.

    Raises:
        ImageError: an argument names no image.
        OptionError: ``out`` is a file where a folder is needed, or two results would get the same name.
    """
    sources = find_sources(inputs)
    single = len(inputs) == 1 and Path(inputs[0]).is_file()
    if single and out.suffix and not out.is_dir():
        if naming != Naming():
            _log.warning("--format and --suffix have no effect: the output is called %s", out.name)
        return [Job(source=sources[0], target=out)]
    if out.is_file() or (out.suffix.lower() in BIT_DEPTHS and not out.is_dir()):
        raise OptionError(f"expected a folder after -o for {len(sources)} images, got the file {out}: name a folder")
    jobs = [Job(source=source, target=out / naming.target(source)) for source in sources]
    taken: dict[str, Path] = {}
    for job in jobs:
        # In lower case, because on some systems a.png and A.png are one file.
        other = taken.setdefault(str(job.target).lower(), job.source)
        if other != job.source:
            raise OptionError(
                f"expected results with different names, got {job.target} for both {other} and {job.source}:"
                " rename one of them, or restore them into different folders"
            )
    return jobs


def check_targets(targets: Iterable[Path], *, overwrite: bool) -> None:
    """Check that nothing would be lost by writing ``targets``.

    Raises:
        OptionError: one of them is there already.
    """
    existing = [] if overwrite else [target for target in targets if target.exists()]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise OptionError(f"expected new files to write, but {existing[0]}{more} exists: add --overwrite")


def check_weight_target(target: Path, *, overwrite: bool) -> None:
    """Check that a weight file can be written under the name ``target``.

    Raises:
        OptionError: the name is not that of a .safetensors file, its folder is missing, or it is taken.
    """
    if target.suffix not in SUFFIXES:
        raise OptionError(f"expected a name that ends in {' or '.join(SUFFIXES)}, got {target.name!r}")
    if not target.parent.is_dir():
        raise OptionError(f"expected a folder to write to, found none at {target.parent}: make it first")
    if target.exists() and not overwrite:
        raise OptionError(f"{target.name} exists already: choose another name, or --overwrite")


def check_format(target: Path, bit_depth: BitDepth | None) -> None:
    """Check that the type of ``target`` can be written, at ``bit_depth`` where one was asked for.

    Raises:
        OptionError: it cannot.
    """
    suffix = target.suffix.lower()
    if suffix not in BIT_DEPTHS:
        raise OptionError(f"expected an output file ending in one of {', '.join(BIT_DEPTHS)}, got {target.name}")
    if bit_depth is not None and bit_depth not in BIT_DEPTHS[suffix]:
        fitting = ", ".join(name for name, depths in BIT_DEPTHS.items() if bit_depth in depths)
        raise OptionError(f"expected a file ending in one of {fitting} for --bit-depth {bit_depth}, got {target.name}")


def check_alpha(target: Path, channels: int) -> None:
    """Check that ``target`` can hold as many channels as the image has, before time is spent on it.

    Raises:
        OptionError: the image has alpha and the file type has none.
    """
    if channels == 4 and target.suffix.lower() in WITHOUT_ALPHA:
        raise OptionError(f"expected an output type with alpha for an image that has it, got {target.name}: write PNG")


def fitting_depth(target: Path, source_depth: BitDepth) -> BitDepth:
    """Return the bits per channel that keep most of the input's: its own, or the next lower that the type can hold."""
    return max(depth for depth in BIT_DEPTHS[target.suffix.lower()] if depth <= source_depth)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in BIT_DEPTHS and not path.name.startswith(".") and path.is_file()
