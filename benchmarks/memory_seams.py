"""Memory: pictures made in bands, windows and tiles, beside those of the networks as they are.

Role: a part of ``memory``. What is compared is the final image in 0 to 1, of the bundled networks in fp32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from memory_estimates import MODELS, SCALE
from report import table
from torch import Tensor

from gendr_core.color import match_color
from gendr_core.config import RestoreOptions
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.geometry import PAD_MULTIPLE, Extent, Padding, Span, padding_to_multiple
from gendr_core.image_io import read_image
from gendr_core.model import GenDRUNet, GenDRVAE, load_unet, load_vae
from gendr_core.nets import WholeFrame
from gendr_core.plan import Bands, StagePlan, Tiles, Windows
from gendr_core.prepare import Prepared, prepare, restore_layout
from gendr_core.spec import SPATIAL_FACTOR
from gendr_core.step import one_step
from gendr_core.tensors import crop
from gendr_core.tiling import tile_grid
from gendr_core.windows import BandedFrame

EXAMPLES = Path(__file__).parents[1] / "examples"
SOURCES = {"pixel": Extent(width=517, height=509), "pair": Extent(width=401, height=125)}
"""Multiples of nothing, and large enough for windows to matter: above 1536 pixels after the scale."""
KIB = 2**10
ONE_BAND = StagePlan(bands=Bands(band_bytes=2**62))
"""Nothing is cut but windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """One way to make the picture."""

    name: str
    step: StagePlan
    vae: StagePlan = ONE_BAND
    whole: str
    """Name of the picture to compare with."""
    seams: str
    """What its lines are: ``bands``, ``windows`` or ``tiles``."""


def picture(extent: Extent) -> Tensor:
    """Return [1, H, W, 3] in 0 to 1: the four samples side by side, mirrored until they fill the frame."""
    photos = [read_image(path).image for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".jpg", ".png")]
    mosaic = torch.cat([torch.cat(photos[i : i + 2], dim=2) for i in (0, 2)], dim=1)
    for axis, length in ((1, extent.height), (2, extent.width)):
        mirrored = torch.cat([mosaic, mosaic.flip(axis)], dim=axis)
        mosaic = torch.cat([mirrored] * -(-length // mirrored.shape[axis]), dim=axis).narrow(axis, 0, length)
    return mosaic


def untiled(pixels: Tensor, unet: GenDRUNet, vae: GenDRVAE | None) -> Tensor:
    """Return the pixels [1, 3, H, W] of the networks as they are, every layer on the whole frame, without guidance."""
    spec, run = unet.spec, WholeFrame()
    latent = encode(pixels, spec.front) if vae is None else vae.network.encode(pixels.to(vae.dtype), run=run).float()
    scaled = latent * spec.input_scaling
    predicted = unet.network(scaled.to(unet.dtype), spec.timestep, unet.positive.to(unet.dtype)[None], run=run)
    latent = (spec.c_skip * scaled + spec.c_out * predicted.float()) / spec.output_scaling
    return decode(latent, spec.back) if vae is None else vae.network.decode(latent.to(vae.dtype), run=run).float()


def finished(pixels: Tensor, prepared: Prepared, extent: Extent) -> Tensor:
    """Return the image [H, W, 3] that ``pipeline.restore`` makes of these pixels."""
    cropped = crop(pixels.cpu(), prepared.padding, extent)
    return restore_layout(match_color(cropped, prepared.reference, RestoreOptions().color), prepared)[0]


def modes(*, with_vae: bool) -> Iterator[Mode]:
    """Yield the ways to make the picture."""
    full, windowed = replace(ONE_BAND, windows=None), ONE_BAND
    if with_vae:
        for band_bytes, recompute in ((16384 * KIB, False), (2048 * KIB, False), (2048 * KIB, True), (256 * KIB, True)):
            bands = Bands(band_bytes=band_bytes, recompute=recompute)
            name = f"VAE in bands of {band_bytes // KIB} KiB{', computed twice' if recompute else ''}"
            yield Mode(name=name, step=full, vae=StagePlan(bands=bands), whole="untiled", seams="bands")
    else:
        for band_bytes in (16384 * KIB, 2048 * KIB, 64 * KIB):
            for name, windows in (("full attention", None), ("windows", Windows())):
                step = StagePlan(bands=Bands(band_bytes=band_bytes), windows=windows)
                whole = "untiled" if windows is None else "windows"
                name = f"{name} in bands of {band_bytes // KIB} KiB"
                yield Mode(name=name, step=step, whole=whole, seams="bands")
    yield Mode(name="windows", step=windowed, whole="untiled", seams="windows")
    for size, overlap in ((64, 16), (128, 32)):
        step = replace(windowed, tiles=Tiles(size=size, overlap=overlap))
        name = f"tiles of {size * SPATIAL_FACTOR}, overlap {overlap * SPATIAL_FACTOR}"
        yield Mode(name=name, step=step, whole="windows", seams="tiles")


def lines(mode: Mode, unet: GenDRUNet, vae: GenDRVAE | None, padded: Extent) -> tuple[set[int], set[int]]:
    """Return the rows and columns of the padded frame, in pixels, before which something begins or ends."""
    height, width = padded.height // SPATIAL_FACTOR, padded.width // SPATIAL_FACTOR
    if mode.seams == "tiles" and mode.step.tiles is not None:
        grid = tile_grid(height, width, mode.step.tiles)
        rows, columns = ([tile[axis] for tile in grid] for axis in (0, 1))
        return _edges(rows, SPATIAL_FACTOR), _edges(columns, SPATIAL_FACTOR)
    if mode.seams == "windows":
        arch = unet.spec.arch
        level = next((i for i, attends in enumerate(arch.attention_levels) if attends), len(arch.attention_levels) - 1)
        edge = Windows().size * SPATIAL_FACTOR * 2**level
        return set(range(edge, padded.height, edge)), set(range(edge, padded.width, edge))
    # Those of the last layer: all others lie under another convolution at least.
    if vae is None:
        run = BandedFrame(mode.step.bands, unet.network.operations)
        last = torch.empty(1, unet.spec.arch.block_out_channels[0], height, width, device="meta")
        return _edges(run.split_rows(last, unet.spec.arch.out_channels), SPATIAL_FACTOR), set()
    run = BandedFrame(mode.vae.bands, vae.network.operations)
    last = torch.empty(1, vae.spec.arch.block_out_channels[0], padded.height, padded.width, device="meta")
    return _edges(run.split_rows(last), 1), set()


def _edges(spans: Sequence[Span], factor: int) -> set[int]:
    return {edge * factor for span in spans for edge in (span.start, span.stop)}


def line_ratio(image: Tensor, rows: set[int], columns: set[int], padding: Padding) -> float | None:
    """Return the mean |gradient| across these lines of the padded frame over that elsewhere; None without lines."""
    on: list[Tensor] = []
    off: list[Tensor] = []
    for axis, edges, before in ((0, rows, padding.top), (1, columns, padding.left)):
        steps = image.diff(dim=axis).abs().mean(dim=(1 - axis, 2))
        is_line = torch.zeros(len(steps), dtype=torch.bool)
        is_line[[edge - before - 1 for edge in edges if 0 < edge - before < len(steps)]] = True
        on.append(steps[is_line])
        off.append(steps[~is_line])
    return (torch.cat(on).mean() / torch.cat(off).mean()).item() if any(len(steps) for steps in on) else None


@torch.inference_mode()
def compare(
    unet: GenDRUNet, vae: GenDRVAE | None, source: Extent, device: str
) -> Iterator[tuple[str, float, float | None]]:
    """Yield of every mode: name, largest difference from its whole picture, and its seam figure beside that one's."""
    extent = Extent(height=round(source.height * SCALE), width=round(source.width * SCALE))
    padding = padding_to_multiple(extent, PAD_MULTIPLE)
    prepared = prepare(picture(source), extent)
    pixels = prepared.pixels.to(device)

    def make(step: StagePlan, around: StagePlan) -> Tensor:
        latent = one_step(encode(pixels, unet.spec.front, vae, plan=around), unet, plan=step)
        return finished(decode(latent, unet.spec.back, vae, plan=around), prepared, extent)

    wholes = {"untiled": finished(untiled(pixels, unet, vae), prepared, extent), "windows": make(ONE_BAND, ONE_BAND)}
    for mode in modes(with_vae=vae is not None):
        image, whole = make(mode.step, mode.vae), wholes[mode.whole]
        difference = (image - whole).abs().max().item()
        rows, columns = lines(mode, unet, vae, padding.around(extent))
        own, other = (line_ratio(x, rows, columns, padding) for x in (image, whole))
        yield f"{mode.name}, beside {mode.whole}", difference, None if own is None or other is None else own / other


def seams(device: str) -> str:
    """Return a Markdown section: differences and seam figures of every mode of the bundled networks."""
    rows: list[list[str]] = []
    for model, (unet_name, vae_name) in MODELS.items():
        unet = load_unet(unet_name, device=device, dtype=torch.float32)
        vae = load_vae(vae_name, device=device, dtype=torch.float32) if vae_name else None
        for name, difference, figure in compare(unet, vae, SOURCES[model], device):
            rows.append(
                [f"{model} {SOURCES[model]}: {name}", f"{difference:.1e}", "-" if figure is None else f"{figure:.4f}"]
            )
    listing = table([f"fp32, scale {SCALE:g}", "largest difference", "seam figure"], rows)
    return f"## Seams\n\n{listing}"
