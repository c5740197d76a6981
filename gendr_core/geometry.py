"""Sizes as integers: how large the output is, and what is added around it so that the networks can take it.

Role: the first thing ``pipeline`` and the planner ask; ``prepare`` pads and ``decode`` crops by the same values.
No torch here.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor

from .config import RestoreOptions
from .errors import OptionError
from .spec import ModelSpec

MAX_EDGE = 32768
"""Longest output edge in pixels: a bound on mistyped sizes, far above what any machine here restores."""
PAD_MULTIPLE = 64
"""Output pixels that both edges of the networks' input divide by: 8 per latent cell times 8 in the UNet of SD2.1.
Smaller networks get no less, so that tiles that a user names fit them all."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Height and width in pixels."""

    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of places."""
        return self.height * self.width

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


@dataclass(frozen=True, slots=True)
class Span:
    """A part of one axis: ``start`` to ``stop``, the latter excluded."""

    start: int
    stop: int

    def __len__(self) -> int:
        """Return the number of places."""
        return self.stop - self.start

    def widened(self, before: int, after: int, length: int) -> "Span":
        """Return the span with ``before`` and ``after`` more places, cut off at both ends of an axis of ``length``."""
        return Span(max(0, self.start - before), min(length, self.stop + after))

    def times(self, factor: int) -> "Span":
        """Return the same part of an axis with ``factor`` times as many places."""
        return Span(self.start * factor, self.stop * factor)

    def within(self, other: "Span") -> slice:
        """Return where this span lies inside a tensor that holds ``other``."""
        return slice(self.start - other.start, self.stop - other.start)

    @property
    def places(self) -> slice:
        """The slice of a tensor that holds the whole axis."""
        return slice(self.start, self.stop)


def partition(length: int, size: int) -> list[Span]:
    """Return consecutive spans that cover an axis of ``length`` exactly, all of ``size`` but for a shorter last one."""
    return [Span(start, min(start + size, length)) for start in range(0, length, size)]


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


def pad_multiple(spec: ModelSpec) -> int:
    """Return how many output pixels both edges of a model's input divide by: a latent cell times the UNet's strides.

    Never less than ``PAD_MULTIPLE``; always a multiple of ``spec.cell_px``.
    """
    return max(PAD_MULTIPLE, spec.cell_px * 2 ** (spec.arch.num_levels - 1))


def tile_spans(length: int, size: int, overlap: int, multiple: int) -> list[Span]:
    """Return the fewest spans of one length, ``min(size, length)``, that cover an axis of ``length`` exactly.

    They are spread evenly: starts are multiples of ``multiple`` and their distances differ by at most one such step,
    so no overlap is much wider than the others. Where ``length`` is no multiple, the last start is none either: that
    span still ends with the axis.

    Args:
        length: places of the axis, at least 1.
        size: most places of a span, a multiple of ``multiple``.
        overlap: least overlap of neighbours, a multiple of ``multiple`` and smaller than ``size``.
        multiple: at least 1.
    """
    if length <= size:
        return [Span(0, length)]
    last = length - size
    num_steps = -(-last // (size - overlap))
    # Counted in multiples, rounded up: with a rest left over, only the last step is shorter, never longer.
    places = -(-last // multiple)
    starts = (min(step * places // num_steps * multiple, last) for step in range(num_steps + 1))
    return [Span(start, start + size) for start in starts]
