"""The whole restoration: prepare -> encode -> step -> decode -> finish. The file to read first."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Literal

import torch
from torch import Tensor

from .backoff import run_end, run_stage, run_twice, typed_memory_errors
from .config import RestoreOptions
from .decode import decode
from .encode import encode
from .errors import OptionError
from .finish import Guides, finish
from .geometry import Extent, Span, partition
from .graphs import used
from .host import Host, Meter
from .memory import PROCESSOR
from .model import GenDRUNet, GenDRVAE, required_vae
from .plan import Plan
from .planner import Planner, Task
from .prepare import prepare, restore_layout
from .spec import SPATIAL_FACTOR
from .staging import Downloads, upload
from .step import one_step
from .tensors import check_image, crop

_log = getLogger(__name__)


@typed_memory_errors()
def restore(
    image: Tensor,
    unet: GenDRUNet,
    vae: GenDRVAE | None = None,
    options: RestoreOptions | None = None,
    *,
    host: Host | None = None,
    guides: Guides | None = None,
) -> Tensor:
    """Return the restored image at its final size.

    Frames of a batch know nothing of each other. Those that go through the networks together, on CUDA or where
    ``options`` say so, may differ by rounding from what each gives alone.

    Args:
        image: [B, H, W, C] in [0, 1], float, any size from 1x1; C is 1 (gray), 3 (RGB) or 4 (RGBA).
        unet: from ``load_unet``.
        vae: from ``load_vae``; needed where ``unet.spec.needs_vae``.
        options: size, colour and guidance; None takes the defaults of ``RestoreOptions``.
        host: progress, cancel and where networks live.
        guides: a mask of what is restored, and whose colours are taken; None restores all in the input's colours.

    Returns:
        [B, H', W', C] in [0, 1], float32, CPU, exactly the size that the options ask for.

    Raises:
        ImageError: the image is not one, or a guide does not fit it.
        OptionError: an option does not fit the image or the model.
        OutOfMemoryError: it fits in memory in no way, or not in the budget.
    """
    options, host, guides = options or RestoreOptions(), host or Host(), guides or Guides()
    run_twice("the check of the image", lambda: check_image(image))
    run_twice("the check of the guides", lambda: guides.check(len(image)))
    check_pair(unet, vae)
    num_frames, height, width, channels = image.shape
    task = Task(source=Extent(height=height, width=width), channels=channels, frames=num_frames, guides=guides.shapes())
    planner = Planner(unet, vae, task, options, host=host)
    plan = run_twice("planning", planner.plan)
    _log.info("%s", plan.describe())
    if guides.keep_everything():
        _log.warning("the mask is empty: what comes out is the resized input")
    job = _Job(unet, vae, options, planner, Meter(host, plan.flops), plan)
    with torch.inference_mode(), used(options.graphs):
        if num_frames == 1:
            return _restore_frames(image, job, guides, None).cpu()
        size = (num_frames, planner.output.height, planner.output.width, channels)
        result, downloads = run_twice("the result", lambda: torch.empty(size)), Downloads()
        for frames in partition(num_frames, planner.together):
            out = result[frames.places]
            restored = _restore_frames(image[frames.places], job, guides.part(frames), out)
            if restored is not out:
                downloads.add(restored, out)
        downloads.settle()
    return result


@dataclass(frozen=True, slots=True)
class _Job:
    """What all frames of a batch have in common."""

    unet: GenDRUNet
    vae: GenDRVAE | None
    options: RestoreOptions
    planner: Planner
    meter: Meter
    plan: Plan

    def end_device(self, side: Literal["front", "back"]) -> torch.device:
        """Return where to prepare frames, or to finish them, with the room that this takes there."""
        if self.plan.device_type == "cpu" or not self.plan.ends_on_device:
            return PROCESSOR
        spec, stage = self.unet.spec, "prepare" if side == "front" else "color"
        # The network that comes next, or that came last: it is there anyway.
        by_vae = (spec.front if side == "front" else spec.back) == "vae16"
        network = required_vae(self.vae).network if by_vae else self.unet.network
        return self.meter.host.residency.acquire(network, self.plan.stages[stage].activation_bytes)


def _restore_frames(image: Tensor, job: _Job, guides: Guides, out: Tensor | None) -> Tensor:
    """Return ``image`` [B, H, W, C] restored, all B together: in ``out`` where it is given, or on another device."""
    unet, vae, planner, meter = job.unet, job.vae, job.planner, job.meter
    preview, interrupt = meter.host.preview, meter.host.interrupt
    interrupt.check()
    unchanged = guides.keep_everything()
    prepared = run_end(
        "prepare",
        PROCESSOR if unchanged else job.end_device("front"),
        lambda device: prepare(upload(image, device), planner.output, planner.pad_multiple),
    )
    interrupt.check()
    if unchanged:
        meter.advance(job.plan.flops * len(image) // job.plan.frames, Span(0, 1), 1)
        return restore_layout(prepared.reference, prepared, out=out)
    if preview is not None:
        preview.begin(prepared.pixels[:1])
    # What goes from stage to stage has one name, so that it is freed as soon as the next stage has made its own.
    x = prepared.pixels
    prepared = replace(prepared, pixels=prepared.reference)
    front, back, guidance = unet.spec.front, unet.spec.back, job.options.guidance
    on_part = preview_tiles(unet, meter.host)
    x = run_stage(planner.encode, meter, x, lambda x, way: encode(x, front, vae, plan=way, meter=meter))
    x = run_stage(
        planner.step,
        meter,
        x,
        lambda x, way: one_step(x, unet, guidance=guidance, plan=way, meter=meter, on_part=on_part),
    )
    x = run_stage(planner.decode, meter, x, lambda x, way: decode(x, back, vae, plan=way, meter=meter))
    if preview is not None:
        preview.show(x[:1], Span(0, planner.padded.height), Span(0, planner.padded.width))
    interrupt.check()
    pixels = crop(x, planner.padding, planner.output)

    def finished(device: torch.device) -> Tensor:
        parts = pixels.to(device), prepared.to(device), job.options, guides.to(device)
        return finish(*parts, out=out if device == PROCESSOR else None, interrupt=interrupt)

    return run_end("color", job.end_device("back"), finished)


def preview_tiles(unet: GenDRUNet, host: Host) -> Callable[[Tensor, Span, Span], None] | None:
    """Return what shows finished tiles to the host; None where nobody looks or only a VAE makes pixels of them."""
    preview = host.preview
    if preview is None or unet.spec.back != "pixel_shuffle8":
        return None

    def show(tile: Tensor, rows: Span, columns: Span) -> None:
        preview.show(decode(tile, unet.spec.back), rows.times(SPATIAL_FACTOR), columns.times(SPATIAL_FACTOR))

    return show


def check_pair(unet: GenDRUNet, vae: GenDRVAE | None) -> None:
    """Check that the VAE is the one that the UNet was trained with, as far as their specs tell.

    Raises:
        OptionError: the VAE is missing or makes other latents.
    """
    if not unet.spec.needs_vae:
        return
    channels = unet.spec.arch.in_channels if unet.spec.front == "vae16" else unet.spec.arch.out_channels
    latent_channels = required_vae(vae).spec.arch.latent_channels
    if latent_channels != channels:
        raise OptionError(
            f"expected a VAE with {channels} latent channels, got {latent_channels}: load the UNet's own VAE"
        )
    cell_px = required_vae(vae).spec.arch.spatial_factor
    if cell_px != unet.spec.cell_px:
        raise OptionError(
            f"expected a VAE with {unet.spec.cell_px} pixels per latent cell, got one with {cell_px}: load the UNet's"
            " own VAE"
        )
