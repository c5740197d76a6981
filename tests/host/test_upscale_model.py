"""GenDR as Upscale Model in core's own upscaler, as it is called by hosts before 0.29 and from then on."""

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from comfy_server import Server, node
from PIL import Image
from weights import LATENT, PIXEL, TINY_VAE

pytestmark = pytest.mark.host

WIDGETS: dict[str, Any] = {"color": "wavelet", "guidance": 0.0}


def picture(server: Server, width: int, height: int) -> str:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(server.base / "input" / f"upscale{width}x{height}.png")
    return f"upscale{width}x{height}.png"


def interop_of(hosted: ModuleType) -> ModuleType:
    """Return the pack's nodes/interop.py on the same host."""
    return import_module(hosted.__name__.replace(".host", ".interop"))


@pytest.fixture
def upscaler(hosted: ModuleType) -> Any:
    return interop_of(hosted).AsUpscaleModel.execute(hosted.load_hosted_unet(PIXEL), **WIDGETS).args[0]


@pytest.mark.parametrize("unet", [PIXEL, LATENT])
def test_a_picture_of_one_tile_is_what_restore_gives(server: Server, unet: str) -> None:
    graph = {
        "image": node("LoadImage", image=picture(server, 45, 31)),
        "unet": node("GenDR_LoadUNet", unet=unet),
        "model": node("GenDR_UpscaleModel", model=["unet", 0], **WIDGETS),
        "upscale": node("ImageUpscaleWithModel", upscale_model=["model", 0], image=["image", 0]),
        "upscaled": node("ProbeSave", image=["upscale", 0], name="upscaled"),
        "restore": node(
            "GenDR_Restore",
            image=["image", 0],
            model=["unet", 0],
            size="by factor",
            factor=4.0,
            edge=64,
            detail=1.0,
            feather=8,
            **WIDGETS,
        ),
        "restored": node("ProbeSave", image=["restore", 0], name="restored_for_upscale"),
    }
    if unet == LATENT:
        graph["vae"] = node("GenDR_LoadVAE16", vae_file=TINY_VAE)
        for name in ("model", "restore"):
            graph[name]["inputs"]["vae"] = ["vae", 0]
    server.run(graph)
    upscaled = server.floats("upscaled")
    assert upscaled.shape == (1, 124, 180, 3)
    np.testing.assert_allclose(upscaled, server.floats("restored_for_upscale"), rtol=0, atol=1e-6)


def test_core_joins_tiles_of_a_larger_picture(server: Server) -> None:
    graph = {
        "image": node("LoadImage", image=picture(server, 560, 40)),
        "unet": node("GenDR_LoadUNet", unet=PIXEL),
        "model": node("GenDR_UpscaleModel", model=["unet", 0], **WIDGETS),
        "upscale": node("ImageUpscaleWithModel", upscale_model=["model", 0], image=["image", 0]),
        "upscaled": node("ProbeSave", image=["upscale", 0], name="tiled"),
    }
    server.run(graph)
    tiled = server.floats("tiled")
    assert tiled.shape == (1, 160, 2240, 3)
    assert 0.0 <= tiled.min() < tiled.max() <= 1.0


def test_hosts_from_0_29_on_load_the_patcher_themselves(upscaler: Any) -> None:
    import comfy.model_management as management
    import comfy.utils

    image = torch.rand(1, 3, 70, 40, generator=torch.Generator().manual_seed(7)).half()
    with torch.inference_mode():
        management.load_models_gpu([upscaler.patcher], memory_required=2**20, force_full_load=True)
        upscaler.to(upscaler.patcher.load_device)
        tiled = comfy.utils.tiled_scale(
            image,
            lambda tile: upscaler(tile.float()),
            tile_x=64,
            tile_y=64,
            overlap=32,
            upscale_amount=upscaler.scale,
            out_channels=upscaler.output_channels,
            output_device=management.intermediate_device(),
        )
    assert tiled.shape == (1, 3, 280, 160)
    assert upscaler.patcher in [entry.model for entry in management.current_loaded_models]


def test_core_answers_a_lack_of_memory_with_smaller_tiles(
    hosted: ModuleType, upscaler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

    interop = interop_of(hosted)
    edges: list[int] = []

    def restore_small(image: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        edges.append(max(image.shape[1:3]))
        if edges[-1] > 256:
            raise interop.OutOfMemoryError("no room")
        return image.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)

    monkeypatch.setattr(interop, "restore", restore_small)
    with torch.inference_mode():
        result = ImageUpscaleWithModel.execute(upscaler, torch.full((1, 300, 280, 3), 0.5)).args[0]
        assert edges[0] == 300
        assert set(edges[1:]) <= set(range(257))
        torch.testing.assert_close(result, torch.full((1, 1200, 1120, 3), 0.5), rtol=0, atol=1e-5)
        monkeypatch.setattr(interop, "restore", lambda *_, **__: restore_small(torch.zeros(1, 300, 1, 3)))
        with pytest.raises(torch.cuda.OutOfMemoryError, match="no room"):
            ImageUpscaleWithModel.execute(upscaler, torch.zeros(1, 8, 8, 3))
