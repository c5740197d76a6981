"""How good the averaged weights are on held-out images, in PSNR-Y, and how they look.

Role: called by ``loop`` every so often. Crops and damage are fixed, so the numbers of one run compare.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gendr_core import metrics
from gendr_core.degrade import HEAVY, LIGHT, degrade
from gendr_core.tensors import to_image

from .data.dataset import Batch
from .data.images import find_images, read_rgb
from .schema import DataConfig
from .stages.stage import Pair, Stage, to_pair


class Outcome(NamedTuple):
    """Of one validation."""

    scores: dict[str, float]
    """Name -> decibels."""
    pictures: dict[str, Tensor]
    """Name -> [N, 3, H, 3 W] float 0 to 1: enlarged, restored and original side by side."""


def validation_set(data: DataConfig) -> dict[str, Batch]:
    """Return one batch per recipe, name -> batch of centre crops; empty without a validation folder.

    Args:
        data: folder, number and size of the crops.

    Raises:
        ImageError: the folder is missing or empty, or an image is too small.
    """
    if data.validation_folder is None:
        return {}
    paths = _spread(find_images((data.validation_folder,)), data.validation_images)
    originals = [_centre_crop(read_rgb(path, data.validation_crop_px), data.validation_crop_px) for path in paths]
    batches: dict[str, Batch] = {}
    for recipe in (LIGHT, HEAVY):
        damaged = [
            degrade(original.permute(1, 2, 0)[None].to(torch.float32) / 255.0, recipe, seed)
            for seed, original in enumerate(originals)
        ]
        batches[recipe.name] = Batch(
            original=torch.stack(originals),
            damaged=torch.cat(damaged).permute(0, 3, 1, 2).contiguous(),
            position=torch.arange(len(originals)),
            caption=[""] * len(originals),
        )
    return batches


def validate(stage: Stage, batches: dict[str, Batch], device: torch.device) -> Outcome:
    """Return the mean PSNR-Y per recipe with its gain over bicubic enlargement, and pictures.

    Args:
        stage: with the averaged weights in place.
        batches: from ``validation_set``; where the stage reads only the originals, one recipe is enough.
        device: of the stage.
    """
    stage.eval()
    scores: dict[str, float] = {}
    pictures: dict[str, Tensor] = {}
    for name, batch in batches.items():
        pairs = [_pair_at(batch, index, device) for index in range(len(batch.original))]
        outputs = [stage.restored(pair) for pair in pairs]
        shown = [torch.cat([p.upsampled, o, p.original], dim=3) for p, o in zip(pairs, outputs, strict=True)]
        pictures[name] = torch.cat(shown) / 2 + 0.5
        score = _mean([_psnr_y(output, pair.original) for output, pair in zip(outputs, pairs, strict=True)])
        if stage.reconstructs:
            scores, pictures = {"psnr_y": score}, {"reconstruction": pictures[name]}
            break
        scores[name] = score
        scores[f"{name}_gain"] = score - _mean([_psnr_y(pair.upsampled, pair.original) for pair in pairs])
    stage.train()
    return Outcome(scores, pictures)


def _psnr_y(output: Tensor, target: Tensor) -> float:
    return float(metrics.psnr_y(to_image(output).cpu(), to_image(target).cpu()).mean())


def _spread(paths: list[Path], count: int) -> list[Path]:
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def _centre_crop(image_chw: Tensor, side_px: int) -> Tensor:
    top, left = ((length - side_px) // 2 for length in image_chw.shape[1:])
    return image_chw[:, top : top + side_px, left : left + side_px]


def _pair_at(batch: Batch, index: int, device: torch.device) -> Pair:
    one = slice(index, index + 1)
    original, damaged = batch.original[one].to(device), batch.damaged[one].to(device)
    return to_pair(Batch(original=original, damaged=damaged, position=batch.position[one], caption=batch.caption[one]))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
