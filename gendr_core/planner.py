"""Decides how a restoration runs before anything does: the cheapest way of every stage that fits in memory.

Role: ``pipeline`` and the nodes ask for a ``Planner``; ``sketch`` says what each way costs. The ways of a stage form a
ladder from the cheapest to the one that needs least memory; an out-of-memory error climbs down from where it stood.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from .backoff import Ladder
from .config import MemoryOptions, RestoreOptions
from .errors import OptionError
from .finish import GuideShapes
from .geometry import Extent, Padding, output_extent, pad_multiple, padding_to_multiple
from .host import Host
from .memory import default_budget
from .model import GenDRUNet, GenDRVAE
from .plan import Plan, StagePlan, Tiles, Windows, band_sizes
from .sketch import decode_cost, encode_cost, step_cost, unet_kind, vae_kind
from .sketch_ends import alpha_bytes, color_bytes, prepare_bytes
from .spec import ModelSpec
from .step import guidance_weight

NETWORK_STAGES = ("encode", "step", "decode")
TILE_PX = (1024, 768, 512, 256)
"""Edges of tiles to try, in output pixels."""
PIXELS_AT_ONCE = 1024**2
"""Output pixels that go through a network together on a GPU: enough to keep it busy; not measured."""
ENDS_SHARE = 4
"""Frames are prepared and finished on a GPU if that takes at most one part in so many of its room."""
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
        self.pad_multiple = pad_multiple(unet.spec)
        self.padding: Padding = padding_to_multiple(self.output, self.pad_multiple)
        self.padded = self.padding.around(self.output)

    @cached_property
    def together(self) -> int:
        """Frames that are prepared, restored and finished together, at least 1."""
        return min(frames_together(self.padded, self._options.memory, self._device_type), self._task.frames)

    @cached_property
    def ends_on_device(self) -> bool:
        """Whether frames are prepared and finished where the networks are: always on a processor, mostly on CUDA.

        Elsewhere torch lacks some of the operations.
        """
        if self._device_type != "cuda":
            return self._device_type == "cpu"
        needed = max(self._prepare_bytes(self._task.source, self._task.channels), self._color_bytes())
        return ENDS_SHARE * needed <= min(self._room_bytes("encode"), self._room_bytes("decode"))

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
            ends_on_device=self.ends_on_device,
            stages={name: stages[name] for name in ("prepare", "encode", "step", "decode", "color")},
            weight_bytes={name: self._resident_bytes(name) for name in NETWORK_STAGES},
        )

    def _ladder(self, stage: str, ways: Iterator[StagePlan]) -> Ladder:
        return Ladder(
            stage,
            ways,
            device_type=self._device_type,
            room_bytes=self._room_bytes(stage),
            resident_bytes=self._resident_bytes(stage),
        )

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

    def _room_bytes(self, stage: str) -> int:
        """Return what activations of a stage may take."""
        budget, network = self._options.memory.budget_bytes, self._network(stage)
        if budget is not None:
            return budget - self._resident_bytes(stage)
        room = None if network is None else self._residency.room_bytes(network)
        device = torch.device(self._device_type)
        return default_budget(device) if room is None else room

    def _held_bytes(self, stage: str, batch: int) -> int:
        """Return what is kept on a stage's device beside the tensors of ``batch`` frames in it."""
        if stage in NETWORK_STAGES and not self.ends_on_device:
            return 0
        # Without padding the encoder's pixels are the reference.
        reference = 0 if stage == "encode" and self.padded == self.output else _float_bytes(3, self.output)
        group = self.together * (reference + alpha_bytes(self._task.channels, self.output))
        # Frames of the group that wait for their turn, and those that had it, joined in the end.
        waiting = 2 * (self.together - batch) * _float_bytes(3, self.padded)
        return group + waiting + self._result_bytes()

    def _result_bytes(self) -> int:
        """Return what the finished batch takes on the device, as far as it is there from the beginning."""
        there = self._device_type == "cpu" and self._task.frames > 1
        return self._task.frames * _float_bytes(self._task.channels, self.output) if there else 0

    def _prepare_bytes(self, source: Extent, channels: int) -> int:
        padded = _float_bytes(3, self.padded) if self.padded != self.output else 0
        return self.together * (prepare_bytes(source, channels, self.output, self.pad_multiple) + padded)

    def _color_bytes(self) -> int:
        """Return the peak of matching colours and of all else that ``finish`` does with a frame."""
        task, options, given = self._task, self._options, self._task.guides.color_reference
        finished = 0 if self._result_bytes() else self.together * _float_bytes(task.channels, self.output)
        needed = finished + color_bytes(self.output, task.channels, options, task.guides.mask, self.together)
        if given is not None and options.color != "none":
            # Prepared before the result is there, and gone when colours are matched.
            matched = color_bytes(self.output, task.channels, replace(options, detail=1.0), frames=self.together)
            # Where nothing is resized, the colours are a view that keeps their alpha.
            kept = self.together * _float_bytes(max(3, task.guides.color_channels), self.output)
            needed = max(needed, finished + kept + matched)
            needed = max(needed, self._prepare_bytes(given, task.guides.color_channels))
        return self._held_bytes("color", self.together) + self.together * _float_bytes(3, self.padded) + needed

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
        for bands, batch in [(large, self.together), *((bands, 1) for bands in ways)][self.together == 1 :]:
            way, held = StagePlan(bands=bands, windows=None, batch=batch), self._held_bytes(stage, batch)
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
        longest_px = max(self.padded.height, self.padded.width)
        tilings = list(_tilings(memory, self._unet.spec, longest_px, self._device_type))
        if memory.mode != "tiles" or not tilings:
            if self.together > 1:
                yield self._measured(StagePlan(bands=large, windows=windows, batch=self.together))
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
        activation_bytes = _with_margin(self._held_bytes("step", way.batch) + cost.peak_bytes)
        return replace(way, flops=cost.flops, activation_bytes=activation_bytes)


def frames_together(padded: Extent, memory: MemoryOptions, device_type: str) -> int:
    """Return how many frames of this padded output size run together if there are so many, at least 1."""
    if memory.frame_batch is not None:
        return memory.frame_batch
    return max(1, PIXELS_AT_ONCE // padded.area) if device_type == "cuda" else 1


def _with_margin(num_bytes: int) -> int:
    return int(num_bytes * (1.0 + MARGIN_SHARE)) + MARGIN_BYTES


def _float_bytes(channels: int, extent: Extent) -> int:
    return torch.float32.itemsize * channels * extent.area


def _tilings(memory: MemoryOptions, spec: ModelSpec, longest_px: int, device_type: str) -> Iterator[Tiles]:
    """Return the tilings to try on a frame whose longest edge has ``longest_px``: the user's, or those of all sizes.

    Raises:
        OptionError: the tiles that the user names do not fit the model, or their overlap leaves nothing of any of them.
    """
    cell_px, multiple = spec.cell_px, pad_multiple(spec) // spec.cell_px
    cells, least = longest_px // cell_px, TILE_OVERLAP * multiple
    sizes = [size for size in (edge // cell_px for edge in TILE_PX) if size % multiple == 0 and size >= least]
    sizes = (sizes or [least]) if memory.tile_px is None else [memory.tile_px // cell_px]
    overlaps = {
        size: size // TILE_OVERLAP // multiple * multiple if memory.overlap_px is None else memory.overlap_px // cell_px
        for size in sizes
    }
    if all(overlap >= size for size, overlap in overlaps.items()):
        raise OptionError(
            f"expected an overlap below {max(sizes) * cell_px} pixels, the largest tile,"
            f" got {memory.overlap_px}:"
            " name a larger tile, or a smaller overlap"
        )
    for size, overlap in overlaps.items():
        if overlap >= size or (size >= cells and len(sizes) > 1):
            continue
        together = memory.tile_batch or (1 if device_type == "cpu" else max(1, PIXELS_AT_ONCE // (size * cell_px) ** 2))
        for batch in sorted({together, 1 if memory.tile_batch is None else together}, reverse=True):
            tiles = Tiles(size=size, overlap=overlap, batch=batch, multiple=multiple, cell_px=cell_px)
            yield tiles
            if device_type != "cpu":
                yield replace(tiles, canvas="cpu")
