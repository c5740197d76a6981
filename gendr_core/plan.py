"""How a restoration runs: the choices of the planner, as frozen values. No torch here.

Role: made by ``planner`` or by the caller, read by the stages, which hand them to ``bands`` and ``tiling``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .errors import OptionError
from .geometry import Extent
from .spec import SPATIAL_FACTOR

BAND_BYTES = {"cpu": (2**24, 2**21), "cuda": (2**28, 2**24)}
"""Sizes of bands, preferred and small, by device. On a processor the first fits in its cache (docs/log.md); a GPU is
meant to be kept busy by larger ones, which is not measured."""
OTHER_BAND_BYTES = (2**26, 2**23)
"""On devices of other types, not measured either."""
TILE_MULTIPLE = 8
"""Latent cells that origins and sizes of tiles divide by: three stride-2 levels of the UNet of SD2.1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Which part of a frame self-attention sees. Lengths in cells of the level that it works on."""

    size: int = 64
    """Edge of a window: 64x64 is what the finest level of SD2.1 was trained with."""
    context: int = 16
    """What a window sees around itself on each side, so that neighbours attend to nearly the same cells."""

    @property
    def reach(self) -> int:
        """Edge of what a window sees; a frame no larger than that is attended to as a whole."""
        return self.size + 2 * self.context


@dataclass(frozen=True, kw_only=True, slots=True)
class Bands:
    """How a whole frame goes through a network: activations whole, layers in bands of rows."""

    band_bytes: int
    """Most bytes that a band of an activation takes; at least one row is always taken."""
    recompute: bool = False
    """Whether blocks of the VAE compute their middle twice instead of keeping it: one whole activation less."""
    parked: bool = False
    """Whether whole activations live in the processor's memory, and only bands of them on the device: VAE only."""


def band_sizes(device_type: str) -> tuple[Bands, Bands]:
    """Return the preferred and the small bands of a device type: ``cpu``, ``cuda`` or another."""
    large, small = BAND_BYTES.get(device_type, OTHER_BAND_BYTES)
    return Bands(band_bytes=large), Bands(band_bytes=small)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """Overlapping tiles of the latent: the fallback where whole activations do not fit. Lengths in latent cells."""

    size: int
    """Edge of a tile."""
    overlap: int
    """Least overlap of neighbours."""
    batch: int = 1
    """Tiles that go through the UNet together."""
    canvas: Literal["device", "cpu"] = "device"
    """Where the result is put together: on the UNet's device, or in the processor's memory if that is short."""
    multiple: int = TILE_MULTIPLE
    """What origins and sizes divide by, so that the UNet's strided levels see the same cells as in the whole frame."""
    cell_px: int = SPATIAL_FACTOR
    """Output pixels per cell, on each axis, for whoever names sizes in pixels."""

    def __post_init__(self) -> None:
        """Check the lengths.

        Raises:
            OptionError: a length is not a multiple of ``multiple``, or the overlap leaves less of a tile than that.
        """
        step = self.multiple
        if self.size < 1 or self.size % step:
            raise OptionError(
                f"expected a tile size that is a multiple of {step} latent cells ({step * self.cell_px} pixels),"
                f" got {self.size}"
            )
        if not 0 <= self.overlap <= self.size - step or self.overlap % step:
            raise OptionError(
                f"expected an overlap from 0 to {self.size - step} latent cells in steps of {step}"
                f" for tiles of {self.size}, got {self.overlap}"
            )
        if self.batch < 1:
            raise OptionError(f"expected at least 1 tile at a time, got {self.batch}")

    @property
    def size_px(self) -> int:
        """Edge of a tile in output pixels."""
        return self.size * self.cell_px

    @property
    def overlap_px(self) -> int:
        """Least overlap of neighbours in output pixels."""
        return self.overlap * self.cell_px


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """How one stage runs, and what that is expected to cost."""

    bands: Bands = band_sizes("cpu")[0]
    windows: Windows | None = Windows()
    """Of the UNet's self-attention; None lets every position see the whole frame."""
    tiles: Tiles | None = None
    """None runs the frame as a whole."""
    batch: int = 1
    """Frames that go through together."""
    flops: int = 0
    """Of convolutions, linear layers and attention, for one frame; a multiply-add counts 2."""
    activation_bytes: int = 0
    """Most bytes of tensors on the device at once, weights left out."""
    host_bytes: int = 0
    """Most bytes of parked activations in the processor's memory at once."""

    @property
    def mode(self) -> str:
        """``tiles`` or ``whole``."""
        return "whole" if self.tiles is None else "tiles"

    def describe(self) -> str:
        """Return the choice in words."""
        parts = ["whole frame"]
        if self.tiles is not None:
            parts = [f"tiles of {self.tiles.size_px} px, overlap {self.tiles.overlap_px}"]
            parts += [f"{self.tiles.batch} at a time"] if self.tiles.batch > 1 else []
        parts += [f"{self.batch} at a time"] if self.batch > 1 else []
        parts.append("full attention" if self.windows is None else f"attention windows of {self.windows.size} cells")
        return ", ".join([*parts, self.describe_bands()])

    def describe_bands(self) -> str:
        """Return how large bands are, whether the middle of blocks is computed twice, and what is parked."""
        bands = f"bands of {self.bands.band_bytes / 2**20:g} MiB"
        again = ", blocks computed twice" if self.bands.recompute else ""
        parked = f", {self.host_bytes / 2**30:.2f} GiB parked in the processor's memory" if self.bands.parked else ""
        return bands + again + parked


DEFAULT_PLAN = StagePlan()
"""How a stage runs where nobody planned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a whole restoration runs and what it is expected to cost."""

    input: Extent
    output: Extent
    padded: Extent
    """What the networks see: ``output`` padded."""
    frames: int
    device_type: str
    passes: int
    """Of the UNet: 2 with guidance."""
    ends_on_device: bool
    """Whether frames are prepared and finished where the networks are, and not on the processor."""
    stages: Mapping[str, StagePlan]
    """By name, in order; prepare and color have estimates only. With several frames, of as many as run together."""
    weight_bytes: Mapping[str, int]
    """What the weights in memory take during encode, step and decode."""

    @property
    def flops(self) -> int:
        """Of all frames."""
        return self.frames * sum(stage.flops for stage in self.stages.values())

    @property
    def peak_bytes(self) -> int:
        """Most bytes of weights and tensors on the device at once, the input image left out."""
        return max(self._device_bytes().values())

    @property
    def peak_stage(self) -> str:
        """In which stage that is."""
        stages = self._device_bytes()
        return max(stages, key=lambda name: stages[name])

    def _device_bytes(self) -> dict[str, int]:
        """Return the bytes of each stage that runs on the device."""
        resident = max(self.weight_bytes.values())
        on_device = self.stages if self.ends_on_device else self.weight_bytes
        return {name: self.stages[name].activation_bytes + self.weight_bytes.get(name, resident) for name in on_device}

    def describe(self) -> str:
        """Return the plan in one line."""
        frames = f"{self.frames} x " if self.frames > 1 else ""
        return (
            f"{frames}{self.input} -> {self.output} on {self.device_type}: {self.stages['step'].describe()};"
            f" VAE in {self.stages['decode'].describe_bands()}; about {self.peak_bytes / 2**30:.2f} GiB"
            f" (in {self.peak_stage}), {self.flops / 1e12:.4g} TFLOP"
        )
