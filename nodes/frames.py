"""Runs a stage on a batch image by image, with progress and cancel between images.

Role: between the nodes of ``latent`` and ``color`` and the stages of the core. The result of an image then depends on
no other one, and memory does not grow with the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..gendr_core.host import Host


def each_frame(stage: Callable[..., Tensor], host: Host, batch: Tensor, *others: Tensor) -> Tensor:
    """Return the results of ``stage`` on every image of ``batch``, as one float32 batch on the CPU.

    Args:
        stage: takes one image [1, ...] of each batch and returns one result [1, ...].
        host: told of every image done and asked before each one.
        batch: [B, ...], B at least 1.
        others: further batches; a shorter one starts over.
    """
    results: list[Tensor] = []
    for index in range(batch.shape[0]):
        host.interrupt.check()
        results.append(stage(*(part[index % len(part)][None] for part in (batch, *others))).to("cpu", torch.float32))
        host.progress.update(index + 1, batch.shape[0])
    return torch.cat(results)
