"""The networks of a run: which one learns, which is frozen, and how they start.

Role: built once by ``loop`` from the config; read by ``steps`` and ``validate``.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from gendr_core.checkpoint import read_unet, read_vae
from gendr_core.nets import VAE, UNet
from gendr_core.spec import UNetArch

from .errors import TrainingError
from .schema import ModelConfig, Stage, TrainConfig


class Autoencoder(nn.Module):
    """A VAE as one forward pass, so that mixed precision and several devices wrap it like any network."""

    def __init__(self, vae: VAE) -> None:
        """Wrap a VAE; its weights are those under ``vae.``."""
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return (reconstruction, mean, logvar).

        Args:
            pixels: [B, 3, H, W] in [-1, 1], sides multiples of 8.
            noise: [B, C, H/8, W/8] standard normal to sample the posterior with; None takes its mode.
        """
        mean, logvar = self.vae.moments(pixels)
        latent = mean if noise is None else mean + (0.5 * logvar).exp() * noise
        return self.vae.decode(latent), mean, logvar


Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """The networks of one run; only ``trained`` has gradients."""

    stage: Stage
    model: ModelConfig
    trained: nn.Module
    """``Autoencoder`` in stage vae16, else ``UNet``; possibly wrapped by accelerate."""
    vae: VAE | None
    """Frozen, in the latent stage only."""
    latent_channels: int
    """Of the VAE in training or frozen; 0 in pixel space."""
    latent_scaling: float
    """Latents times this are what the UNet sees; 1.0 where there is no VAE."""
    prompt: Tensor
    """[1, cross_attention_dim], fixed for good; exported with the weights. Empty in stage vae16."""


def build_roles(config: TrainConfig, device: torch.device) -> Roles:
    """Return the networks, from the config's ``init`` or fresh from the run's seed, on the device.

    Args:
        config: the run.
        device: where they live.

    Raises:
        CheckpointError: the file to start from, or the VAE file of the latent stage, is not usable.
        TrainingError: the file to start from holds a network of another shape.
    """
    # Layers draw their weights from the global generator: seed it here, and put it back.
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(config.run.seed)  # pyright: ignore[reportUnknownMemberType]
        trained = _placed(_build_trained(config), device)
    vae, latent_scaling = _frozen_vae(config, device)
    return Roles(
        stage=config.run.stage,
        model=config.model,
        trained=trained,
        vae=vae,
        latent_channels=_latent_channels(config),
        latent_scaling=latent_scaling,
        prompt=fixed_prompt(config).to(device),
    )


def fixed_prompt(config: TrainConfig) -> Tensor:
    """Return the prompt embedding [tokens, cross_attention_dim], float32, never trained.

    That of the file to start from, else one token of seeded standard normals: zeros would be of no use, since the key
    and value layers have no bias, and their output and gradient would stay zero.

    Args:
        config: the run; [0, 0] in stage vae16, which has no prompt.
    """
    if not isinstance(config.network, UNetArch):
        return torch.empty(0, 0)
    if config.init is not None:
        return read_unet(config.init).positive.float()
    generator = torch.Generator().manual_seed(config.run.seed)
    return torch.randn((1, config.network.cross_attention_dim), generator=generator)


def _build_trained(config: TrainConfig) -> nn.Module:
    if not isinstance(config.network, UNetArch):
        vae = VAE(config.network)
        if config.init is not None:
            _start_from(vae, read_vae(config.init).state, config.init)
        return Autoencoder(vae)
    unet = UNet(config.network)
    if config.init is not None:
        _start_from(unet, read_unet(config.init).state, config.init)
        return unet
    # With no output the result is c_skip times the input: in pixel space, training starts exactly at bicubic.
    for parameter in unet.conv_out.parameters():
        nn.init.zeros_(parameter)
    return unet


def _start_from(network: UNet | VAE, state: dict[str, Tensor], path: str) -> None:
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != shapes:
        raise TrainingError(f"expected weights of the config's network to start from, got another shape in {path}")
    network.load_state_dict({name: value.float() for name, value in state.items()})


def _latent_channels(config: TrainConfig) -> int:
    if isinstance(config.network, UNetArch):
        return config.network.in_channels if config.run.stage == "latent" else 0
    return config.network.latent_channels


def _frozen_vae(config: TrainConfig, device: torch.device) -> tuple[VAE | None, float]:
    if config.vae is None:
        return None, 1.0
    file = read_vae(config.vae)
    vae = VAE(file.spec.arch)
    vae.load_state_dict({name: value.float() for name, value in file.state.items()})
    return _placed(vae.requires_grad_(False).eval(), device), file.spec.latent_scaling


def _placed(network: Network, device: torch.device) -> Network:
    """Move in place; convolutions are faster in this layout: half as fast again on a CPU in fp32."""
    network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network
