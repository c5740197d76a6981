"""Weight files with all that is constant or linear folded in: fewer parameters, in a number format of choice.

Role: between ``model``, which loads and folds, and files; ``gendr bake`` is its command line. What is written is read
like any other file for restoring, but cannot be trained, converted or given another prompt.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .checkpoint import write_unet, write_vae
from .errors import CheckpointError
from .layouts import PROMPT_NAMES
from .metadata import STORED_FOLDS, Kind
from .model import load_unet, load_vae
from .spec import Fold

Storage = Literal["fp32", "fp16", "bf16", "fp8"]
"""Number formats of files. With fp8, weights of convolutions and linear layers are float8 with one scale for every
output channel (``float8``); first and last ones (``nets.compressed.ENDS``) and everything else are bfloat16."""

_DTYPES: dict[Storage, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
}


def bake_unet(source: Path, target: Path, storage: Storage) -> None:
    """Write a UNet file again, folded for its timestep and prompts.

    Args:
        source: a file that ``load_unet`` takes.
        target: ends in .safetensors or .sft; replaced once all is written, and another file than ``source``.
        storage: of the weights; they are folded in float32 and rounded once.

    Raises:
        CheckpointError: a file cannot be read or written, or its weights do not fit the number format.
    """
    unet = load_unet(source, dtype=_DTYPES[storage], folds=_folds("unet", storage))
    positive = unet.positive.to(_DTYPES[storage])
    negative = None if unet.negative is None else unet.negative.to(_DTYPES[storage])
    state = unet.network.state_dict()
    prompts = {
        name: prompt for name, prompt in zip(PROMPT_NAMES, (positive, negative), strict=True) if prompt is not None
    }
    _check_range({**state, **prompts}, storage)
    write_unet(target, unet.spec, state, positive, negative, unet.folds - {"fp8"})


def bake_vae(source: Path, target: Path, storage: Storage) -> None:
    """Write a VAE file again, folded; arguments and errors as ``bake_unet``.

    Raises:
        CheckpointError: a file cannot be read or written, or its weights do not fit the number format.
    """
    vae = load_vae(source, dtype=_DTYPES[storage], folds=_folds("vae16", storage))
    state = vae.network.state_dict()
    _check_range(state, storage)
    write_vae(target, vae.spec, state, vae.folds - {"fp8"})


def _folds(kind: Kind, storage: Storage) -> tuple[Fold, ...]:
    """Return what is folded: in 8 bits a network in memory has the names and the values of a file."""
    return (*STORED_FOLDS[kind], "fp8") if storage == "fp8" else STORED_FOLDS[kind]


def _check_range(tensors: Mapping[str, Tensor], storage: Storage) -> None:
    """Raise where a number became infinite; files that were read have none."""
    if storage != "fp16":
        return
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            largest = torch.finfo(tensor.dtype).max
            raise CheckpointError(
                f"{name} has numbers beyond {largest:g}, the largest of {storage}: choose bf16 or fp32"
            )
