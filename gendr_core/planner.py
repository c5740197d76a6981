"""Decides how a restoration runs before anything does: the cheapest way of every stage that fits in memory.

Role: ``pipeline`` and the nodes ask for a ``Planner``; ``sketch`` says what each way costs. The ways of a stage form a
ladder from the cheapest to the one that needs least memory; an out-of-memory error climbs down from where it stood.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from .backoff import Ladder
from .config import MemoryOptions, RestoreOptions
from .errors import OptionError
from .finish import GuideShapes
from .geometry import PAD_MULTIPLE, Extent, Padding, output_extent, padding_to_multiple
from .host import Host
from .memory import default_budget
from .model import GenDRUNet, GenDRVAE
from .plan import TILE_MULTIPLE, Plan, StagePlan, Tiles, Windows, band_sizes
from .sketch import alpha_bytes, color_bytes, decode_cost, encode_cost, prepare_bytes, step_cost, unet_kind, vae_kind
from .spec import SPATIAL_FACTOR
from .step import guidance_weight

NETWORK_STAGES = ("encode", "step", "decode")
TILE_CELLS = (128, 96, 64, 32)
"""Edges of tiles to try, in latent cells."""
TILES_AT_ONCE_CELLS = 128**2
"""Cells that go through the UNet together on a GPU: enough to keep it busy."""
TILE_OVERLAP = 4
"""A tile overlaps its neighbours by one part in so many, as long as the user names no overlap."""

MARGIN_SHARE, MARGIN_BYTES = 0.01, 2**18
"""Added to every estimate, which is exact but for scalars, prompts and the like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is to be restored."""

    source: Extent
    """Size of the input."""
    channels: int = 3
    frames: int = 1
    guides: GuideShapes = field(default_factory=GuideShapes)
    """What stands beside it."""


class Planner:
    """How one task runs: sizes, a ladder for each stage, and the plan that follows from where they stand."""

    def __init__(
        self,
        unet: GenDRUNet,
        vae: GenDRVAE | None,
        task: Task,
        options: RestoreOptions,
        *,
        host: Host | None = None,
        device_type: str | None = None,
    ) -> None:
        """Settle the sizes; the ladders are made when asked for.

        Args:
            unet: with its network on the device, or on torch's meta device for a plan only.
            vae: likewise; None where the UNet needs none.
            task: what is to be restored.
            options: as for ``pipeline.restore``.
            host: says where networks live and what room there is.
            device_type: ``cpu``, ``cuda`` or another to plan for; None takes that of the networks.

        Raises:
            OptionError: the output would be too large, or guidance is asked of a model without a negative prompt.
        """
        self._unet, self._vae, self._task, self._options = unet, vae, task, options
        self._residency = (host or Host()).residency
        self._device_type = device_type or self._residency.device_of(unet.network).type
        self._prompt = (unet.positive.shape[0], 1 if guidance_weight(unet, options.guidance) == 1.0 else 2)
        self.output = output_extent(task.source, options, unet.spec.scale)
        self.padding: Padding = padding_to_multiple(self.output, PAD_MULTIPLE)
        self.padded = self.padding.around(self.output)

    @cached_property
    def encode(self) -> Ladder:
        """Ladder of the encoder."""
        return self._ladder("encode", self._vae_ways("encode"))

    @cached_property
    def step(self) -> Ladder:
        """Ladder of the UNet."""
        return self._ladder("step", self._step_ways())

    @cached_property
    def decode(self) -> Ladder:
        """Ladder of the decoder."""
        return self._ladder("decode", self._vae_ways("decode"))

    def plan(self) -> Plan:
        """Return what the ladders amount to now.

        Raises:
            OutOfMemoryError: a stage fits in no way.
        """
        stages = {name: getattr(self, name).plan for name in NETWORK_STAGES}
        prepared = self._prepare_bytes(self._task.source, self._task.channels)
        stages["prepare"] = StagePlan(activation_bytes=_with_margin(prepared))
        stages["color"] = StagePlan(activation_bytes=_with_margin(self._color_bytes()))
        return Plan(
            input=self._task.source,
            output=self.output,
            padded=self.padded,
            frames=self._task.frames,
            device_type=self._device_type,
            passes=self._prompt[1],
            stages={name: stages[name] for name in ("prepare", "encode", "step", "decode", "color")},
            weight_bytes={name: self._resident_bytes(name) for name in NETWORK_STAGES},
        )

    def _ladder(self, stage: str, ways: Iterator[StagePlan]) -> Ladder:
        resident = self._resident_bytes(stage)
        budget = self._options.memory.budget_bytes
        room = self._free_bytes(stage) if budget is None else budget - resident
        return Ladder(stage, ways, device_type=self._device_type, room_bytes=room, resident_bytes=resident)

    def _network(self, stage: str) -> torch.nn.Module | None:
        """Return the network of a stage, None where it has none."""
        if stage == "step":
            return self._unet.network
        side = self._unet.spec.front if stage == "encode" else self._unet.spec.back
        return self._vae.network if self._vae is not None and side == "vae16" else None

    def _resident_bytes(self, stage: str) -> int:
        network = self._network(stage) or self._unet.network
        others = [self._unet.network] + ([] if self._vae is None else [self._vae.network])
        return self._residency.resident_bytes(network, [other for other in others if other is not network])

    def _free_bytes(self, stage: str) -> int:
        network = self._network(stage)
        room = None if network is None else self._residency.room_bytes(network)
        device = torch.device(self._device_type)
        return default_budget(device) if room is None else room

    def _held_bytes(self, stage: str) -> int:
        """Return what the pipeline keeps on a stage's device beside the stage's own tensors."""
        if self._device_type != "cpu" and stage in NETWORK_STAGES:
            return 0
        batch = self._task.frames * self._layout_bytes() if self._task.frames > 1 else 0
        # Without padding the encoder's pixels are the reference.
        reference = 0 if stage == "encode" and self.padded == self.output else _float_bytes(3, self.output)
        return reference + batch + alpha_bytes(self._task.channels, self.output)

    def _layout_bytes(self) -> int:
        """Return what one finished frame takes."""
        return _float_bytes(self._task.channels, self.output)

    def _prepare_bytes(self, source: Extent, channels: int) -> int:
        padded = _float_bytes(3, self.padded) if self.padded != self.output else 0
        return prepare_bytes(source, channels, self.output) + padded

    def _color_bytes(self) -> int:
        """Return the peak of matching colours and of all else that ``finish`` does with a frame."""
        task, options, given = self._task, self._options, self._task.guides.color_reference
        finished = self._layout_bytes() if task.frames == 1 else 0
        needed = finished + color_bytes(self.output, task.channels, options, task.guides.mask)
        if given is not None and options.color != "none":
            # Prepared before the result is there, and gone when colours are matched.
            matched = color_bytes(self.output, task.channels, replace(options, detail=1.0))
            # Where nothing is resized, the colours are a view that keeps their alpha.
            kept = _float_bytes(max(3, task.guides.color_channels), self.output)
            needed = max(needed, finished + kept + matched)
            needed = max(needed, self._prepare_bytes(given, task.guides.color_channels))
        return self._held_bytes("color") + _float_bytes(3, self.padded) + needed

    def _vae_ways(self, stage: str) -> Iterator[StagePlan]:
        cost_of = encode_cost if stage == "encode" else decode_cost
        side = self._unet.spec.front if stage == "encode" else self._unet.spec.back
        large, small = band_sizes(self._device_type)
        ways = [large]
        if side == "vae16":
            ways += [replace(bands, recompute=True) for bands in (large, small)]
        if side == "vae16" and self._device_type != "cpu":
            ways += [replace(bands, parked=True) for bands in (large, small)]
            ways += [replace(small, recompute=True, parked=True)]
        held = self._held_bytes(stage)
        for bands in ways:
            way = StagePlan(bands=bands, windows=None)
            cost = cost_of(self._unet.spec, vae_kind(self._vae), self.padded, way, self._device_type)
            yield replace(
                way,
                flops=cost.flops,
                activation_bytes=_with_margin(held + cost.peak_bytes),
                host_bytes=cost.elsewhere_bytes,
            )

    def _step_ways(self) -> Iterator[StagePlan]:
        memory = self._options.memory
        windows = Windows() if memory.attention == "windows" else None
        large, small = band_sizes(self._device_type)
        cells = max(self.padded.height, self.padded.width) // SPATIAL_FACTOR
        tilings = list(_tilings(memory, cells, self._device_type))
        if memory.mode != "tiles" or not tilings:
            for bands in (large, small):
                yield self._measured(StagePlan(bands=bands, windows=windows))
        if memory.mode == "whole":
            return
        tiled = [self._measured(StagePlan(bands=large, windows=windows, tiles=tiles)) for tiles in tilings]
        # What costs less comes first; what only costs more, and needs no less, is never worth it.
        least_bytes: int | None = None
        for way in sorted(tiled, key=lambda way: (way.flops, -way.activation_bytes)):
            if least_bytes is None or way.activation_bytes < least_bytes:
                least_bytes = way.activation_bytes
                yield way

    def _measured(self, way: StagePlan) -> StagePlan:
        cost = step_cost(unet_kind(self._unet), self._prompt, self.padded, way, self._device_type)
        activation_bytes = _with_margin(self._held_bytes("step") + cost.peak_bytes)
        return replace(way, flops=cost.flops, activation_bytes=activation_bytes)


def _with_margin(num_bytes: int) -> int:
    return int(num_bytes * (1.0 + MARGIN_SHARE)) + MARGIN_BYTES


def _float_bytes(channels: int, extent: Extent) -> int:
    return torch.float32.itemsize * channels * extent.area


def _tilings(memory: MemoryOptions, cells: int, device_type: str) -> Iterator[Tiles]:
    """Return the tilings to try on a frame whose longest edge has ``cells``: the user's, or those of all sizes.

    Raises:
        OptionError: the overlap that the user names leaves nothing of any tile.
    """
    sizes: Sequence[int] = TILE_CELLS if memory.tile_px is None else (memory.tile_px // SPATIAL_FACTOR,)
    overlaps = {
        size: size // TILE_OVERLAP // TILE_MULTIPLE * TILE_MULTIPLE
        if memory.overlap_px is None
        else memory.overlap_px // SPATIAL_FACTOR
        for size in sizes
    }
    if all(overlap >= size for size, overlap in overlaps.items()):
        raise OptionError(
            f"expected an overlap below {max(sizes) * SPATIAL_FACTOR} pixels, the largest tile,"
            f" got {memory.overlap_px}:"
            " name a larger tile, or a smaller overlap"
        )
    for size, overlap in overlaps.items():
        if overlap >= size or (size >= cells and len(sizes) > 1):
            continue
        together = memory.tile_batch or (1 if device_type == "cpu" else max(1, TILES_AT_ONCE_CELLS // size**2))
        for batch in sorted({together, 1 if memory.tile_batch is None else together}, reverse=True):
            yield Tiles(size=size, overlap=overlap, batch=batch)
            if device_type != "cpu":
                yield Tiles(size=size, overlap=overlap, batch=batch, canvas="cpu")
