"""Pickled weight files, read in a child process with bounds on memory and time.

Role: below ``convert``, the only part of GenDR that opens such a file; everything else refuses it. The child is
``pickled_child``. It hands its result over as a file, so that nothing that it sends is ever unpickled here.
"""

import re
import runpy
import sys
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import monotonic
from types import ModuleType

from .errors import CheckpointError
from .host import NEVER, Interrupt
from .pickled_child import RUN_NAME

ZIP_START = b"PK\x03\x04"
CHILD = Path(__file__).with_name("pickled_child.py")

MEMORY_FACTOR = 4
"""Tensors as read, copied in one piece, and as bytes to be written; one more for what lies between."""
BASE_MEMORY_BYTES = 2**30
BASE_SECONDS = 180.0
"""Starting Python and torch included, which takes half a minute on a busy machine."""
BYTES_PER_SECOND = 10 * 2**20
"""Of the slowest disk to wait for."""
POLL_S = 0.2
"""Between two looks at the child and at the interrupt."""


@contextmanager
def unpickled(
    path: Path,
    *,
    seconds: float | None = None,
    memory_bytes: int | None = None,
    interrupt: Interrupt = NEVER,
) -> Generator[Path]:
    """Give a safetensors file with the tensors of a pickled one, for as long as the block lasts.

    Names of nested dicts are joined by ``pickled_child.SEPARATOR``; numbers and texts are in the metadata.

    Args:
        path: what torch.save has written since PyTorch 1.6: a dict of tensors, numbers, texts and such dicts.
        seconds: how long reading may take; None goes by the size of the file.
        memory_bytes: how much memory reading may take; None goes by the size of the file.
        interrupt: asked several times a second while the child reads; what it raises ends the child.

    Raises:
        CheckpointError: the file is no such dict, names code, is damaged, or takes too long or too much memory.
    """
    _check_start(path)
    size = path.stat().st_size
    memory = BASE_MEMORY_BYTES + MEMORY_FACTOR * size if memory_bytes is None else memory_bytes
    wait = BASE_SECONDS + size / BYTES_PER_SECOND if seconds is None else seconds
    with TemporaryDirectory(prefix="gendr-", ignore_cleanup_errors=True) as folder:
        target, log = Path(folder) / "tensors.safetensors", Path(folder) / "log.txt"
        code = _run_child((path.resolve(), target, log, memory), wait, interrupt)
        if code is None:
            raise CheckpointError(f"{path.name}: reading it took more than {wait:.0f} seconds: download it again")
        if code != 0 or not target.is_file():
            raise CheckpointError(f"{path.name}: the file cannot be read: {_reason(log, code)}")
        yield target


def _check_start(path: Path) -> None:
    """Raise where a look at the first bytes is enough to know that the file is of no use."""
    if not path.is_file():
        raise CheckpointError(f"{path.name}: expected a weight file, found no file of this name: check the path")
    with path.open("rb") as file:
        start = file.read(len(ZIP_START))
    if start != ZIP_START:
        raise CheckpointError(
            f"{path.name}: expected a file of torch.save (PyTorch 1.6 or newer), got one that starts with {start!r}: it"
            " is damaged, or another format. Download it again"
        )


def _run_child(job: tuple[Path, Path, Path, int], seconds: float, interrupt: Interrupt) -> int | None:
    """Return with which code the child ended, or None where it had to be ended."""
    # By path and not by module: ComfyUI loads this package under a name that a child could not import.
    child = get_context("spawn").Process(
        target=runpy.run_path,
        args=(str(CHILD),),
        kwargs={"init_globals": {"JOB": job}, "run_name": RUN_NAME},
        daemon=True,
    )
    with _without_main():
        child.start()
    deadline = monotonic() + seconds
    try:
        while child.exitcode is None and monotonic() < deadline:
            interrupt.check()
            child.join(min(POLL_S, seconds))
        return child.exitcode
    finally:
        if child.is_alive():
            child.kill()
            child.join()


_STARTING = Lock()


@contextmanager
def _without_main() -> Generator[None]:
    """Keep a child that is started from running this program's main file again, as spawned ones do.

    That of ComfyUI would set up the host and run every node pack's prestartup script.
    """
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _reason(log: Path, code: int | None) -> str:
    """Return why the child failed, in words."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    named = re.search(r"Unsupported \w+: (?:GLOBAL )?([\w.]{1,80})", text)
    if named is not None:
        return f"it names {named[1]}, which is no part of a dict of tensors and could run code. Do not use it"
    if "MemoryError" in text or "allocate memory" in text or "not enough memory" in text or (code or 0) < 0:
        return "it asks for more memory than a file of its size should need: it is damaged or made to do harm"
    if "BadZipFile" in text:
        return "its archive is cut short or damaged: download it again"
    lines = text.strip().splitlines()
    if not lines:
        return f"the process that reads it ended with code {code} and said nothing"
    last = lines[-1].partition(": ")[2] or lines[-1]
    return f"{last:.300}. {'Do not use it' if 'could run code' in last else 'Get it from its authors again'}"
