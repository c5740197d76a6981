"""What a user may choose for one restoration, as a frozen value.

Role: read by ``pipeline.restore``; filled by the command line and the nodes. No torch here.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from .errors import OptionError

ColorMethod = Literal["none", "wavelet", "adain", "lab", "ycbcr"]

COLOR_METHODS: tuple[ColorMethod, ...] = get_args(ColorMethod)
MIN_SCALE = 0.25
MAX_SCALE = 16.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreOptions:
    """Options of one restoration. At most one of ``scale``, ``longest_edge`` and ``shortest_edge`` is given."""

    scale: float | None = None
    """Output size over input size, 0.25 to 16. None with no edge given means the model's own scale."""
    longest_edge: int | None = None
    """Longest output edge in pixels; the aspect ratio is kept."""
    shortest_edge: int | None = None
    """Shortest output edge in pixels; the aspect ratio is kept."""
    color: ColorMethod = "wavelet"
    """How the colours of the input are carried over to the output (``color.match_color``)."""
    guidance: float | None = None
    """Classifier-free guidance weight. None means the model's own; 1.0 runs one pass, any other value two."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            OptionError: a value is out of its range, or more than one size rule is given.
        """
        rules = {
            "scale": self.scale,
            "longest_edge": self.longest_edge,
            "shortest_edge": self.shortest_edge,
        }
        given = [name for name, value in rules.items() if value is not None]
        if len(given) > 1:
            raise OptionError(
                f"expected at most one of {', '.join(rules)}, got {' and '.join(given)}: drop all but one"
            )
        if self.scale is not None and not MIN_SCALE <= self.scale <= MAX_SCALE:
            raise OptionError(f"expected scale from {MIN_SCALE} to {MAX_SCALE}, got {self.scale}")
        for name in ("longest_edge", "shortest_edge"):
            edge = rules[name]
            if edge is not None and edge < 1:
                raise OptionError(f"expected {name} of at least 1 pixel, got {edge}")
        if self.color not in COLOR_METHODS:
            raise OptionError(f"expected color to be one of {', '.join(COLOR_METHODS)}, got {self.color!r}")
        if self.guidance is not None and not 0.0 <= self.guidance <= 20.0:
            raise OptionError(f"expected guidance from 0 to 20, got {self.guidance}")
