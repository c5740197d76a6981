"""How good the averaged weights are on held-out images, in PSNR-Y.

Role: called by ``loop`` every so often. Crops and damage are fixed, so the numbers of one run compare.
"""

from pathlib import Path

import torch
from torch import Tensor

from gendr_core import metrics
from gendr_core.degrade import HEAVY, LIGHT, degrade
from gendr_core.tensors import to_image

from .data.dataset import Batch, find_images, read_rgb
from .roles import Roles
from .schema import DataConfig
from .steps import Pair, restored, to_pair

Scores = dict[str, float]
"""Name -> decibels, or a plain number."""


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
        batches[recipe.name] = Batch(torch.stack(originals), torch.cat(damaged).permute(0, 3, 1, 2).contiguous())
    return batches


def validate(roles: Roles, batches: dict[str, Batch]) -> Scores:
    """Return the mean PSNR-Y per recipe, and its gain over bicubic enlargement.

    Args:
        roles: with the averaged weights as ``trained``; on any device.
        batches: from ``validation_set``; stage vae16 reads only the originals, so one recipe is enough there.
    """
    scores: Scores = {}
    for name, batch in batches.items():
        pairs = [_pair_at(batch, index, roles.prompt.device) for index in range(len(batch.original))]
        outputs = [restored(roles, pair) for pair in pairs]
        score = _mean([_psnr_y(output, pair.original) for output, pair in zip(outputs, pairs, strict=True)])
        if roles.stage == "vae16":
            return {"psnr_y": score}
        scores[name] = score
        scores[f"{name}_gain"] = score - _mean([_psnr_y(pair.upsampled, pair.original) for pair in pairs])
    return scores


def latent_std(roles: Roles, batches: dict[str, Batch]) -> float:
    """Return the standard deviation of the posterior modes of the originals; 1/std is a good latent scaling.

    Args:
        roles: in stage vae16.
        batches: from ``validation_set``, not empty.
    """
    originals = to_pair(next(iter(batches.values()))).original.to(roles.prompt.device)
    with torch.no_grad():
        return float(torch.cat([roles.trained(image[None], None)[1].float() for image in originals]).std())


def _psnr_y(output: Tensor, target: Tensor) -> float:
    return float(metrics.psnr_y(to_image(output), to_image(target)).mean())


def _spread(paths: list[Path], count: int) -> list[Path]:
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def _centre_crop(image_chw: Tensor, side_px: int) -> Tensor:
    top, left = ((length - side_px) // 2 for length in image_chw.shape[1:])
    return image_chw[:, top : top + side_px, left : left + side_px]


def _pair_at(batch: Batch, index: int, device: torch.device) -> Pair:
    one = Batch(batch.original[index : index + 1].to(device), batch.damaged[index : index + 1].to(device))
    return to_pair(one)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
