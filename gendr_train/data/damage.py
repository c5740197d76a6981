"""The damage of a batch by its images' places in the row: the same for an image in every batch, worker and process.

Role: called by ``dataset`` for single crops in the workers, and by the training loop for batches that are damaged on
the device of the networks.
"""

import torch
from torch import Tensor

from ..degradations import Degradation, SecondOrder
from ..rng import mix
from .degrade import degrade_randomly
from .jpeg import jpeg_on_device
from .second_order import degrade_second_order

DAMAGE = 0x2545F4914F6CDD1D
"""Keeps the stream of damage apart from that of crops."""


def damage_batch(original: Tensor, positions: Tensor, ranges: Degradation | SecondOrder, seed: int) -> Tensor:
    """Return the damaged images [B, 3, H/4, W/4], float32, 0..1, on the device of the originals.

    Images go one by one, since each is resized to sizes of its own: no image's result depends on its batch. The
    second-order recipe stays on the device, with JPEG in torch; the first-order one goes over the CPU, with Pillow's.

    Args:
        original: [B, 3, H, W] uint8, sides multiples of 4, any device.
        positions: [B] int64, as in ``Batch.position``.
        ranges: what strengths are drawn from.
        seed: of the run.
    """
    damaged: list[Tensor] = []
    for image, position in zip(original, positions, strict=True):
        generator = damage_stream(seed, int(position))
        if isinstance(ranges, SecondOrder):
            image_bchw = image[None].to(torch.float32) / 255.0
            damaged.append(degrade_second_order(image_bchw, ranges, generator, compress=jpeg_on_device))
        else:
            image_bchw = image[None].cpu().to(torch.float32) / 255.0
            damaged.append(degrade_randomly(image_bchw, ranges, generator).to(original.device))
    return torch.cat(damaged)


def damage_stream(seed: int, position: int) -> torch.Generator:
    """Return the CPU generator that damages one image of the row.

    Args:
        seed: of the run.
        position: of the image.
    """
    return torch.Generator().manual_seed(mix(seed ^ DAMAGE, position))
