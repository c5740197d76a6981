"""Tiny networks as fixtures, shared by the tests of the stages."""

import pytest
from networks import tiny_unet, tiny_vae

from gendr_core.model import GenDRUNet, GenDRVAE


@pytest.fixture
def latent_unet() -> GenDRUNet:
    """A model on 4-channel VAE latents with both prompts."""
    return tiny_unet(negative=True)


@pytest.fixture
def pixel_unet() -> GenDRUNet:
    """A model on unshuffled pixels, with a skip."""
    return tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8", c_skip=1.0, c_out=0.05)


@pytest.fixture
def vae() -> GenDRVAE:
    """A VAE with 4 latent channels and 8 pixels per cell."""
    return tiny_vae()
