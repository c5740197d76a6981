import pytest
import torch

from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.errors import OptionError, ShapeError
from gendr_core.model import GenDRVAE
from gendr_core.nets.kernels import in_order

PIXELS = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_pixel_front_and_back_are_inverse() -> None:
    latent = encode(PIXELS, "pixel_unshuffle8")
    assert latent.shape == (2, 192, 8, 16)
    assert torch.equal(decode(latent, "pixel_shuffle8"), PIXELS)


def test_vae_front_is_the_posterior_mode(vae: GenDRVAE) -> None:
    latent = encode(PIXELS, "vae16", vae)
    assert latent.shape == (2, 4, 8, 16)
    assert torch.equal(latent, vae.network.moments(in_order(PIXELS))[0])
    assert torch.equal(encode(PIXELS, "vae16", vae), latent)


def test_vae_back_gives_pixels(vae: GenDRVAE) -> None:
    latent = encode(PIXELS, "vae16", vae)
    assert decode(latent, "vae16", vae).shape == PIXELS.shape


def test_missing_vae() -> None:
    with pytest.raises(OptionError, match="expected a VAE, got none"):
        encode(PIXELS, "vae16")
    with pytest.raises(OptionError, match="expected a VAE, got none"):
        decode(torch.zeros(1, 4, 8, 8), "vae16")


def test_latents_of_another_model(vae: GenDRVAE) -> None:
    with pytest.raises(ShapeError, match="192 channels, got 4"):
        decode(torch.zeros(1, 4, 8, 8), "pixel_shuffle8")
    with pytest.raises(ShapeError, match="4 channels, got 16"):
        decode(torch.zeros(1, 16, 8, 8), "vae16", vae)
