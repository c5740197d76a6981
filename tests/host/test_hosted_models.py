import gc
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from weights import LATENT, PIXEL, TINY_VAE

pytestmark = pytest.mark.host


def image_of(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(7))


@pytest.fixture(autouse=True)
def inference_mode() -> Iterator[None]:
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture
def vae(hosted: ModuleType) -> Any:
    return hosted.load_hosted_vae(TINY_VAE)


def test_the_vae_is_the_hosts_own_class_around_our_network(vae: Any) -> None:
    import comfy.model_patcher
    import comfy.sd

    assert type(vae) is comfy.sd.VAE
    assert isinstance(vae.patcher, comfy.model_patcher.ModelPatcher)
    assert vae.first_stage_model is vae.gendr.network is vae.patcher.model
    assert (vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio, vae.vae_dtype) == (16, 8, 8, torch.float32)
    assert vae.patcher.model_size() == sum(p.numel() * 4 for p in vae.gendr.network.parameters())


def test_core_encodes_and_decodes_as_our_stages_do(vae: Any) -> None:
    from nodes import VAEDecode, VAEEncode  # pyright: ignore[reportAttributeAccessIssue] - the host's nodes.py

    image = image_of(64, 72, batch=2)
    (latent,) = VAEEncode().encode(vae, image)
    expected = vae.gendr.network.encode(image.permute(0, 3, 1, 2) * 2 - 1)
    # Core hands over another memory order, for which convolutions round differently.
    torch.testing.assert_close(latent["samples"], expected, rtol=1e-5, atol=1e-5)
    (decoded,) = VAEDecode().decode(vae, latent)
    again = vae.gendr.network.decode(latent["samples"])
    torch.testing.assert_close(decoded, ((again + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1), rtol=0, atol=1e-6)


def test_core_tiled_nodes_take_it(vae: Any) -> None:
    from nodes import VAEDecodeTiled, VAEEncodeTiled  # pyright: ignore[reportAttributeAccessIssue] - as above

    (latent,) = VAEEncodeTiled().encode(vae, image_of(192, 128), 128, 32)
    assert latent["samples"].shape == (1, 16, 24, 16)
    (decoded,) = VAEDecodeTiled().decode(vae, latent, 128, 32)
    assert decoded.shape == (1, 192, 128, 3)


def test_partly_loaded_networks_give_the_same_result(hosted: ModuleType) -> None:
    model = hosted.load_hosted_unet(LATENT)
    latent, context = torch.randn(1, 16, 8, 8), model.unet.positive[None]
    expected = model.unet.network(latent, 354, context)
    model.patcher.partially_load(torch.device("cpu"), extra_memory=20_000)
    assert model.unet.network.model_lowvram
    assert torch.equal(model.unet.network(latent, 354, context), expected)


def test_weights_that_the_device_cannot_compute_in_are_cast_as_they_are_used(
    hosted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    exact = hosted.load_hosted_unet(LATENT)
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda *_: torch.float16)
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_: torch.float32)
    half = hosted.load_hosted_unet(LATENT)
    assert {p.dtype for p in half.unet.network.parameters()} == {torch.float16}
    latent, context = torch.randn(1, 16, 8, 8), exact.unet.positive[None]
    expected = exact.unet.network(latent, 354, context)
    torch.testing.assert_close(half.unet.network(latent, 354, context), expected, rtol=0, atol=2e-2)


def test_nothing_keeps_a_dropped_model(hosted: ModuleType, vae: Any) -> None:
    import comfy.model_management

    model = hosted.load_hosted_unet(PIXEL)
    hosted.host_for(model, vae).residency.acquire(model.unet.network, 0)
    assert model.patcher in [entry.model for entry in comfy.model_management.current_loaded_models]
    network = weakref.ref(model.unet.network)
    del model
    gc.collect()
    assert network() is None
    assert all(entry.real_model() is not None for entry in comfy.model_management.current_loaded_models)
