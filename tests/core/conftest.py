"""Tiny networks for the tests of the stages, and a recorder for those of graphs."""

import pytest
from networks import tiny_unet, tiny_vae
from recorder import Passes, Recorder

from gendr_core.graphs import GraphCache
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


@pytest.fixture
def recorder() -> Recorder:
    """What records on the processor."""
    return Recorder()


@pytest.fixture
def passes(recorder: Recorder) -> Passes:
    """Passes through a cache of that recorder."""
    return Passes(GraphCache(recorder))
