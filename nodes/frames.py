"""Runs a stage on a batch, a few images at a time, with progress and cancel.

Role: between the nodes of ``latent`` and ``color`` and the stages of the core. Memory does not grow with the batch.
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
from ..gendr_core.geometry import Extent, Span, partition
from ..gendr_core.host import Host, Meter, SilentProgress
from ..gendr_core.memory import format_bytes
from ..gendr_core.model import GenDRUNet, GenDRVAE
from ..gendr_core.plan import StagePlan
from ..gendr_core.planner import Planner, Task
from ..gendr_core.spec import ModelSpec

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


def latent_extent(samples: Tensor, spec: ModelSpec) -> Extent:
    """Return the size in pixels of latents [B, C, h, w] of a model."""
    return Extent(height=samples.shape[2] * spec.cell_px, width=samples.shape[3] * spec.cell_px)


def latent_planner(
    samples: Tensor, unet: GenDRUNet, vae: GenDRVAE | None, options: RestoreOptions, *, host: Host
) -> Planner:
    """Return who plans for latents [B, C, h, w]; of ``options`` the scale is 1."""
    task = Task(source=latent_extent(samples, unet.spec), frames=samples.shape[0])
    return Planner(unet, vae, task, options, host=host)


class StageRun:
    """One stage on the frames of a batch: says how it runs, and climbs down its ladder where memory runs out."""

    def __init__(self, name: Literal["encode", "step", "decode"], ladder: Ladder, host: Host, num_frames: int) -> None:
        """Start with the ladder's way.

        Args:
            name: of the stage, for the log.
            ladder: of the stage.
            host: told of the work done and asked in between.
            num_frames: at least 1.
        """
        way = ladder.plan
        _log.info(
            "%s: %d x %s, about %s, %.4g TFLOP",
            name,
            num_frames,
            way.describe() if name == "step" else way.describe_bands(),
            format_bytes(way.activation_bytes),
            num_frames * way.flops / 1e12,
        )
        self._ladder = ladder
        self.meter = Meter(host, num_frames * way.flops)
        self.host = replace(host, progress=SilentProgress())
        """For ``each_group``: the meter knows better how far the work is than the number of frames."""

    def __call__(self, frames: Tensor, compute: Callable[[Tensor, StagePlan], Tensor]) -> Tensor:
        """Return what the stage gives for ``frames``.

        Raises:
            OutOfMemoryError: it fits in no way.
        """
        return run_stage(self._ladder, self.meter, frames, compute)


def each_group(num_frames: int, together: int, host: Host, stage: Callable[[Span], Tensor]) -> Tensor:
    """Return the results of ``stage`` on all frames, as one float32 batch on the CPU.

    Args:
        num_frames: at least 1.
        together: frames of a group, at least 1.
        host: told of every group done and asked before each one.
        stage: returns the results [B, ...] for these frames, of the same shape for all.
    """
    batch = torch.empty(0)
    for frames in partition(num_frames, together):
        host.interrupt.check()
        results = stage(frames)
        if frames.start == 0:
            # Each in its place at once: a list of results would be there a second time when it is joined.
            batch = torch.empty(num_frames, *results.shape[1:])
        batch[frames.places] = results
        host.progress.update(frames.stop, num_frames)
    return batch
