"""Weights in 8 bits by the loaders' widget: the core's own, and what the other nodes make of them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pack import Pack
from weights import LATENT, PIXEL

IN_8_BITS = torch.float8_e4m3fn
SAMPLES = {"samples": torch.rand(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))}
PLANNED = {"size": "by factor", "factor": 2.0, "edge": 1, "color": "none", "detail": 1.0, "feather": 8, "guidance": 0.0}


def run(pack: Pack, node_id: str, **inputs: Any) -> Any:
    with torch.inference_mode():
        return pack.nodes[node_id].execute(**inputs).args[0]


def test_a_loader_keeps_weights_as_the_command_line_does(pack: Pack) -> None:
    model = run(pack, "GenDR_LoadUNet", unet=LATENT, weights="fp8")
    path = Path(pack.host.weight_path("diffusion_models", LATENT))
    core = pack.host.load_unet(path, folds=(*pack.host.UNET_FOLDS, "fp8"))
    ours, theirs = model.unet.network.state_dict(), core.network.state_dict()
    assert model.unet.folds == core.folds
    assert any(tensor.dtype == IN_8_BITS for tensor in ours.values())
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == tensor.dtype for name, tensor in theirs.items())
    assert all(torch.equal(ours[name].float(), tensor.float()) for name, tensor in theirs.items())
    stepped = run(pack, "GenDR_OneStep", latent=SAMPLES, model=model, guidance=1.5)["samples"]
    assert pack.record.weights_asked > 0
    hosted = pack.host.HostedUNet(unet=core, patcher=pack.host.load_hosted_unet(LATENT).patcher)
    hosted.patcher.model = core.network
    assert torch.equal(stepped, run(pack, "GenDR_OneStep", latent=SAMPLES, model=hosted, guidance=1.5)["samples"])


def test_nothing_is_in_8_bits_unless_asked(pack: Pack) -> None:
    model, chosen = (run(pack, "GenDR_LoadUNet", unet=LATENT, **widget) for widget in ({}, {"weights": "dtype"}))
    assert model.unet.folds == chosen.unet.folds
    assert "fp8" not in model.unet.folds
    assert all(parameter.dtype == torch.float32 for parameter in model.unet.network.parameters())
    widget = pack.nodes["GenDR_LoadUNet"].define_schema().inputs[1]
    assert (widget.default, widget.options, widget.optional) == ("dtype", ["dtype", "fp8"], True)
    assert widget.extra_dict == {"advanced": True}


def test_a_plan_counts_fewer_bytes(pack: Pack) -> None:
    peaks: list[int] = []
    for kind in ("fp8", "dtype"):
        model = run(pack, "GenDR_LoadUNet", unet=PIXEL, weights=kind)
        plan = pack.nodes["GenDR_Plan"].execute(torch.zeros(1, 8, 8, 3), model, **PLANNED)
        peaks.append(round(plan.args[1] * 2**30))
        assert model.patcher.model_size() < peaks[-1]
    assert peaks[0] < peaks[1]


def test_a_prompt_of_ones_own_keeps_them(pack: Pack) -> None:
    model = run(pack, "GenDR_LoadUNet", unet=LATENT, weights="fp8")
    given = [[torch.zeros(1, 3, model.unet.spec.arch.cross_attention_dim), {"pooled_output": None}]]
    fixed = run(pack, "GenDR_FixPrompt", model=model, positive=given)
    assert fixed.unet.network is model.unet.network
    assert run(pack, "GenDR_OneStep", latent=SAMPLES, model=fixed, guidance=1.0)["samples"].isfinite().all()


def test_a_device_without_8_bits_is_named(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["comfy.model_management"], "get_torch_device", lambda: torch.device("mps"))
    with pytest.raises(ValueError, match=r"expected a device with float8 .*, got mps: choose dtype"):
        run(pack, "GenDR_LoadUNet", unet=LATENT, weights="fp8")


def test_another_choice_is_no_other_file(pack: Pack) -> None:
    # The host compares the widgets by itself.
    for node_id, name in (
        ("GenDR_LoadUNet", {"unet": LATENT}),
        ("GenDR_LoadVAE16", {"vae_file": "tiny-vae.safetensors"}),
    ):
        stamp = pack.nodes[node_id].fingerprint_inputs
        assert stamp(**name) == stamp(**name, weights="dtype") == stamp(**name, weights="fp8")
