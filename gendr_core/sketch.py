"""What a stage will cost: the very stage, run on tensors without memory.

Role: ``planner`` asks here for every way to run a stage. Networks are made on torch's meta device, ``cost.measure``
follows what they would allocate, and of pieces that are alike only three are run. Results are remembered, because
the frames of one size come again.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .blank import blank_unet, blank_vae
from .cost import Cost, measure
from .decode import decode
from .encode import encode
from .geometry import Extent, Span
from .host import Meter
from .model import GenDRUNet, GenDRVAE, exchange_layers
from .nets import VAE, UNet
from .nets.packed import pack
from .plan import StagePlan
from .spec import Fold, ModelSpec, VAESpec
from .step import one_step
from .tiling import tile_grid

REMEMBERED = 512
"""Costs kept: some kilobytes, and enough for a long session of many sizes."""


class SketchMeter(Meter):
    """Counts the work of all pieces of a layer while only the first two and the last one run."""

    def pieces(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Return the first two, since the second meets what the first leaves, and the last, which may be shorter."""
        return spans if len(spans) <= 3 else (spans[0], spans[1], spans[-1])

    def advance(self, flops: int, part: Span, length: int) -> None:
        """Count the whole layer with its first piece."""
        del length
        if part.start == 0:
            self.flops += flops


def meta_tensor(*shape: int) -> Tensor:
    """Return a float32 tensor of that shape without memory."""
    return torch.empty(shape, device="meta")


class UNetKind(NamedTuple):
    """All of a UNet that decides what it costs."""

    spec: ModelSpec
    dtype: torch.dtype
    folds: frozenset[Fold]


class VAEKind(NamedTuple):
    """All of a VAE that decides what it costs."""

    spec: VAESpec
    dtype: torch.dtype
    folds: frozenset[Fold]


def unet_kind(unet: GenDRUNet) -> UNetKind:
    """Return of which kind a UNet is."""
    return UNetKind(unet.spec, unet.dtype, unet.folds)


def vae_kind(vae: GenDRVAE | None) -> VAEKind | None:
    """Return of which kind a VAE is; None where there is none."""
    return None if vae is None else VAEKind(vae.spec, vae.dtype, vae.folds)


@lru_cache(maxsize=8)
def unet_sketch(kind: UNetKind) -> UNet:
    """Return a UNet without memory."""
    network = blank_unet(kind.spec, kind.folds).to(kind.dtype)
    if "packed" in kind.folds:
        pack(network)
    exchange_layers(network, kind.folds, "meta")
    return network.requires_grad_(False)


@lru_cache(maxsize=8)
def vae_sketch(kind: VAEKind) -> VAE:
    """Return a VAE without memory."""
    network = blank_vae(kind.spec, kind.folds).to(kind.dtype)
    exchange_layers(network, kind.folds, "meta")
    return network.requires_grad_(False)


def sketched_unet(kind: UNetKind, num_tokens: int, *, guidable: bool) -> GenDRUNet:
    """Return a model without memory.

    Args:
        kind: of its UNet.
        num_tokens: of its prompts.
        guidable: whether it has a negative one.
    """
    network = unet_sketch(kind)
    prompt = meta_tensor(num_tokens, network.context_width)
    return GenDRUNet(
        network=network,
        spec=kind.spec,
        positive=prompt,
        negative=prompt if guidable else None,
        dtype=kind.dtype,
        folds=kind.folds,
    )


def sketched_vae(kind: VAEKind) -> GenDRVAE:
    """Return a VAE with its spec, without memory."""
    return GenDRVAE(network=vae_sketch(kind), spec=kind.spec, dtype=kind.dtype, folds=kind.folds)


@lru_cache(maxsize=REMEMBERED)
def encode_cost(unet: ModelSpec, vae: VAEKind | None, padded: Extent, plan: StagePlan, device_type: str) -> Cost:
    """Return the cost of ``encode``: FLOPs of one frame, bytes of ``plan.batch``. Pixels count, what else there is not.

    Args:
        unet: of the model whose front it is.
        vae: None where there is none.
        padded: size of the frame in pixels.
        plan: how it runs.
        device_type: what it is planned for, ``cpu``, ``cuda`` or another.
    """
    if unet.front != "vae16":
        return _shuffle_cost(padded, plan.batch)
    pixels, meter = meta_tensor(plan.batch, 3, padded.height, padded.width), SketchMeter()
    network = None if vae is None else sketched_vae(vae)
    _, cost = measure(
        lambda: encode(pixels, unet.front, network, plan=plan, meter=meter),
        held=[pixels],
        device_type=device_type,
    )
    return replace(cost, flops=meter.flops // plan.batch)


@lru_cache(maxsize=REMEMBERED)
def decode_cost(unet: ModelSpec, vae: VAEKind | None, padded: Extent, plan: StagePlan, device_type: str) -> Cost:
    """Return the cost of ``decode``, as ``encode_cost``; the latent counts."""
    if unet.back != "vae16":
        return _shuffle_cost(padded, plan.batch)
    height, width = padded.height // unet.cell_px, padded.width // unet.cell_px
    latent, meter = meta_tensor(plan.batch, unet.arch.out_channels, height, width), SketchMeter()
    network = None if vae is None else sketched_vae(vae)
    _, cost = measure(
        lambda: decode(latent, unet.back, network, plan=plan, meter=meter),
        held=[latent],
        device_type=device_type,
    )
    return replace(cost, flops=meter.flops // plan.batch)


def _shuffle_cost(padded: Extent, batch: int) -> Cost:
    """Return the cost of turning pixels into a latent of 192 channels or back: one copy."""
    return Cost(flops=0, peak_bytes=batch * 2 * 3 * torch.float32.itemsize * padded.area)


@lru_cache(maxsize=REMEMBERED)
def step_cost(kind: UNetKind, prompt: tuple[int, int], padded: Extent, plan: StagePlan, device_type: str) -> Cost:
    """Return the cost of ``one_step``: FLOPs of one frame, bytes of ``plan.batch``; the latent counts.

    Args:
        kind: of the UNet.
        prompt: tokens of the prompt, and passes: 2 with guidance, else 1.
        padded: size of the frame in pixels.
        plan: how it runs.
        device_type: what it is planned for.
    """
    cell_px = kind.spec.cell_px
    height, width = padded.height // cell_px, padded.width // cell_px
    if plan.tiles is None:
        cost = _pass_cost(kind, prompt, (plan.batch, height, width), plan, device_type)
        return replace(cost, flops=cost.flops // plan.batch)
    # All tiles from one and from a batch of them, with the whole latent and the result.
    grid = tile_grid(height, width, plan.tiles)
    shape, whole = tuple(map(len, grid[0])), replace(plan, tiles=None)
    one = _pass_cost(kind, prompt, (1, *shape), whole, device_type)
    if len(grid) == 1:
        return one
    batch = _pass_cost(kind, prompt, (min(plan.tiles.batch, len(grid)), *shape), whole, device_type)
    arch = kind.spec.arch
    channels = arch.in_channels + (arch.out_channels if plan.tiles.canvas == "device" else 0)
    frames_bytes = torch.float32.itemsize * channels * height * width
    return Cost(flops=one.flops * len(grid), peak_bytes=frames_bytes + batch.peak_bytes)


def _pass_cost(
    kind: UNetKind,
    prompt: tuple[int, int],
    shape: tuple[int, ...],
    plan: StagePlan,
    device_type: str,
) -> Cost:
    """Return the cost of one pass over latents of ``shape``: images, rows and columns."""
    num_tokens, passes = prompt
    unet = sketched_unet(kind, num_tokens, guidable=passes == 2)
    latent, meter = meta_tensor(shape[0], kind.spec.arch.in_channels, *shape[1:]), SketchMeter()
    # Any weight but 1 runs both prompts.
    guidance = 2.0 if passes == 2 else 1.0
    _, cost = measure(
        lambda: one_step(latent, unet, guidance=guidance, plan=plan, meter=meter),
        held=[latent],
        device_type=device_type,
    )
    return replace(cost, flops=meter.flops)
