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
from ..gendr_core.plan import StagePlan
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
        """For ``each_frame``: the meter knows better how far the work is than the number of frames."""

    def __call__(self, compute: Callable[[StagePlan], Tensor]) -> Tensor:
        """Return what the stage gives for one frame.

        Raises:
            OutOfMemoryError: it fits in no way.
        """
        return run_stage(self._ladder, self.meter, compute)


def each_frame(num_frames: int, host: Host, stage: Callable[[int], Tensor]) -> Tensor:
    """Return the results of ``stage`` on every frame, as one float32 batch on the CPU.

    Args:
        num_frames: at least 1.
        host: told of every frame done and asked before each one.
        stage: returns the result [1, ...] for the frame of that index, of the same shape for all.
    """
    batch = torch.empty(0)
    for index in range(num_frames):
        host.interrupt.check()
        result = stage(index)
        if index == 0:
            # Each in its place at once: a list of results would be there a second time when it is joined.
            batch = torch.empty(num_frames, *result.shape[1:])
        batch[index : index + 1] = result
        host.progress.update(index + 1, num_frames)
    return batch
