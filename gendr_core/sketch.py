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
from .color import LOW_PASS_REACH
from .config import ColorMethod, RestoreOptions
from .cost import Cost, measure
from .decode import decode
from .encode import encode
from .finish import feather, mask_rows, resize_mask
from .geometry import Extent, Span
from .host import Meter
from .model import GenDRUNet, GenDRVAE
from .nets import VAE, UNet
from .nets.packed import pack
from .plan import StagePlan
from .prepare import prepare
from .spec import SPATIAL_FACTOR, Fold, ModelSpec, VAESpec
from .step import one_step
from .tensors import BAND_BYTES
from .tiling import tile_grid

REMEMBERED = 512
"""Costs kept: some kilobytes, and enough for a long session of many sizes."""


COLOR_BANDS: dict[ColorMethod, tuple[float, float]] = {
    "none": (0.0, 0.0),
    "wavelet": (3.5, 5.1),
    "adain": (6.0, 6.0),
    "ycbcr": (7.0, 7.0),
    "lab": (24.8, 24.8),
}
"""Bands that ``match_color`` holds of a frame whose planes are one band, and of a larger one."""
LAYOUT_BANDS = (1.0, 2.0)
"""Bands of all channels that the change of layout holds: in place, and from other pixels."""
LAB_BYTES_PER_PIXEL = 36
"""Of the stable sort of one channel: values, places and their ranks."""


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
    return network.requires_grad_(False)


@lru_cache(maxsize=8)
def vae_sketch(kind: VAEKind) -> VAE:
    """Return a VAE without memory."""
    return blank_vae(kind.spec, kind.folds).to(kind.dtype).requires_grad_(False)


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
    """Return the cost of ``encode`` on one frame; the pixels count, what else is in memory does not.

    Args:
        unet: of the model whose front it is.
        vae: None where there is none.
        padded: size of the frame in pixels.
        plan: how it runs.
        device_type: what it is planned for, ``cpu``, ``cuda`` or another.
    """
    if unet.front != "vae16":
        return _shuffle_cost(padded)
    pixels, meter = meta_tensor(1, 3, padded.height, padded.width), SketchMeter()
    network = None if vae is None else sketched_vae(vae)
    _, cost = measure(
        lambda: encode(pixels, unet.front, network, plan=plan, meter=meter),
        held=[pixels],
        device_type=device_type,
    )
    return replace(cost, flops=meter.flops)


@lru_cache(maxsize=REMEMBERED)
def decode_cost(unet: ModelSpec, vae: VAEKind | None, padded: Extent, plan: StagePlan, device_type: str) -> Cost:
    """Return the cost of ``decode`` on one frame; arguments as ``encode_cost``, the latent counts."""
    if unet.back != "vae16":
        return _shuffle_cost(padded)
    height, width = padded.height // SPATIAL_FACTOR, padded.width // SPATIAL_FACTOR
    latent, meter = meta_tensor(1, unet.arch.out_channels, height, width), SketchMeter()
    network = None if vae is None else sketched_vae(vae)
    _, cost = measure(
        lambda: decode(latent, unet.back, network, plan=plan, meter=meter),
        held=[latent],
        device_type=device_type,
    )
    return replace(cost, flops=meter.flops)


def _shuffle_cost(padded: Extent) -> Cost:
    """Return the cost of turning pixels into a latent of 192 channels or back: one copy."""
    return Cost(flops=0, peak_bytes=2 * 3 * torch.float32.itemsize * padded.area)


@lru_cache(maxsize=REMEMBERED)
def step_cost(kind: UNetKind, prompt: tuple[int, int], padded: Extent, plan: StagePlan, device_type: str) -> Cost:
    """Return the cost of ``one_step`` on one frame; the latent counts.

    Args:
        kind: of the UNet.
        prompt: tokens of the prompt, and passes: 2 with guidance, else 1.
        padded: size of the frame in pixels.
        plan: how it runs.
        device_type: what it is planned for.
    """
    height, width = padded.height // SPATIAL_FACTOR, padded.width // SPATIAL_FACTOR
    if plan.tiles is None:
        return _pass_cost(kind, prompt, (1, height, width), plan, device_type)
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


@lru_cache(maxsize=REMEMBERED)
def prepare_bytes(source: Extent, channels: int, output: Extent) -> int:
    """Return the peak of ``prepare`` on one frame, without the frame itself; alpha is counted as one more channel."""
    image = meta_tensor(1, source.height, source.width, min(channels, 3))
    _, cost = measure(lambda: prepare(image, output), held=[])
    return cost.peak_bytes + alpha_bytes(channels, output)


def alpha_bytes(channels: int, output: Extent) -> int:
    """Return what the alpha of one frame takes."""
    return torch.float32.itemsize * output.area if channels == 4 else 0


def color_bytes(output: Extent, channels: int, options: RestoreOptions, mask: Extent | None = None) -> int:
    """Return the scratch of ``finish`` on one frame, beside pixels, input, colour reference and result.

    A formula, because hundreds of bands would take longer to sketch than all the rest: so many bands of a plane, and
    for lab the sort of one channel. Measured with torch's allocator from 256x256 to 4000x3000.

    Args:
        output: size of the frame.
        channels: of the image.
        options: how colours are matched, how much detail is added, how wide the border of the mask is.
        mask: its size; None where there is none.
    """
    plane = torch.float32.itemsize * output.area
    touched = options.detail != 1.0 or mask is not None
    # Gray has no room for matched colours in its own image, and no colours to be laid out.
    matched = 3 * plane if channels == 1 and (options.color != "none" or touched) else 0
    in_place = channels > 1 and (options.color != "none" or touched)
    layout = int(LAYOUT_BANDS[not in_place] * min(3 * plane, BAND_BYTES))
    detail = 0 if options.detail == 1.0 else _match_bytes(output, "wavelet")
    masking = 0 if mask is None else mask_bytes(output, mask, options.feather_px)
    return matched + max(layout, _match_bytes(output, options.color), detail, masking)


def _match_bytes(output: Extent, method: ColorMethod) -> int:
    """Return the scratch of ``match_color`` on one frame."""
    plane = torch.float32.itemsize * output.area
    halo = 2 * LOW_PASS_REACH * torch.float32.itemsize * output.width
    if plane <= BAND_BYTES + halo:
        return int(COLOR_BANDS[method][0] * plane)
    matching = int(COLOR_BANDS[method][1] * (BAND_BYTES + halo))
    return max(matching, LAB_BYTES_PER_PIXEL * output.area if method == "lab" else 0)


@lru_cache(maxsize=REMEMBERED)
def mask_bytes(output: Extent, mask: Extent, reach: int) -> int:
    """Return the peak of resizing a mask, of smoothing it by ``reach`` pixels and of blending with it one frame."""
    _, resizing = measure(lambda: resize_mask(meta_tensor(1, mask.height, mask.width), output), held=[])
    rows = min(output.height, mask_rows(output, reach))
    band = Extent(min(output.height, rows + 2 * reach), output.width)
    _, smoothing = measure(lambda: feather(meta_tensor(1, 1, band.height, band.width), reach), held=[])
    # The weights of the band before stay until there are new ones.
    blending = smoothing.peak_bytes + torch.float32.itemsize * band.area
    return max(resizing.peak_bytes, torch.float32.itemsize * output.area + blending)
