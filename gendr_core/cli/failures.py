"""Which errors are the user's to solve, and what they are told.

Role: used by ``main`` and by the commands that go on with the next file after a failure.
"""

import sys
import traceback

from ..errors import GenDRError

OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory")
"""What torch's allocators say, for CUDA and MPS, Windows, and Linux; on the CPU it is a bare RuntimeError."""

FAILURES = (GenDRError, OSError, MemoryError, RuntimeError)
"""What commands catch; ``explain`` then tells which of them are no fault of GenDR."""


def explain(error: Exception) -> str | None:
    """Return the message for the user, or None where the error is a fault of GenDR that needs its traceback."""
    if isinstance(error, (GenDRError, OSError)):
        return str(error)
    text = str(error).lower()
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in text for s in OUT_OF_MEMORY)):
        return (
            "expected enough memory for the whole image, got none left: choose a smaller size, --dtype bf16 or"
            ' another --device; "gendr plan" tells how much is needed'
        )
    return None


def report_failure(source: object, error: Exception, *, debug: bool) -> str:
    """Print that one file of several failed and return the message; other errors than ``explain`` knows pass through.

    Args:
        source: the file.
        error: what it raised.
        debug: whether to print the traceback too.
    """
    message = explain(error)
    if message is None:
        raise error
    if debug:
        traceback.print_exception(error)
    print(f"gendr: error: {source}: {message}", file=sys.stderr)
    return message
