"""The errors that users see, one small tree under ``GenDRError``.

Role: the bottom of the house; every layer may raise these. Each message says what was expected, what came and
what to change, in the words of the command line and the nodes; ``errors_about`` adds of which file, and ``listed``
shortens what it lists.
"""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

MAX_LISTED = 5
"""How many names a message lists before it only counts."""


class GenDRError(Exception):
    """Base of every error that GenDR raises on purpose; its text is fit to be shown to a user."""


class OptionError(GenDRError, ValueError):
    """An option has a value outside its range, or two options contradict each other."""


class ImageError(GenDRError, ValueError):
    """An image has the wrong shape, range, dtype or content, or its file cannot be read or written."""


class ShapeError(GenDRError, ValueError):
    """A tensor does not fit the network it was given to."""


class CheckpointError(GenDRError, ValueError):
    """A weight file is not what was asked for: wrong kind, damaged, incomplete or unsafe."""


class HubError(GenDRError):
    """A file cannot be had: no connection, no permission, no space, or not the file that was asked for."""


class OutOfMemoryError(GenDRError, MemoryError):
    """The work does not fit in the memory that there is, however it is divided."""


@contextmanager
def errors_about(path: Path) -> Generator[None]:
    """Put the file's name before what a ``CheckpointError`` says; not its folder, which may tell more than is wanted.

    Raises:
        CheckpointError: the block raised one.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error


def listed(names: Collection[str]) -> str:
    """Return the first names in words, and how many more there are."""
    more = len(names) - MAX_LISTED
    return ", ".join(list(names)[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
