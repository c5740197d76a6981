"""Whole files: round trips are exact, foreign layouts load, wrong files say what is wrong with them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ldm import unet_to_ldm, vae_to_ldm
from safetensors.torch import load_file, save_file
from weightfiles import (
    PLAIN_UNET,
    PLAIN_VAE,
    TINY_UNET,
    UNET_SPEC,
    VAE_SPEC,
    assert_same,
    assert_unchanged_folder,
    prompt,
    unet_state,
    vae_state,
)

from gendr_core.checkpoint import SpecOverrides, inspect, read_unet, read_vae, write_unet, write_vae
from gendr_core.errors import CheckpointError
from gendr_core.layouts import PREFIXES
from gendr_core.nets import UNet
from gendr_core.spec import ModelSpec, VAEArch, VAESpec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file name in an empty folder."""
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_unet_round_trip_is_exact(path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in unet_state().items()}
    spec = replace(UNET_SPEC, guidance=1.07)
    write_unet(path, spec, state, prompt().half(), prompt(4))
    found = read_unet(path)
    assert found.spec == spec
    assert_same(found.state, state)
    assert found.negative is not None
    assert_same({"+": found.positive, "-": found.negative}, {"+": prompt().half(), "-": prompt(4)})
    UNet(TINY_UNET).load_state_dict(found.state)


def test_vae_round_trip_is_exact(path: Path) -> None:
    write_vae(path, VAE_SPEC, vae_state())
    found = read_vae(path)
    assert found.spec == VAE_SPEC
    assert_same(found.state, vae_state())


def test_what_was_read_can_be_written_over_its_own_file(path: Path) -> None:
    write_unet(path, UNET_SPEC, unet_state(), prompt())
    found = read_unet(path)
    before = path.read_bytes()
    write_unet(path, found.spec, found.state, found.positive, found.negative)
    assert path.read_bytes() == before


def plain_file(path: Path, *, layout: str, prefixed: bool, whole: bool) -> None:
    """Write a UNet with its prompt, and a VAE if ``whole``, as other tools do."""
    unet, vae = unet_state(PLAIN_UNET), vae_state(PLAIN_VAE)
    if layout == "ldm":
        unet, vae = unet_to_ldm(unet, PLAIN_UNET), vae_to_ldm(vae, 4)
    if prefixed:
        unet = {PREFIXES["unet"] + name: tensor for name, tensor in unet.items()}
        vae = {PREFIXES["vae16"] + name: tensor for name, tensor in vae.items()}
    extra = {"cond_stage_model.x": torch.zeros(1, dtype=torch.int64)} if whole else {}
    save_file({**unet, **(vae if whole else {}), **extra, "prompt.positive": prompt()}, path)


@pytest.mark.parametrize(
    ("layout", "prefixed", "whole"),
    [
        ("diffusers", False, False),
        ("diffusers", True, False),
        ("ldm", False, False),
        ("ldm", True, False),
        ("ldm", True, True),
    ],
)
def test_unets_without_metadata(path: Path, layout: str, prefixed: bool, whole: bool) -> None:
    plain_file(path, layout=layout, prefixed=prefixed, whole=whole)
    found = read_unet(path)
    assert found.spec == ModelSpec(arch=PLAIN_UNET)
    assert_same(found.state, unet_state(PLAIN_UNET))
    assert torch.equal(found.positive, prompt())
    if whole:
        vae = read_vae(path, SpecOverrides(latent_scaling=0.5))
        assert vae.spec == VAESpec(arch=PLAIN_VAE, latent_scaling=0.5)
        assert_same(vae.state, vae_state(PLAIN_VAE))


def test_convolutional_projections_become_linear(path: Path) -> None:
    state = unet_state(PLAIN_UNET)
    convolved = {
        name: t[..., None, None].contiguous()
        if "proj_" in name and t.ndim == 2 and "attentions" in name and "ff." not in name
        else t
        for name, t in state.items()
    }
    assert convolved["mid_block.attentions.0.proj_in.weight"].ndim == 4
    save_file({**convolved, "prompt.positive": prompt()}, path)
    assert_same(read_unet(path).state, state)


def test_vae_scaling_must_be_known_or_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(vae_to_ldm(vae_state(PLAIN_VAE), 4), path)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: the file does not say latent_scaling: .* give SpecOverrides"
    ):
        read_vae(path)
    assert read_vae(path, SpecOverrides(latent_scaling=0.3)).spec.latent_scaling == 0.3
    count = sum(tensor.numel() for tensor in vae_state(PLAIN_VAE).values())
    monkeypatch.setattr("gendr_core.untagged.KNOWN_VAE_SCALING", {count: 0.25})
    assert read_vae(path).spec.latent_scaling == 0.25


def test_the_prompt_must_be_in_the_file_or_given(path: Path) -> None:
    save_file(unet_state(PLAIN_UNET), path)
    with pytest.raises(
        CheckpointError,
        match=r"no prompt embedding \(prompt.positive\): give SpecOverrides\(positive=...\) of shape \[tokens, 8\]",
    ):
        read_unet(path)
    found = read_unet(path, SpecOverrides(positive=prompt(), negative=prompt(4), guidance=1.1))
    assert found.negative is not None
    assert torch.equal(found.positive, prompt())
    assert found.spec.guidance == 1.1


def test_a_given_prompt_replaces_the_files(path: Path) -> None:
    write_unet(path, UNET_SPEC, unet_state(), prompt())
    assert torch.equal(read_unet(path, SpecOverrides(positive=prompt(9))).positive, prompt(9))


def test_guidance_needs_a_negative_prompt(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"guidance 1.07 needs a negative prompt \(prompt.negative\)"):
        write_unet(path, replace(UNET_SPEC, guidance=1.07), unet_state(), prompt())
    write_unet(path, UNET_SPEC, unet_state(), prompt())
    with pytest.raises(CheckpointError, match=r"guidance 1\.5 needs a negative prompt"):
        read_unet(path, SpecOverrides(guidance=1.5))


def test_the_spec_must_fit_the_weights(path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: .* of the wrong shape: conv_in.weight is \[8, 4, 3, 3\]"
    ):
        write_unet(
            path, replace(UNET_SPEC, arch=replace(TINY_UNET, in_channels=5, out_channels=5)), unet_state(), prompt()
        )
    with pytest.raises(CheckpointError, match=r"missing: quant_conv.weight"):
        write_vae(path, VAE_SPEC, {name: t for name, t in vae_state().items() if not name.startswith("quant_conv")})
    assert_unchanged_folder(path, None)


def test_kinds_are_not_mixed_up(path: Path) -> None:
    write_vae(path, VAE_SPEC, vae_state())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected kind 'unet', got 'vae16'"):
        read_unet(path)
    write_unet(path, UNET_SPEC, unet_state(), prompt())
    with pytest.raises(CheckpointError, match="expected kind 'vae16', got 'unet'"):
        read_vae(path)
    save_file(vae_state(PLAIN_VAE), path)
    with pytest.raises(CheckpointError, match=r"expected a UNet of SD2\.1's kind, got a VAE"):
        read_unet(path)
    save_file({"text_model.embeddings.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="expected a VAE, got a text encoder"):
        read_vae(path)


def test_a_vae_with_another_factor_is_refused(path: Path) -> None:
    save_file(vae_state(VAEArch(block_out_channels=(32,), layers_per_block=1)), path)
    with pytest.raises(CheckpointError, match="2, 4, 8 or 16 pixels per latent cell, got 1"):
        read_vae(path, SpecOverrides(latent_scaling=1.0))


def test_messages_show_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_unet(tmp_path / "gone.safetensors")
    assert str(caught.value).startswith("gone.safetensors: expected a .safetensors file, found no file")
    assert str(tmp_path) not in str(caught.value)


def test_inspect_reports_our_files(path: Path) -> None:
    write_unet(path, UNET_SPEC, {name: t.half() for name, t in unet_state().items()}, prompt())
    report = inspect(path)
    assert (report.kind, report.layout, report.format_version, report.problem) == ("unet", "diffusers", 1, None)
    assert report.spec == UNET_SPEC
    assert report.num_parameters == sum(tensor.numel() for tensor in unet_state().values())
    assert report.num_tensors == len(load_file(path)) == len(unet_state()) + 1
    assert report.dtypes == ("F16", "F32")
    assert report.num_bytes == path.stat().st_size
    write_vae(path, VAE_SPEC, vae_state())
    assert inspect(path).spec == VAE_SPEC


def test_inspect_says_what_is_missing(path: Path) -> None:
    save_file(unet_to_ldm(unet_state(PLAIN_UNET), PLAIN_UNET), path)
    report = inspect(path)
    assert (report.kind, report.layout, report.format_version, report.spec) == ("unet", "ldm", None, None)
    assert report.num_parameters == sum(tensor.numel() for tensor in unet_state(PLAIN_UNET).values())
    assert report.problem is not None
    assert "no prompt embedding" in report.problem


def test_inspect_a_whole_checkpoint(path: Path) -> None:
    plain_file(path, layout="ldm", prefixed=True, whole=True)
    report = inspect(path)
    assert (report.kind, report.spec) == ("checkpoint", None)
    assert report.problem is not None
    assert "latent_scaling" in report.problem


def test_inspect_never_raises(path: Path) -> None:
    assert "found no file" in (inspect(path).problem or "")
    assert "got a folder" in (inspect(path.parent).problem or "")
    path.write_bytes(b"\x80\x02 something pickled")
    assert (inspect(path).kind, inspect(path).num_bytes) == ("unreadable", path.stat().st_size)
    assert "got a pickle" in (inspect(path).problem or "")
    save_file({"a.lora_A.weight": torch.zeros(1)}, path)
    report = inspect(path)
    assert report.kind == "lora"
    assert "expected a UNet or a VAE, got a LoRA (merge it" in (report.problem or "")
    save_file(unet_state(), path, {"gendr": '{"format": 3, "later": true}'})
    assert inspect(path).format_version == 3
    assert "update GenDR" in (inspect(path).problem or "")
    save_file(unet_state(), path, {"gendr": "nonsense"})
    assert "not valid JSON" in (inspect(path).problem or "")
