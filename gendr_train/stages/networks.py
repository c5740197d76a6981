"""What the stages share about networks: how they are read, placed, frozen and described in an exported file.

Role: used by the other files of this folder.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from gendr_core.checkpoint import read_unet, read_vae
from gendr_core.errors import CheckpointError
from gendr_core.nets import VAE, UNet
from gendr_core.spec import SPATIAL_FACTOR, ModelSpec, Prediction, UNetArch

from ..errors import TrainingError
from ..schema import ExportConfig
from ..sections import OneStep

EXPORT_DTYPE = torch.float16

Network = TypeVar("Network", bound=nn.Module)


def placed(network: Network) -> Network:
    """Return the network with its weights in the layout that convolutions are fastest in: 1.5 times on a CPU."""
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
    return network


class FrozenVAE:
    """The VAE that a stage uses but does not own: no part of its parameters, its state or its engine."""

    def __init__(self, network: VAE, latent_scaling: float) -> None:
        """Freeze the network.

        Args:
            network: a VAE.
            latent_scaling: latents times this are what UNets see.
        """
        self.network = placed(network.requires_grad_(False).eval())
        self.latent_scaling = latent_scaling

    @classmethod
    def load(cls, path: str) -> "FrozenVAE":
        """Return the VAE of a file.

        Args:
            path: VAE file.

        Raises:
            CheckpointError: the file is not usable, or its latent cells are not those of the stages.
        """
        file = read_vae(path)
        if file.spec.arch.spatial_factor != SPATIAL_FACTOR:
            raise CheckpointError(
                f"expected a VAE with {SPATIAL_FACTOR} pixels per latent cell to train with, got one with"
                f" {file.spec.arch.spatial_factor}: choose VAE16, or another with four levels"
            )
        vae = VAE(file.spec.arch)
        vae.load_state_dict({name: value.float() for name, value in file.state.items()})
        return cls(vae, file.spec.latent_scaling)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return scaled posterior modes [B, C, H/8, W/8] float32, without gradient.

        Args:
            pixels: [B, 3, H, W] in [-1, 1]; the network follows to their device.
        """
        return self.network.to(pixels.device).encode(pixels).float() * self.latent_scaling

    def decode(self, latent: Tensor) -> Tensor:
        """Return pixels [B, 3, H, W], not clamped; gradients pass through to the latent.

        Args:
            latent: scaled, [B, C, H/8, W/8]; the network follows to its device.
        """
        return self.network.to(latent.device).decode(latent / self.latent_scaling)


def to_cells(pixels: Tensor) -> Tensor:
    """Return [B, 192, H/8, W/8], the pixels of every cell as channels (pixel unshuffle)."""
    return functional.pixel_unshuffle(pixels, SPATIAL_FACTOR)


def to_pixels(cells: Tensor) -> Tensor:
    """Return [B, 3, H, W] of ``to_cells``."""
    return functional.pixel_shuffle(cells, SPATIAL_FACTOR)


def load_unet_weights(unet: UNet, path: str) -> Tensor:
    """Load a UNet file of the same shape and return its positive prompt [tokens, dim] float32.

    Args:
        unet: the network to fill.
        path: UNet file.

    Raises:
        CheckpointError: the file is not usable.
        TrainingError: it holds a network of another shape.
    """
    file = read_unet(path)
    expect_shapes(unet, file.state, path)
    unet.load_state_dict({name: value.float() for name, value in file.state.items()})
    return file.positive.float()


def expect_shapes(network: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Refuse weights of another shape than the network's.

    Args:
        network: what the config describes.
        state: weights by name.
        path: where they came from.

    Raises:
        TrainingError: names or shapes differ.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != shapes:
        raise TrainingError(f"expected weights of the config's network to start from, got another shape in {path}")


def unet_spec(
    arch: UNetArch,
    one_step: OneStep,
    about: ExportConfig,
    *,
    in_pixels: tuple[bool, bool],
    latent_scaling: float,
    prediction: Prediction = "epsilon",
) -> ModelSpec:
    """Return what an exported UNet file says.

    Args:
        arch: shape of the network.
        one_step: how it is run.
        about: title, licence, source and data.
        in_pixels: whether it takes, and whether it gives, unshuffled pixels instead of latents.
        latent_scaling: of the latents; 1.0 where there are none.
        prediction: what a diffusion model learned to predict, or what the network was before it became a restorer; of
            no meaning for others.

    Raises:
        CheckpointError: the values contradict each other.
    """
    return ModelSpec(
        arch=arch,
        timestep=one_step.timestep,
        prediction=prediction,
        c_skip=one_step.c_skip,
        c_out=one_step.c_out,
        guidance=one_step.guidance,
        front="pixel_unshuffle8" if in_pixels[0] else "vae16",
        back="pixel_shuffle8" if in_pixels[1] else "vae16",
        scale=one_step.scale,
        latent_scaling=latent_scaling,
        title=about.title,
        license=about.license,
        source=about.source,
        trained_on=about.trained_on,
    )


def half(value: Tensor) -> Tensor:
    """Return a detached float16 copy on the processor, as files hold it."""
    return value.detach().to("cpu", EXPORT_DTYPE).contiguous()
