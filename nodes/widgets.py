"""The widgets that several nodes share, and the options of the core that their values mean.

Role: used by the nodes that load and restore, beside ``sockets``. A saved workflow holds its values by their order, so
new widgets come last.
"""

from typing import TYPE_CHECKING, TypedDict, TypeVar

from comfy_api.latest import io

from ..gendr_core.config import (
    ATTENTION_RANGES,
    COLOR_METHODS,
    MAX_DETAIL,
    MAX_FEATHER_PX,
    MAX_SCALE,
    MEMORY_MODES,
    MIN_SCALE,
    TILE_STEP_PX,
    WEIGHT_FORMATS,
    AttentionRange,
    ColorMethod,
    MemoryMode,
    MemoryOptions,
    RestoreOptions,
)
from ..gendr_core.geometry import MAX_EDGE

if TYPE_CHECKING:
    from typing_extensions import Unpack

BY_FACTOR, LONGEST_EDGE, SHORTEST_EDGE = "by factor", "longest edge", "shortest edge"
SIZE_RULES = (BY_FACTOR, LONGEST_EDGE, SHORTEST_EDGE)
GIB = 2**30
MAX_BUDGET_GIB = 1024.0
MAX_TILE_BATCH = 64
DEFAULT_MEMORY = MemoryOptions()
DEFAULTS = RestoreOptions()

Widget = TypeVar("Widget", bound=io.Input)


class MemoryWidgets(TypedDict, total=False):
    """Values of the widgets of ``memory_inputs`` and ``budget_input``; 0 leaves the choice to the planner."""

    memory: MemoryMode
    attention: AttentionRange
    budget_gib: float
    tile: int
    overlap: int
    tile_batch: int


def size_inputs() -> list[io.Input]:
    """Return the three widgets that choose the output size; ``restore_options`` reads them."""
    return [
        io.Combo.Input(
            "size",
            options=list(SIZE_RULES),
            default=BY_FACTOR,
            tooltip="How the output size is chosen: the input size times the factor, or so that its longest or shortest"
            " edge is the given number of pixels. The aspect ratio is kept.",
        ),
        io.Float.Input(
            "factor",
            default=4.0,
            min=MIN_SCALE,
            max=MAX_SCALE,
            step=0.05,
            tooltip="Output size over input size. Used with 'by factor'. 1 restores at the size of the input.",
        ),
        io.Int.Input(
            "edge",
            default=2048,
            min=1,
            max=MAX_EDGE,
            tooltip="Edge of the output in pixels. Used with 'longest edge' and 'shortest edge'.",
        ),
    ]


def color_input(tooltip: str) -> io.Input:
    """Return the widget for the colour method."""
    return io.Combo.Input("color", options=list(COLOR_METHODS), default="wavelet", tooltip=tooltip)


def finish_inputs() -> list[io.Input]:
    """Return the widgets for the strength of detail and the border of a mask."""
    return [
        io.Float.Input(
            "detail",
            default=DEFAULTS.detail,
            min=0.0,
            max=MAX_DETAIL,
            step=0.05,
            tooltip="How much of the fine detail that the model adds is kept. 1: as the model made it. 0: none, only"
            " coarse structure changes. Above 1: exaggerated.",
        ),
        advanced(
            io.Int.Input(
                "feather",
                default=DEFAULTS.feather_px,
                min=0,
                max=MAX_FEATHER_PX,
                tooltip="How far the border of the mask is smoothed to each side, in output pixels. 0 leaves it as it"
                " is. Without a mask it does nothing.",
            )
        ),
    ]


def guidance_input() -> io.Input:
    """Return the widget for the guidance weight, folded away where the host can do that."""
    return advanced(
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=20.0,
            step=0.01,
            tooltip="Strength of the prompt that is baked into the model. 0 takes the model's own value; 1 runs the"
            " network once, any other value twice.",
        )
    )


def memory_inputs() -> list[io.Input]:
    """Return the widgets that say how much memory may be taken and how the work is divided; all but one folded away.

    Optional, and after all others: a graph written by hand may leave them out.
    """
    return [
        io.Combo.Input(
            "memory",
            options=list(MEMORY_MODES),
            default=DEFAULT_MEMORY.mode,
            optional=True,
            tooltip="auto: the picture as a whole where it fits in memory, in overlapping tiles where it does not."
            " whole: never tiles, so the look is the same all over, but a huge picture may not fit. tiles: always"
            " tiles, which takes the least memory; large even areas may differ a little from tile to tile.",
        ),
        advanced(
            io.Combo.Input(
                "attention",
                options=list(ATTENTION_RANGES),
                default=DEFAULT_MEMORY.attention,
                optional=True,
                tooltip="How far the model looks around itself. windows: a wide neighbourhood, quick at any size. full:"
                " the whole picture, much slower for large ones. The same up to 768 pixels per edge.",
            )
        ),
        budget_input(),
        advanced(_auto_input("tile", MAX_EDGE, TILE_STEP_PX, "Edge of a tile in output pixels.")),
        advanced(
            _auto_input(
                "overlap",
                MAX_EDGE,
                TILE_STEP_PX,
                "Least overlap of neighbouring tiles in output pixels, less than a tile; more hides their borders"
                " better and takes longer.",
            )
        ),
        advanced(
            _auto_input("tile_batch", MAX_TILE_BATCH, 1, "Tiles that are restored together; more needs more memory.")
        ),
    ]


def budget_input() -> io.Input:
    """Return the widget for the most memory that may be taken, folded away and optional as ``memory_inputs``."""
    return advanced(
        io.Float.Input(
            "budget_gib",
            default=0.0,
            min=0.0,
            max=MAX_BUDGET_GIB,
            step=0.1,
            optional=True,
            tooltip="Most memory in GiB that this node may take, the model included; the work is divided so that it"
            " fits. 0 takes what is free.",
        )
    )


def weights_input() -> io.Input:
    """Return the widget for how a loader keeps weights, folded away and optional as ``memory_inputs``."""
    return advanced(
        io.Combo.Input(
            "weights",
            options=list(WEIGHT_FORMATS),
            default=WEIGHT_FORMATS[0],
            optional=True,
            tooltip="How weights stay in memory. dtype: in the 16 or 32 bits that ComfyUI chooses. fp8: in 8 bits, half"
            " of what 16 take, for little memory; it is slower, and images change a little (59 to 60 dB PSNR against"
            " all bits with gendr-mini). Not on MPS.",
        )
    )


def _auto_input(name: str, most: int, step: int, tooltip: str) -> io.Input:
    """Return a widget for a whole number, of which 0 leaves the choice to the planner."""
    return io.Int.Input(
        name, default=0, min=0, max=most, step=step, optional=True, tooltip=f"{tooltip} 0 chooses by itself."
    )


def advanced(widget: Widget) -> Widget:
    """Return ``widget``, folded away where the host can do that."""
    # Not a constructor argument on every host that is supported; those that do not know the key ignore it.
    widget.extra_dict["advanced"] = True
    return widget


def restore_options(
    size: str,
    factor: float,
    edge: int,
    *,
    color: ColorMethod = "wavelet",
    guidance: float = 0.0,
    memory: MemoryOptions = DEFAULT_MEMORY,
    detail: float = DEFAULTS.detail,
    feather: int = DEFAULTS.feather_px,
) -> RestoreOptions:
    """Return the options that the shared widgets mean.

    Raises:
        OptionError: a value is out of its range.
    """
    return RestoreOptions(
        scale=factor if size == BY_FACTOR else None,
        longest_edge=edge if size == LONGEST_EDGE else None,
        shortest_edge=edge if size == SHORTEST_EDGE else None,
        color=color,
        guidance=guidance_weight(guidance),
        memory=memory,
        detail=detail,
        feather_px=feather,
    )


def latent_options(*, guidance: float = 0.0, memory: MemoryOptions = DEFAULT_MEMORY) -> RestoreOptions:
    """Return the options for a latent, whose size is that of the output.

    Raises:
        OptionError: the guidance is out of its range.
    """
    return RestoreOptions(scale=1.0, guidance=guidance_weight(guidance), memory=memory)


def memory_options(**widgets: "Unpack[MemoryWidgets]") -> MemoryOptions:
    """Return what the memory widgets mean; a widget that is not there, or is 0, leaves the choice to the planner.

    Raises:
        OptionError: a tile or an overlap is no multiple of 64 pixels, or the overlap takes all of the tile.
    """
    return MemoryOptions(
        mode=widgets.get("memory", DEFAULT_MEMORY.mode),
        attention=widgets.get("attention", DEFAULT_MEMORY.attention),
        budget_bytes=int(widgets.get("budget_gib", 0.0) * GIB) or None,
        tile_px=widgets.get("tile") or None,
        overlap_px=widgets.get("overlap") or None,
        tile_batch=widgets.get("tile_batch") or None,
    )


def guidance_weight(guidance: float) -> float | None:
    """Return what the guidance widget means: 0 stands for the model's own weight."""
    return guidance or None
