"""Baked files in a real ComfyUI: built of the host's layers, they compute what the plain files do."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from weights import LATENT, TINY_VAE

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def inference_mode() -> Iterator[None]:
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


def bake(hosted: ModuleType, kind: str, folder: str, name: str, storage: str) -> str:
    """Write a baked file beside the plain one and return its name."""
    core = import_module(f"{hosted.__name__.partition('.')[0]}.gendr_core.bake")
    plain = Path(hosted.weight_path(folder, name))
    getattr(core, f"bake_{kind}")(plain, plain.with_name(f"baked-{storage}-{name}"), storage)
    return f"baked-{storage}-{name}"


@pytest.mark.parametrize(("storage", "error"), [("fp32", 1e-6), ("fp8", 0.2)])
def test_a_baked_unet_runs_on_the_hosts_layers(hosted: ModuleType, storage: str, error: float) -> None:
    plain = hosted.load_hosted_unet(LATENT).unet
    model = hosted.load_hosted_unet(bake(hosted, "unet", "diffusion_models", LATENT, storage))
    ours, latent = model.unet, torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5))
    assert ours.folds == plain.folds
    expected = plain.network(latent, 354, plain.positive[None])
    result = ours.network(latent, 354, ours.positive[None])
    assert (result - expected).abs().max() <= error * expected.abs().max()
    assert model.patcher.model is ours.network


def test_a_baked_vae_is_the_hosts_own_class_around_our_network(hosted: ModuleType) -> None:
    plain = hosted.load_hosted_vae(TINY_VAE)
    vae = hosted.load_hosted_vae(bake(hosted, "vae", "vae", TINY_VAE, "fp32"))
    assert type(vae) is type(plain)
    image = torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(7))
    latent = vae.encode(image)
    torch.testing.assert_close(latent, plain.encode(image), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.decode(latent), plain.decode(latent), rtol=1e-5, atol=1e-5)
