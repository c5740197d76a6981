"""Runs a stage on a batch image by image, with progress and cancel.

Role: between the nodes of ``latent`` and ``color`` and the stages of the core. The result of an image then depends on
no other one, and memory does not grow with the batch.
"""

from collections.abc import Callable
from dataclasses import replace
from logging import getLogger
from typing import Literal

import torch
from torch import Tensor

from ..gendr_core.backoff import Ladder, run_stage
from ..gendr_core.config import RestoreOptions
from ..gendr_core.finish import Guides, GuideShapes
from ..gendr_core.geometry import Extent
from ..gendr_core.host import Host, Meter, SilentProgress
from ..gendr_core.memory import format_bytes
from ..gendr_core.model import GenDRUNet, GenDRVAE
from ..gendr_core.planner import Planner, Task
from ..gendr_core.spec import SPATIAL_FACTOR

_log = getLogger(__name__)

NO_GUIDES = GuideShapes()


def image_task(image: Tensor, guides: GuideShapes = NO_GUIDES) -> Task:
    """Return the task of restoring ``image`` [B, H, W, C] beside these guides."""
    num_frames, height, width, channels = image.shape
    return Task(source=Extent(height, width), channels=channels, frames=num_frames, guides=guides)


def guides_of(mask: Tensor | None, color_reference: Tensor | None) -> Guides:
    """Return the pictures beside an image; a mask of another number of axes is read as the host's own nodes do."""
    return Guides(
        mask=None if mask is None else mask.reshape(-1, *mask.shape[-2:]),
        color_reference=color_reference,
    )


def latent_extent(samples: Tensor) -> Extent:
    """Return the size in pixels of latents [B, C, h, w]."""
    return Extent(height=samples.shape[2] * SPATIAL_FACTOR, width=samples.shape[3] * SPATIAL_FACTOR)


def latent_planner(
    samples: Tensor, unet: GenDRUNet, vae: GenDRVAE | None, options: RestoreOptions, *, host: Host
) -> Planner:
    """Return who plans for latents [B, C, h, w]; of ``options`` the scale is 1."""
    task = Task(source=latent_extent(samples), frames=samples.shape[0])
    return Planner(unet, vae, task, options, host=host)


def run_frames(
    name: Literal["encode", "step", "decode"], ladder: Ladder, host: Host, compute: Callable[..., Tensor], batch: Tensor
) -> Tensor:
    """Return the results of a stage on every image of ``batch``, as ``each_frame``.

    Args:
        name: of the stage, for the log.
        ladder: of the stage; climbed down where memory runs out.
        host: told of the work done and asked in between.
        compute: the stage; takes one image [1, ...], ``plan`` and ``meter``.
        batch: [B, ...], B at least 1.

    Raises:
        OutOfMemoryError: the stage fits in no way.
    """
    way = ladder.plan
    _log.info(
        "%s: %d x %s, about %s, %.4g TFLOP",
        name,
        len(batch),
        way.describe() if name == "step" else way.describe_bands(),
        format_bytes(way.activation_bytes),
        len(batch) * way.flops / 1e12,
    )
    meter = Meter(host, len(batch) * way.flops)

    def stage(frame: Tensor) -> Tensor:
        return run_stage(ladder, meter, lambda plan: compute(frame, plan=plan, meter=meter))

    # The meter knows better how far the work is than the number of images.
    return each_frame(stage, replace(host, progress=SilentProgress()), batch)


def each_frame(stage: Callable[..., Tensor], host: Host, batch: Tensor, *others: Tensor) -> Tensor:
    """Return the results of ``stage`` on every image of ``batch``, as one float32 batch on the CPU.

    Args:
        stage: takes one image [1, ...] of each batch and returns one result [1, ...].
        host: told of every image done and asked before each one.
        batch: [B, ...], B at least 1.
        others: further batches; of the same length, or of length 1 for all.
    """
    results: list[Tensor] = []
    for index in range(batch.shape[0]):
        host.interrupt.check()
        results.append(stage(*(part[index % len(part)][None] for part in (batch, *others))).to("cpu", torch.float32))
        host.progress.update(index + 1, batch.shape[0])
    return torch.cat(results) if len(results) > 1 else results[0]
