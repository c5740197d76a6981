"""Restorers that are the same computation as GenDR with other numbers, and what becomes of their files.

Role: below ``convert``; above ``adapters``. One file per relative; ``relative`` says what one is,
``refused`` which cannot be had.
"""

from ..errors import CheckpointError, OptionError
from .hypir import HYPIR
from .osediff import OSEDIFF
from .pisasr import PISASR
from .refused import REFUSED, Refused, recognise_refused
from .relative import Bases, Degradation, Merged, Published, Relative
from .s3diff import S3DIFF
from .tvt import TVT

__all__ = [
    "REFUSED",
    "RELATIVES",
    "Bases",
    "Degradation",
    "Merged",
    "Published",
    "Refused",
    "Relative",
    "check_published",
    "find_relative",
]

RELATIVES = (OSEDIFF, PISASR, HYPIR, S3DIFF, TVT)


def find_relative(name: str) -> Relative:
    """Return the relative that a user means; case, dashes and underscores do not matter.

    Raises:
        OptionError: it cannot be converted, for a reason that is given, or is not known.
    """
    wanted = _plain(name)
    for relative in RELATIVES:
        if wanted in (_plain(relative.key), _plain(relative.title)):
            return relative
    for refused in REFUSED:
        if wanted == _plain(refused.key):
            raise OptionError(f"{refused.title} cannot be converted: {refused.reason}")
    raise OptionError(f"expected one of {', '.join(relative.key for relative in RELATIVES)}, got {name!r:.40}")


def check_published(published: Published, relative: Relative) -> None:
    """Check that a file looks like that of ``relative``, by the names in it.

    Raises:
        CheckpointError: it is another's; the text says whose, where that can be told.
    """
    refused = recognise_refused(published.tensors.keys())
    if refused is not None:
        raise CheckpointError(f"expected the file of {relative.title}, got that of {refused.title}: {refused.reason}")
    for other in RELATIVES:
        if other is not relative and other.marks and all(map(published.has, other.marks)):
            raise CheckpointError(
                f"expected the file of {relative.title}, got that of {other.title}: run gendr convert {other.key}"
            )
    missing = sorted(mark for mark in relative.marks if not published.has(mark))
    if missing:
        raise CheckpointError(
            f"expected the file of {relative.title}, which has {', '.join(missing)}; got one without: choose its"
            " published file"
        )


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
