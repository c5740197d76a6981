"""A strictly typed look at a JSON object: every value that a file gives is checked before it is used.

Role: used by ``metadata`` alone; what a value means is checked by ``spec``.
"""

import json
from collections.abc import Mapping
from typing import cast

from .errors import CheckpointError

MAX_NUMBER = 1e30
"""Beyond what any field means; keeps huge integers from overflowing a float."""


def load_object(text: str) -> dict[str, object]:
    """Return the JSON object in the metadata of a file.

    Raises:
        CheckpointError: it is none.
    """
    try:
        values: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the GenDR metadata is not valid JSON ({error}): the file is damaged") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"expected a JSON object as GenDR metadata, got {type(values).__name__}: the file is damaged"
        )
    return cast("dict[str, object]", values)


class Fields:
    """Strictly typed look at a JSON object: no number for a flag, no flag for a number, nothing infinite.

    Its methods raise CheckpointError where a value is of another type.
    """

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        """Look at ``values``, which errors call ``where``."""
        self._values = values
        self._where = where

    def integer(self, name: str) -> int:
        """Return an integer."""
        return self._integer(name, self._values[name])

    def number(self, name: str) -> float:
        """Return a finite number, at most ``MAX_NUMBER`` from zero."""
        value = self._values[name]
        if type(value) not in (int, float):
            raise self._wrong(name, "a number", value)
        number = cast("int | float", value)
        if not abs(number) <= MAX_NUMBER:  # NaN fails here too
            raise self._wrong(name, "a finite number", value)
        return float(number)

    def text(self, name: str) -> str:
        """Return a text, an empty one where there is none."""
        return self._text(name, self._values.get(name, ""))

    def flag(self, name: str) -> bool:
        """Return true or false."""
        return self._flag(name, self._values[name])

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of integers."""
        return tuple(self._integer(name, item) for item in self._list(name))

    def flags(self, name: str) -> tuple[bool, ...]:
        """Return a list of true and false."""
        return tuple(self._flag(name, item) for item in self._list(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(self._text(name, item) for item in self._list(name))

    def _list(self, name: str) -> list[object]:
        value = self._values[name]
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        return cast("list[object]", value)

    def _integer(self, name: str, value: object) -> int:
        if type(value) is not int:
            raise self._wrong(name, "an integer", value)
        return value

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise self._wrong(name, "text", value)
        return value

    def _flag(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def _wrong(self, name: str, expected: str, value: object) -> CheckpointError:
        return CheckpointError(f"expected {expected} as {name} of the {self._where}, got {value!r:.80}")
