"""Sizes as integers: how large the output is, and what is added around it so that the networks can take it.

Role: the first thing ``pipeline`` and the planner ask; ``prepare`` pads and ``decode`` crops by the same values.
No torch here.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor

from .config import RestoreOptions
from .errors import OptionError

MAX_EDGE = 32768
"""Longest output edge in pixels: a bound on mistyped sizes, far above what any machine here restores."""
PAD_MULTIPLE = 64
"""Output pixels that both edges of the networks' input divide by: 8 per latent cell times 8 in the UNet."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Height and width in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        """Return the size in the order users write it, ``WIDTHxHEIGHT``."""
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding:
    """Pixels added at each side, 0 or more."""

    left: int
    right: int
    top: int
    bottom: int

    def around(self, extent: Extent) -> Extent:
        """Return the size of ``extent`` with this padding added."""
        return Extent(extent.height + self.top + self.bottom, extent.width + self.left + self.right)


def _factor(source: Extent, options: RestoreOptions, default_scale: float) -> Fraction:
    if options.longest_edge is not None:
        return Fraction(options.longest_edge, max(source.height, source.width))
    if options.shortest_edge is not None:
        return Fraction(options.shortest_edge, min(source.height, source.width))
    scale = default_scale if options.scale is None else options.scale
    # By way of the decimal text, so that 1.1 is eleven tenths and halves round up as the user computed them.
    return Fraction(str(scale))


def output_extent(source: Extent, options: RestoreOptions, default_scale: float) -> Extent:
    """Return the size of the restored image: each edge times one factor, halves rounded up, at least 1 pixel.

    An edge that the options name comes out exactly as asked.

    Args:
        source: size of the input, at least 1x1.
        options: holds at most one of ``scale``, ``longest_edge`` and ``shortest_edge``.
        default_scale: the model's own factor, taken when the options name none.

    Raises:
        OptionError: an edge would be longer than ``MAX_EDGE``.
    """
    factor = _factor(source, options, default_scale)
    height, width = (max(1, floor(edge * factor + Fraction(1, 2))) for edge in (source.height, source.width))
    output = Extent(height, width)
    if max(height, width) > MAX_EDGE:
        raise OptionError(
            f"expected an output of at most {MAX_EDGE} pixels per edge, got {output} from an input of {source}"
            f" at {float(factor):g} times its size: choose a smaller scale, longest_edge or shortest_edge"
        )
    return output


def padding_to_multiple(extent: Extent, multiple: int) -> Padding:
    """Return the least padding that makes both edges divide by ``multiple``, split evenly.

    An odd pixel goes to the right and to the bottom.

    Args:
        extent: size in pixels.
        multiple: at least 1.
    """
    rows, columns = -extent.height % multiple, -extent.width % multiple
    top, left = rows // 2, columns // 2
    return Padding(left=left, right=columns - left, top=top, bottom=rows - top)
