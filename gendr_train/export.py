"""Averaged weights -> the file that gendr_core loads.

Role: the end of a run, called by ``loop``. Half precision; the metadata says which config the weights came from.
"""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from gendr_core.checkpoint import write_unet, write_vae
from gendr_core.spec import ModelSpec, UNetArch, VAESpec

from .config import config_hash
from .roles import Roles
from .schema import ExportConfig, TrainConfig

EXPORT_DTYPE = torch.float16

Spec = TypeVar("Spec", ModelSpec, VAESpec)


def export_weights(path: Path, roles: Roles, config: TrainConfig, *, images: int, latent_scaling: float) -> None:
    """Write the weights as float16 safetensors with their spec.

    Args:
        path: the file to write.
        roles: with the averaged weights as ``trained``.
        config: the run.
        images: images seen, for the record.
        latent_scaling: factor of the latents; 1.0 in stage pixel.

    Raises:
        CheckpointError: the spec is not usable.
    """
    source = f"{config.export.source} (config {config_hash(config)}, {images} images)".strip()
    about = replace(config.export, source=source)
    state = {name: _half(value) for name, value in roles.trained.state_dict().items()}
    if not isinstance(config.network, UNetArch):
        state = {name.removeprefix("vae."): value for name, value in state.items()}
        vae_spec = VAESpec(arch=config.network, latent_scaling=latent_scaling)
        write_vae(path, _told(vae_spec, about), state)
        return
    in_pixels = config.run.stage == "pixel"
    spec = ModelSpec(
        arch=config.network,
        timestep=config.model.timestep,
        c_skip=config.model.c_skip,
        c_out=config.model.c_out,
        front="pixel_unshuffle8" if in_pixels else "vae16",
        back="pixel_shuffle8" if in_pixels else "vae16",
        scale=config.model.scale,
        latent_scaling=latent_scaling,
    )
    write_unet(path, _told(spec, about), state, _half(roles.prompt))


def _told(spec: Spec, about: ExportConfig) -> Spec:
    return replace(spec, title=about.title, license=about.license, source=about.source, trained_on=about.trained_on)


def _half(value: Tensor) -> Tensor:
    return value.detach().to("cpu", EXPORT_DTYPE).contiguous()
