"""A conversion as files of the host's model folders: whether it is done already, and how its results get there.

Role: below ``convert``, the node, and above the core's ``convert``, which merges. Knows nothing of sockets.
"""

import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

import torch

from ..gendr_core.checkpoint import SUFFIXES, inspect
from ..gendr_core.convert import Conversion, Prompts, convert, read_prompts
from ..gendr_core.errors import CheckpointError, OptionError
from ..gendr_core.relatives import RELATIVES, Relative
from ..gendr_core.tensorfile import READABLE_DTYPES
from .folders import output_path

if TYPE_CHECKING:
    from ..gendr_core.host import Host, Interrupt

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""By the widget's value."""
STEPS = 3
"""Of progress: converted, in place, loaded."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """What the node is asked for."""

    conversion: Conversion
    prompts: Prompts | None
    """None where nothing is connected, which is enough for files that are there already."""
    targets: tuple[Path, ...]
    """Where the UNets go, in the order of the relative's parts, and last the VAE."""


def targets_of(relative: Relative, name: str) -> tuple[Path, ...]:
    """Return where the files go, as ``Job.targets``; ``name`` is what theirs begin with.

    Raises:
        OptionError: the name is not that of a file.
    """
    # Workflows come from strangers: nothing is ever written outside of the model folders.
    if re.fullmatch(r"[^/\\:*?\"<>|\x00-\x1f.][^/\\:*?\"<>|\x00-\x1f]{0,99}", name) is None:
        raise OptionError(f"expected a name for files, without folders and without a dot first, got {name!r:.120}")
    stems = [f"{name}-{part}-unet" if part else f"{name}-unet" for part in relative.parts]
    unets = [output_path("diffusion_models", f"{stem}{SUFFIXES[0]}") for stem in stems]
    return (*unets, output_path("vae", f"{name}-vae{SUFFIXES[0]}"))


def exists(job: Job) -> bool:
    """Return whether there is nothing to convert.

    Raises:
        OptionError: what is there comes from something else, or is not all of it.
    """
    there = [path for path in job.targets if path.exists()]
    if not there:
        return False
    advice = "switch overwrite on, or choose another name"
    missing = [path.name for path in job.targets if path not in there]
    if missing:
        raise OptionError(f"found {there[0].name} without {', '.join(missing)}: {advice}")
    for path, part in zip(job.targets, (*job.conversion.relative.parts, ""), strict=True):
        other = _difference(path, part, job)
        if other is not None:
            raise OptionError(f"{path.name} is there already and has {other}: {advice}")
    return True


def _difference(path: Path, part: str, job: Job) -> str | None:
    """Return in what a file differs from what the job would write, or None."""
    report, words = inspect(path), job.conversion.words(part)
    if report.spec is None or report.spec.title != words["title"]:
        found = "something unknown" if report.spec is None else report.spec.title or "something without a title"
        return f"{found} in it, not {words['title']}"
    if report.spec.source != words["source"]:
        return f"{words['title']} of other files in it ({report.spec.source or 'unknown ones':.300})"
    if READABLE_DTYPES.get(report.dtypes[0]) != job.conversion.dtype:
        wanted = next(name for name, dtype in READABLE_DTYPES.items() if dtype == job.conversion.dtype)
        return f"weights in {report.dtypes[0]}, not {wanted}"
    if job.prompts is None or path == job.targets[-1]:
        return None
    stored = read_prompts(path)
    for wanted, found in ((job.prompts.positive, stored.positive), (job.prompts.negative, stored.negative)):
        if wanted is not None and (found is None or not torch.equal(wanted, found)):
            return "another prompt"
    return None


def write(job: Job, host: "Host") -> None:
    """Convert; files appear whole, and only once all are ready. Cancelled in between, nothing is left.

    Raises:
        OptionError: a prompt is missing, or a file that is no conversion is in the way.
        CheckpointError: a file cannot be read or written, or does not fit the others.
    """
    if job.prompts is None:
        raise OptionError(
            "expected a positive prompt to store with the model, got none: connect CLIP Text Encode with an SD2.x CLIP;"
            " its text may be empty"
        )
    relative = job.conversion.relative
    if job.prompts.negative is None and relative.guidance != 1.0:
        raise OptionError(f"{relative.title} runs with guidance: connect a negative prompt, too")
    for path in job.targets:
        _check_replaceable(path)
    folder = job.targets[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its targets: on the same disk, which has to have the room in any case.
        with TemporaryDirectory(prefix=".gendr-", dir=folder, ignore_cleanup_errors=True) as temporary:
            written = convert(job.conversion, job.prompts, Path(temporary), host.interrupt)
            host.progress.update(1, STEPS)
            _place(written, job.targets, host.interrupt)
            host.progress.update(2, STEPS)
    except OSError as error:
        raise CheckpointError(
            f"the new files cannot be written to {folder.name}: {error.strerror or error}. Make room, make the folder"
            " writable, or free a model that is loaded from the same file"
        ) from error


def _check_replaceable(path: Path) -> None:
    spec = inspect(path).spec if path.exists() else None
    if path.exists() and (spec is None or all(relative.source not in spec.source for relative in RELATIVES)):
        raise OptionError(f"{path.name} is there and no result of a conversion: choose another name")


def _place(written: list[Path], targets: tuple[Path, ...], interrupt: "Interrupt") -> None:
    """Move files to their places; those of earlier conversions are replaced once all of the new ones are there."""
    with ExitStack() as undo:
        waiting: list[Path] = []
        for source, target in zip(written, targets, strict=True):
            interrupt.check()
            target.parent.mkdir(parents=True, exist_ok=True)
            # Of no suffix that the host lists; the VAE's folder may be on another disk.
            waiting.append(target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp"))
            undo.callback(waiting[-1].unlink, missing_ok=True)
            shutil.move(source, waiting[-1])
        for path, target in zip(waiting, targets, strict=True):
            path.replace(target)
