"""The user's interrupt, at a moment that is known before."""


class Stopping:
    """Counts how often it is asked, and stops when it is asked for the nth time."""

    def __init__(self, at: int | None = None) -> None:
        """Begin at 0; ``at`` is n, and without it nothing stops."""
        self.asked, self._at = 0, at

    def check(self) -> None:
        """Raise ``InterruptedError`` when it is time."""
        self.asked += 1
        if self.asked == self._at:
            raise InterruptedError
