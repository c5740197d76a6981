from typing import Any

import comfy_stub
import pytest
import torch
from pack import Pack
from weights import LATENT, PIXEL

WIDGETS = {"color": "wavelet", "guidance": 0.0}


def run(pack: Pack, node_id: str, **inputs: Any) -> Any:
    with torch.inference_mode():
        return pack.nodes[node_id].execute(**inputs).args[0]


def planes(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model(pack: Pack) -> Any:
    return run(pack, "GenDR_LoadUNet", unet=PIXEL)


@pytest.fixture
def upscaler(pack: Pack, model: Any) -> Any:
    return run(pack, "GenDR_UpscaleModel", model=model, **WIDGETS)


def test_it_looks_like_an_upscale_model_to_older_and_newer_hosts(upscaler: Any, model: Any) -> None:
    assert (upscaler.scale, type(upscaler.scale)) == (4, int)
    assert (upscaler.input_channels, upscaler.output_channels) == (3, 3)
    assert upscaler.model is model.patcher.model
    assert upscaler.patcher is model.patcher
    assert upscaler.to(torch.device("meta")) is upscaler
    assert {parameter.device.type for parameter in upscaler.model.parameters()} == {"cpu"}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 14)])
def test_it_gives_what_restore_gives(pack: Pack, upscaler: Any, model: Any, height: int, width: int) -> None:
    pixels = planes(height, width)
    image = pixels.permute(0, 2, 3, 1)
    expected = run(
        pack,
        "GenDR_Restore",
        image=image,
        model=model,
        size="by factor",
        factor=4.0,
        edge=1,
        detail=1.0,
        feather=8,
        **WIDGETS,
    )
    restored = upscaler(pixels)
    assert torch.equal(restored, expected.permute(0, 3, 1, 2))
    assert torch.equal(restored, upscaler(pixels))
    assert (restored.dtype, float(restored.min()) >= 0.0, float(restored.max()) <= 1.0) == (torch.float32, True, True)


def test_half_precision_and_values_out_of_range_are_taken(upscaler: Any) -> None:
    pixels = planes(4, 5) * 3.0 - 1.0
    clamped = upscaler(pixels.clamp(0.0, 1.0))
    assert torch.equal(upscaler(pixels), clamped)
    torch.testing.assert_close(upscaler(pixels.half()), clamped, rtol=0, atol=0.01)


def test_alpha_does_not_come_back(upscaler: Any) -> None:
    assert upscaler(planes(4, 5, channels=4)).shape == (1, 3, 16, 20)


def test_only_the_asking_node_shows_progress_and_cancel_passes_through(pack: Pack, upscaler: Any) -> None:
    upscaler(planes(4, 4))
    assert pack.record.progress == pack.record.pictures == []
    pack.record.clear()
    pack.record.cancel_at_check = 2
    with pytest.raises(comfy_stub.InterruptedByUserError):
        upscaler(planes(4, 4))


def test_a_tile_that_does_not_fit_is_the_error_that_hosts_answer_with_smaller_tiles(pack: Pack, model: Any) -> None:
    upscaler = run(pack, "GenDR_UpscaleModel", model=model, **WIDGETS, budget_gib=0.0001)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="expected room for at least"):
        upscaler(planes(4, 4))


def test_what_does_not_fit_together_is_named_before_any_tile(pack: Pack, model: Any) -> None:
    latent = run(pack, "GenDR_LoadUNet", unet=LATENT)
    with pytest.raises(ValueError, match="expected a VAE, got none"):
        run(pack, "GenDR_UpscaleModel", model=latent, **WIDGETS)
    with pytest.raises(ValueError, match=r"negative prompt for guidance 2\.0"):
        run(pack, "GenDR_UpscaleModel", model=model, color="none", guidance=2.0)
    odd = pack.host.replace(model.unet, spec=pack.host.replace(model.unet.spec, scale=2.5))
    with pytest.raises(ValueError, match=r"a whole factor, .* got one for 2\.5: use GenDR Restore"):
        run(pack, "GenDR_UpscaleModel", model=pack.host.replace(model, unet=odd), **WIDGETS)
