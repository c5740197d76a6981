"""Small weights and specs to write to files and read back."""

from functools import cache
from pathlib import Path

import torch
from networks import seeded
from torch import Tensor

from gendr_core.nets import VAE, UNet
from gendr_core.spec import ModelSpec, UNetArch, VAEArch, VAESpec

TOKENS, DIM = 3, 8
TINY_UNET = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(8, 16),
    attention_levels=(True, False),
    layers_per_block=1,
    head_dim=8,
    cross_attention_dim=DIM,
    norm_groups=4,
)
PLAIN_UNET = UNetArch(
    block_out_channels=(64, 64), attention_levels=(True, False), layers_per_block=1, cross_attention_dim=DIM
)
"""What a file without metadata can be: heads of 64 channels, 32 groups."""
TINY_VAE = VAEArch(latent_channels=4, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_groups=4)
PLAIN_VAE = VAEArch(latent_channels=4, block_out_channels=(32, 32, 64, 64), layers_per_block=1)
UNET_SPEC = ModelSpec(arch=TINY_UNET, timestep=17, c_skip=0.1, c_out=-1 / 3, title="tiny", license="MIT", scale=2.0)
VAE_SPEC = VAESpec(arch=TINY_VAE, latent_scaling=0.7, source="a test")


def unet_state(arch: UNetArch = TINY_UNET) -> dict[str, Tensor]:
    """Return seeded weights, the same tensors every time."""
    return dict(_weights(UNet, arch))


def vae_state(arch: VAEArch = TINY_VAE) -> dict[str, Tensor]:
    """Return seeded weights, the same tensors every time."""
    return dict(_weights(VAE, arch))


def prompt(seed: int = 3) -> Tensor:
    """Return a random embedding [TOKENS, DIM]."""
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(seed))


@cache
def _weights(network: type[UNet] | type[VAE], arch: UNetArch | VAEArch) -> dict[str, Tensor]:
    return dict(seeded(network(arch), 1).state_dict())  # type: ignore[arg-type]


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check names, dtypes and bits."""
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


def assert_unchanged_folder(path: Path, content: bytes | None) -> None:
    """Check that a failed write left the folder as it was."""
    assert [file.name for file in path.parent.iterdir()] == ([] if content is None else [path.name])
    if content is not None:
        assert path.read_bytes() == content
