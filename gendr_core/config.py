"""What a user may choose for one restoration, as a frozen value.

Role: read by ``pipeline.restore``; filled by the command line and the nodes. No torch here.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from .errors import OptionError

ColorMethod = Literal["none", "wavelet", "adain", "lab", "ycbcr"]
MemoryMode = Literal["auto", "whole", "tiles"]
AttentionRange = Literal["windows", "full"]
GraphMode = Literal["off", "auto"]
WeightFormat = Literal["dtype", "fp8"]

COLOR_METHODS: tuple[ColorMethod, ...] = get_args(ColorMethod)
MEMORY_MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)
ATTENTION_RANGES: tuple[AttentionRange, ...] = get_args(AttentionRange)
GRAPH_MODES: tuple[GraphMode, ...] = get_args(GraphMode)
WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
"""How weights stay in memory: in the dtype that their network computes in, or in 8 bits (docs/memory.md)."""
MIN_SCALE = 0.25
MAX_SCALE = 16.0
MAX_DETAIL = 1.5
MAX_FEATHER_PX = 256
TILE_STEP_PX = 64
"""Output pixels that tile sizes and overlaps divide by: 8 per latent cell times 8 in the UNet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryOptions:
    """How much memory a restoration may take and how it is divided; the defaults leave everything to the planner."""

    mode: MemoryMode = "auto"
    """``whole`` never cuts the frame into tiles, ``tiles`` always does where it is larger than one."""
    attention: AttentionRange = "windows"
    """What the UNet's self-attention sees: overlapping windows, or the whole frame at a cost that grows with the
    square of its size. The same up to 768 pixels per edge."""
    budget_bytes: int | None = None
    """Most bytes of weights and activations together on the device; None takes what is free, less a reserve."""
    tile_px: int | None = None
    """Edge of a tile in output pixels, a multiple of 64; None lets the planner choose."""
    overlap_px: int | None = None
    """Least overlap of tiles in output pixels, a multiple of 64; None is a quarter of the tile."""
    tile_batch: int | None = None
    """Tiles that go through the network together; None lets the planner choose."""
    frame_batch: int | None = None
    """Frames of a batch that go through the networks together; None is as many small ones as keep a CUDA device busy,
    and one elsewhere. Results differ by rounding at most."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            OptionError: a value is out of its range.
        """
        if self.mode not in MEMORY_MODES:
            raise OptionError(f"expected a memory mode of {', '.join(MEMORY_MODES)}, got {self.mode!r}")
        if self.attention not in ATTENTION_RANGES:
            raise OptionError(f"expected attention to be one of {', '.join(ATTENTION_RANGES)}, got {self.attention!r}")
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise OptionError(f"expected a budget of at least 1 byte, got {self.budget_bytes}")
        if self.tile_px is not None and (self.tile_px < TILE_STEP_PX or self.tile_px % TILE_STEP_PX):
            raise OptionError(f"expected a tile size that is a multiple of {TILE_STEP_PX} pixels, got {self.tile_px}")
        if self.overlap_px is not None and (self.overlap_px < 0 or self.overlap_px % TILE_STEP_PX):
            raise OptionError(f"expected an overlap that is a multiple of {TILE_STEP_PX} pixels, got {self.overlap_px}")
        if self.tile_px is not None and self.overlap_px is not None and self.overlap_px >= self.tile_px:
            raise OptionError(f"expected an overlap below the tile size, {self.tile_px} pixels, got {self.overlap_px}")
        if self.tile_batch is not None and self.tile_batch < 1:
            raise OptionError(f"expected at least 1 tile at a time, got {self.tile_batch}")
        if self.frame_batch is not None and self.frame_batch < 1:
            raise OptionError(f"expected at least 1 frame at a time, got {self.frame_batch}")


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
    detail: float = 1.0
    """How much the fine detail that the model adds counts, 0 to 1.5; 1 leaves it alone (``finish.scale_detail``)."""
    feather_px: int = 8
    """How far the border of a mask is smoothed to each side, in output pixels, 0 to 256; no matter without one."""
    guidance: float | None = None
    """Classifier-free guidance weight. None means the model's own; 1.0 runs one pass, any other value two."""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    graphs: GraphMode = "off"
    """``auto`` records small frames of a size that comes again as CUDA graphs: the same result, less time between
    kernels, up to 2 GiB of the device's memory. Without CUDA it does nothing."""

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
        if self.graphs not in GRAPH_MODES:
            raise OptionError(f"expected graphs to be one of {', '.join(GRAPH_MODES)}, got {self.graphs!r}")
        if not 0.0 <= self.detail <= MAX_DETAIL:
            raise OptionError(f"expected detail from 0 to {MAX_DETAIL}, got {self.detail}")
        if not 0 <= self.feather_px <= MAX_FEATHER_PX:
            raise OptionError(f"expected feather from 0 to {MAX_FEATHER_PX} pixels, got {self.feather_px}")
        if self.guidance is not None and not 0.0 <= self.guidance <= 20.0:
            raise OptionError(f"expected guidance from 0 to 20, got {self.guidance}")
