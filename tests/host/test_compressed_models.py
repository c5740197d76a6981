"""Weights in 8 bits on ComfyUI's layers: the core's own result, however much of them the host has loaded."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from comfy_server import Server, node
from PIL import Image
from weights import LATENT, PIXEL, TINY_VAE

from gendr_core.config import RestoreOptions
from gendr_core.image_io import read_image
from gendr_core.model import load_unet, load_vae
from gendr_core.pipeline import restore
from gendr_core.spec import UNET_FOLDS, VAE_FOLDS

pytestmark = pytest.mark.host

MINI, MINI_VAE = "gendr-mini-unet16.safetensors", "gendr-mini-vae16.safetensors"
DTYPES = {
    "fp32": (torch.float32, None, 1e-5),
    "bf16": (torch.bfloat16, None, 2e-2),
    "fp16": (torch.float16, None, 2e-3),
    "fp16, computed in fp32": (torch.float16, torch.float32, 1e-5),
}
"""What the host stores, what it computes in if that is another dtype, and how far rounding may lead off."""


@pytest.fixture(autouse=True)
def inference_mode() -> Iterator[None]:
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


def core_module(hosted: ModuleType, name: str) -> ModuleType:
    """Return a module of the core as the pack has it, whose classes are not those of the installed one."""
    return import_module(f"{hosted.__name__.partition('.')[0]}.gendr_core.{name}")


def results(hosted: ModuleType, unet: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the network makes of a latent, whole and in bands of one row, which ask for weights by themselves."""
    latent = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5)).to(unet.dtype)
    context = unet.positive[None].to(unet.dtype)
    bands = hosted.BandedFrame(core_module(hosted, "plan").Bands(band_bytes=1), unet.network.operations)
    return unet.network(latent, 354, context), unet.network(latent, 354, context, run=bands)


def in_8_bits(network: torch.nn.Module) -> list[Any]:
    return [layer for layer in network.modules() if hasattr(layer, "weight_scale")]


@pytest.mark.parametrize("name", DTYPES)
def test_a_unet_in_8_bits_computes_what_the_core_does(
    hosted: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    stored, cast, error = DTYPES[name]
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda *_: stored)
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_: cast)
    ours = hosted.load_hosted_unet(LATENT, "fp8").unet
    folds = (*core_module(hosted, "spec").UNET_FOLDS, "fp8")
    path = hosted.weight_path("diffusion_models", LATENT)
    theirs = core_module(hosted, "model").load_unet(path, dtype=cast or stored, folds=folds)
    assert (ours.folds, ours.dtype) == (theirs.folds, theirs.dtype)
    for key, tensor in theirs.network.state_dict().items():
        kept = ours.network.state_dict()[key]
        assert kept.dtype == (tensor.dtype if "scale" in key or tensor.dtype == torch.float8_e4m3fn else stored)
        # Biases, norms and both ends are in the dtype that the host stores.
        assert torch.equal(kept.float(), tensor.to(kept.dtype).float()), key
    theirs.network.load_state_dict(ours.network.state_dict())
    for result in results(hosted, ours):
        expected, _ = results(hosted, theirs)
        assert (result - expected).abs().max() <= error * expected.abs().max()


def test_a_vae_in_8_bits_codes_what_the_core_does(hosted: ModuleType) -> None:
    ours = hosted.load_hosted_vae(TINY_VAE, "fp8")
    model, spec = core_module(hosted, "model"), core_module(hosted, "spec")
    theirs = model.load_vae(hosted.weight_path("vae", TINY_VAE), folds=(*spec.VAE_FOLDS, "fp8"))
    image = torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(7))
    latent = ours.encode(image)
    expected = theirs.network.encode(image.permute(0, 3, 1, 2) * 2 - 1)
    torch.testing.assert_close(latent, expected, rtol=1e-5, atol=1e-4)
    decoded = ((theirs.network.decode(latent) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours.decode(latent), decoded, rtol=0, atol=1e-4)


def test_the_host_counts_half_of_16_bits(hosted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    for question in ("unet_dtype", "vae_dtype"):
        monkeypatch.setattr(comfy.model_management, question, lambda *_: torch.bfloat16)
    for load, name, owner in (
        (hosted.load_hosted_unet, MINI, lambda made: made.unet.network),
        (hosted.load_hosted_vae, MINI_VAE, lambda made: made.gendr.network),
    ):
        small, plain = load(name, "fp8"), load(name)
        assert small.patcher.model_size() == sum(p.nbytes for p in owner(small).parameters())
        # Four phases of the plain one's enlarging layers have more weights than the one that they replace.
        phases = sum(p.nbytes for key, p in owner(plain).named_parameters() if "phases" in key)
        unfolded = plain.patcher.model_size() - phases * 7 / 16
        assert small.patcher.model_size() == pytest.approx(0.5 * unfolded, rel=0.1)


def test_partly_loaded_networks_in_8_bits_give_the_same_result(hosted: ModuleType) -> None:
    import comfy.ops

    model = hosted.load_hosted_unet(LATENT, "fp8")
    assert all(isinstance(layer, comfy.ops.CastWeightBiasOp) for layer in in_8_bits(model.unet.network))
    expected = results(hosted, model.unet)
    model.patcher.partially_load(torch.device("cpu"), extra_memory=model.patcher.model_size() // 2)
    assert model.unet.network.model_lowvram
    for result, whole in zip(results(hosted, model.unet), expected, strict=True):
        assert torch.equal(result, whole)
    model.patcher.partially_load(torch.device("cpu"), extra_memory=2 * model.patcher.model_size())
    assert not model.unet.network.model_lowvram
    model.patcher.detach()
    for result, whole in zip(results(hosted, model.unet), expected, strict=True):
        assert torch.equal(result, whole)


def test_8_bits_that_the_host_lends_are_given_back(hosted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.ops

    model = hosted.load_hosted_unet(LATENT, "fp8")
    expected, _ = results(hosted, model.unet)
    # As hosts with dynamic VRAM do where weights do not fit: those of all layers go through the same buffers.
    buffers, leases = torch.empty(2**20, dtype=torch.uint8), []

    def lend(
        layer: Any, like: torch.Tensor, dtype: Any = None, bias_dtype: Any = None, offloadable: bool = False
    ) -> tuple[Any, ...]:
        assert layer.weight.dtype == (dtype or like.dtype)
        size = layer.weight.nbytes
        weight = buffers[:size].view(layer.weight.dtype).view(layer.weight.shape).copy_(layer.weight)
        bias = layer.bias
        if bias is not None:
            bias = buffers[2**19 :][: bias.nbytes].view(bias_dtype or like.dtype).copy_(bias)
        leases.extend([layer] * offloadable)
        return (weight, bias, layer) if offloadable else (weight, bias)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lend)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *lent: leases.remove(lent[-1]), raising=False)
    for layer in in_8_bits(model.unet.network):
        layer.comfy_cast_weights = True
    _, banded = results(hosted, model.unet)
    torch.testing.assert_close(banded, expected, rtol=0, atol=1e-4)
    assert not leases


def test_a_device_without_float8_is_named(hosted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("mps"))
    monkeypatch.setattr(comfy.model_management, "vae_device", lambda: torch.device("mps"))
    monkeypatch.setattr(comfy.model_management, "vae_dtype", lambda *_: torch.float32)
    for load, name in ((hosted.load_hosted_unet, PIXEL), (hosted.load_hosted_vae, TINY_VAE)):
        with pytest.raises(
            ValueError, match="expected a device with float8 for weights in 8 bits, got mps: choose dty"
        ):
            load(name, "fp8")


def test_a_server_restores_in_8_bits_again_after_unloading_and_plans_less(server: Server) -> None:
    path = server.base / "input" / "in_8_bits.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (31, 45, 3), dtype=np.uint8)).save(path)
    widgets: dict[str, Any] = {"size": "by factor", "edge": 64, "color": "wavelet", "detail": 1.0, "feather": 8}
    widgets |= {"image": ["image", 0], "model": ["unet", 0], "vae": ["vae", 0], "guidance": 0.0}
    graph = {
        "image": node("LoadImage", image=path.name),
        "unet": node("GenDR_LoadUNet", unet=MINI, weights="fp8"),
        "vae": node("GenDR_LoadVAE16", vae_file=MINI_VAE, weights="fp8"),
        "restore": node("GenDR_Restore", factor=2.0, **widgets),
        "save": node("ProbeSave", image=["restore", 0], name="in_8_bits"),
    }
    weights = Path(__file__).parents[2] / "gendr_core" / "weights"
    unet = load_unet(weights / MINI, folds=(*UNET_FOLDS, "fp8"))
    vae = load_vae(weights / MINI_VAE, folds=(*VAE_FOLDS, "fp8"))
    for factor in (2.0, 3.0):
        graph["restore"]["inputs"]["factor"] = factor
        server.run(graph)
        expected = restore(read_image(path).image, unet, vae, RestoreOptions(scale=factor)).numpy()
        np.testing.assert_array_equal(server.floats("in_8_bits"), expected)
        server.post("/free", {"unload_models": True})
    peaks = []
    for kind in ("fp8", "dtype"):
        graph["unet"]["inputs"]["weights"] = graph["vae"]["inputs"]["weights"] = kind
        plan = {name: graph[name] for name in ("image", "unet", "vae")}
        plan["plan"] = node("GenDR_Plan", factor=2.0, **widgets)
        plan["peak"] = node("PreviewAny", source=["plan", 1])
        peaks.append(float(server.run(plan)["peak"]["text"][0]))
    assert peaks[0] < 0.75 * peaks[1]
