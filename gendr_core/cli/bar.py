"""Progress of several files on one bar.

Role: what ``restore`` shows on a terminal; the pipeline reports to it as to any host.
"""

import sys
from typing import Any

from tqdm import tqdm

from ..host import Meter


class Bar:
    """A bar on stderr, shown on a terminal only. One thread moves it; lines may come from any."""

    def __init__(self, num_files: int, *, quiet: bool) -> None:
        """Start before the first of ``num_files``; a ``quiet`` bar is never shown."""
        self._files_done, self._files_begun, self._num_files = 0, 1, num_files
        self._bar: tqdm[Any] = tqdm(
            total=Meter.STEPS * num_files,
            bar_format="{l_bar}{bar}| {elapsed}<{remaining}",
            disable=quiet or not sys.stderr.isatty(),
        )

    def begin(self, files_done: int, files_begun: int) -> None:
        """Show that ``files_done`` are done with, whether they went well or not, and begin so many more together."""
        self._files_done, self._files_begun = files_done, files_begun
        self.update(0, Meter.STEPS)

    def update(self, done: int, total: int) -> None:
        """Show that ``done`` of the ``total`` steps of the files begun together are finished."""
        del total
        self._bar.update(self._files_done * Meter.STEPS + done * self._files_begun - self._bar.n)

    def finish(self) -> None:
        """Show that all files are done with."""
        self.begin(self._num_files, 0)

    def say(self, line: str) -> None:
        """Print a line on stdout without tearing the bar."""
        self._bar.write(line, file=sys.stdout)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        self._bar.close()
