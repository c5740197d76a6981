import gc
import weakref
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from weights import LATENT, LATENT_4PX, PIXEL, TINY_VAE, VAE_4PX, write_small_cells

pytestmark = pytest.mark.host


def image_of(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(7))


def core_module(hosted: ModuleType, name: str) -> ModuleType:
    """Return a module of the core as the pack has it, whose classes are not those of the installed one."""
    return import_module(f"{hosted.__name__.partition('.')[0]}.gendr_core.{name}")


def banded(hosted: ModuleType, unet: Any, latent: torch.Tensor) -> torch.Tensor:
    """Return what the network makes of ``latent`` in bands of one row, which ask the host for every layer's weights."""
    run = hosted.BandedFrame(core_module(hosted, "plan").Bands(band_bytes=1), unet.network.operations)
    return unet.network(latent, 354, unet.positive[None], run=run)


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


@pytest.mark.parametrize("band_bytes", [None, 2**13])
def test_core_encodes_and_decodes_as_the_whole_frame_would(
    hosted: ModuleType, band_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nodes import VAEDecode, VAEEncode  # pyright: ignore[reportAttributeAccessIssue] - the host's nodes.py

    if band_bytes is not None:
        monkeypatch.setitem(core_module(hosted, "plan").BAND_BYTES, "cpu", (band_bytes, band_bytes))
    vae = hosted.load_hosted_vae(TINY_VAE)
    whole = core_module(hosted, "nets").WholeFrame()

    image = image_of(64, 72, batch=2)
    (latent,) = VAEEncode().encode(vae, image)
    expected = vae.gendr.network.encode(image.permute(0, 3, 1, 2) * 2 - 1, run=whole)
    # Core hands over another memory order, for which convolutions round differently.
    torch.testing.assert_close(latent["samples"], expected, rtol=1e-5, atol=1e-4)
    (decoded,) = VAEDecode().decode(vae, latent)
    again = vae.gendr.network.decode(latent["samples"], run=whole)
    torch.testing.assert_close(decoded, ((again + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1), rtol=0, atol=1e-4)


def test_cores_vae_nodes_free_what_the_planner_says(hosted: ModuleType, vae: Any) -> None:
    planner, geometry, config = (core_module(hosted, name) for name in ("planner", "geometry", "config"))
    model = hosted.load_hosted_unet(LATENT)
    task = planner.Task(source=geometry.Extent(192, 320))
    options = config.RestoreOptions(scale=1.0)
    plans = planner.Planner(model.unet, vae.gendr, task, options, host=hosted.host_for(model, vae))
    # The planner adds a margin and, while it decodes, the reference for colours.
    reference_bytes = 3 * 4 * 192 * 320
    for figure, planned in (
        (vae.memory_used_encode((2, 3, 192, 320), torch.float32), plans.encode.plan.activation_bytes),
        (vae.memory_used_encode((1, 3, 197, 323), torch.float32), plans.encode.plan.activation_bytes),
        (vae.memory_used_decode((2, 16, 24, 40), torch.float32), plans.decode.plan.activation_bytes - reference_bytes),
    ):
        assert planned - 2**19 <= figure <= planned


def test_core_takes_a_vae_of_4_pixels_per_cell_for_what_it_is(hosted: ModuleType, base: Path) -> None:
    from nodes import VAEDecode, VAEDecodeTiled, VAEEncode, VAEEncodeTiled  # pyright: ignore[reportAttributeAccessIssue]

    write_small_cells(base / "models")
    vae, model = hosted.load_hosted_vae(VAE_4PX), hosted.load_hosted_unet(LATENT_4PX)
    assert (vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio) == (4, 4, 4)
    (latent,) = VAEEncode().encode(vae, image_of(66, 75))
    assert latent["samples"].shape == (1, 4, 16, 18)
    (decoded,) = VAEDecode().decode(vae, latent)
    assert decoded.shape == (1, 64, 72, 3)
    (latent,) = VAEEncodeTiled().encode(vae, image_of(192, 128), 128, 32)
    assert latent["samples"].shape == (1, 4, 48, 32)
    (decoded,) = VAEDecodeTiled().decode(vae, latent, 128, 32)
    assert decoded.shape == (1, 192, 128, 3)
    planner, geometry, config = (core_module(hosted, name) for name in ("planner", "geometry", "config"))
    task, options = planner.Task(source=geometry.Extent(192, 320)), config.RestoreOptions(scale=1.0)
    plans = planner.Planner(model.unet, vae.gendr, task, options, host=hosted.host_for(model, vae))
    for figure, planned in (
        (vae.memory_used_encode((1, 3, 195, 323), torch.float32), plans.encode.plan.activation_bytes),
        (vae.memory_used_decode((1, 4, 48, 80), torch.float32), plans.decode.plan.activation_bytes - 3 * 4 * 192 * 320),
    ):
        assert planned - 2**19 <= figure <= planned


def test_cores_vae_nodes_can_be_cancelled_within_a_frame(vae: Any) -> None:
    import comfy.model_management

    from nodes import VAEDecode  # pyright: ignore[reportAttributeAccessIssue] - as above

    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        VAEDecode().decode(vae, {"samples": torch.zeros(1, 16, 8, 8)})


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
    torch.testing.assert_close(banded(hosted, model.unet, latent), expected, rtol=0, atol=1e-4)


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
    torch.testing.assert_close(banded(hosted, half.unet, latent), expected, rtol=0, atol=2e-2)


def test_weights_that_the_host_lends_are_copied_and_given_back(
    hosted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ops

    model = hosted.load_hosted_unet(LATENT)
    latent, context = torch.randn(1, 16, 8, 8), model.unet.positive[None]
    expected = model.unet.network(latent, 354, context)
    # As hosts with dynamic VRAM do where weights do not fit: those of all layers go through the same buffers.
    buffers, leases = (torch.empty(2**18), torch.empty(2**12)), []

    def lend(layer: Any, _like: torch.Tensor, offloadable: bool = False) -> tuple[Any, ...]:
        own = zip(buffers, (layer.weight, layer.bias), strict=True)
        lent = [None if x is None else to[: x.numel()].copy_(x.flatten()).view(x.shape) for to, x in own]
        leases.extend([layer] * offloadable)
        return (*lent, layer) if offloadable else tuple(lent)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lend)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *lent: leases.remove(lent[-1]), raising=False)
    for layer in model.unet.network.modules():
        layer.comfy_cast_weights = True
    torch.testing.assert_close(banded(hosted, model.unet, latent), expected, rtol=0, atol=1e-4)
    assert not leases


def test_room_is_what_unloading_everything_else_would_leave(
    hosted: ModuleType, vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    gpu, network, mib = torch.device("cuda"), vae.gendr.network, 2**20
    model = hosted.load_hosted_unet(PIXEL)
    residency, unet = hosted.host_for(model, vae).residency, model.unet.network
    assert residency.resident_bytes(network, [unet]) == vae.patcher.model_size() + model.patcher.model_size()
    assert residency.room_bytes(network) is None
    vae.patcher.load_device = gpu
    other = SimpleNamespace(device=gpu, model=object(), model_loaded_memory=lambda: 3000 * mib)
    elsewhere = SimpleNamespace(device=torch.device("cpu"), model=object(), model_loaded_memory=lambda: 9000 * mib)
    monkeypatch.setattr(management, "current_loaded_models", [other, elsewhere])
    monkeypatch.setattr(management, "get_free_memory", lambda _device: 1000 * mib)
    assert residency.device_of(network) == gpu
    assert residency.resident_bytes(network, [unet]) == vae.patcher.model_size()
    reserve = management.extra_reserved_memory()
    assert residency.room_bytes(network) == 4000 * mib - vae.patcher.model_size() - reserve
    # Weights that do not fit beside what the host keeps for activations are streamed.
    monkeypatch.setattr(vae.patcher, "model_size", lambda: 3900 * mib)
    assert residency.room_bytes(network) == int(management.minimum_inference_memory()) - reserve


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
