"""Baked files: the same network in fewer numbers, read like any other file, refused where plain weights are needed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import tiny_unet, tiny_vae
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gendr_core.bake import Storage, bake_unet, bake_vae
from gendr_core.checkpoint import SpecOverrides, inspect, read_unet, read_vae, write_unet, write_vae
from gendr_core.errors import CheckpointError, OptionError
from gendr_core.metadata import STORED_FOLDS
from gendr_core.model import load_unet, load_vae
from gendr_core.nets import UNet
from gendr_core.spec import FILE_FOLDS, UNET_FOLDS
from gendr_core.step import one_step

ERRORS: dict[Storage, float] = {"fp32": 0.0, "fp16": 2e-3, "bf16": 2e-2, "fp8": 0.15}
"""How far a random tiny network may be off, relative to its largest output."""
WEIGHT = "down_blocks.0.resnets.0.conv1.weight"
SCALE = f"{WEIGHT}_scale"
BYTES: dict[Storage, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}


@pytest.fixture
def unet_file(tmp_path: Path) -> Path:
    """A plain UNet with both prompts."""
    unet = tiny_unet(negative=True, guidance=1.5)
    path = tmp_path / "plain.safetensors"
    write_unet(path, unet.spec, unet.network.state_dict(), unet.positive, unet.negative)
    return path


@pytest.fixture
def vae_file(tmp_path: Path) -> Path:
    """A plain VAE."""
    vae = tiny_vae()
    write_vae(tmp_path / "vae.safetensors", vae.spec, vae.network.state_dict())
    return tmp_path / "vae.safetensors"


@pytest.fixture
def baked(unet_file: Path, tmp_path: Path) -> Path:
    """The UNet baked in its own number format."""
    bake_unet(unet_file, tmp_path / "baked.safetensors", "fp32")
    return tmp_path / "baked.safetensors"


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def distance(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("storage", ERRORS)
def test_a_baked_unet_steps_like_the_plain_one(unet_file: Path, tmp_path: Path, storage: Storage) -> None:
    target = tmp_path / "baked.safetensors"
    bake_unet(unet_file, target, storage)
    plain, ours = load_unet(unet_file), load_unet(target)
    assert ours.folds == plain.folds
    assert ours.spec == plain.spec
    latent = noise(1, 4, 8, 12)
    for guidance in (1.0, 1.5):
        expected = one_step(latent, plain, guidance=guidance)
        assert distance(one_step(latent, ours, guidance=guidance), expected) <= ERRORS[storage]


@pytest.mark.parametrize("storage", ERRORS)
def test_a_baked_vae_codes_like_the_plain_one(vae_file: Path, tmp_path: Path, storage: Storage) -> None:
    target = tmp_path / "baked.safetensors"
    bake_vae(vae_file, target, storage)
    plain, ours = load_vae(vae_file), load_vae(target)
    assert ours.folds == plain.folds
    pixels, latent = noise(1, 3, 32, 48), noise(1, 4, 5, 3)
    assert distance(ours.network.encode(pixels), plain.network.encode(pixels)) <= ERRORS[storage]
    assert distance(ours.network.decode(latent), plain.network.decode(latent)) <= ERRORS[storage]


@pytest.mark.parametrize("storage", ERRORS)
def test_a_baked_file_holds_what_is_left_in_the_chosen_format(
    unet_file: Path, tmp_path: Path, storage: Storage
) -> None:
    target = tmp_path / "baked.safetensors"
    bake_unet(unet_file, target, storage)
    report, network = inspect(target), load_unet(unet_file, folds=FILE_FOLDS).network
    assert (report.kind, report.format_version, report.problem) == ("unet", 2, None)
    assert report.folds == tuple(sorted(FILE_FOLDS))
    assert report.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert report.num_parameters < inspect(unet_file).num_parameters
    weights = load_file(target)
    assert weights[WEIGHT].element_size() == BYTES[storage]
    assert (SCALE in weights) == (storage == "fp8")
    if storage == "fp8":
        wide = {name for name, tensor in weights.items() if tensor.dtype == torch.bfloat16}
        assert wide >= {"conv_in.weight", "conv_out.weight", "conv_in.bias", "prompt.positive", "prompt.negative"}
        assert {weights[name].ndim for name in weights.keys() - wide if not name.endswith("_scale")} == {2, 4}


def test_plain_files_are_written_as_format_1(unet_file: Path) -> None:
    assert inspect(unet_file).format_version == 1
    assert inspect(unet_file).folds == ()
    with safe_open(unet_file, framework="pt") as file:
        assert "folds" not in json.loads(file.metadata()["gendr"])


def test_a_baked_file_is_refused_where_plain_weights_are_needed(baked: Path, vae_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"baked.safetensors: expected plain weights, got baked ones \(ends, "):
        read_unet(baked)
    assert read_unet(baked, folded=True).folds == frozenset(FILE_FOLDS)
    bake_vae(vae_file, tmp_path / "two.safetensors", "fp32")
    with pytest.raises(CheckpointError, match=r"expected plain weights, got baked ones \(ends, norms, qkv, scale\)"):
        read_vae(tmp_path / "two.safetensors")
    assert read_vae(tmp_path / "two.safetensors", folded=True).folds == frozenset(STORED_FOLDS["vae16"])


def test_the_prompt_of_a_baked_model_cannot_be_exchanged(baked: Path, unet_file: Path) -> None:
    unet = load_unet(baked)
    assert unet.positive.shape == load_unet(unet_file).positive.shape
    with pytest.raises(
        OptionError, match="prompt can be changed, got one with its prompt baked in: load the file that"
    ):
        unet.prompt(noise(3, 8))


GIVEN: list[tuple[SpecOverrides, str]] = [
    (SpecOverrides(timestep=3), "timestep"),
    (SpecOverrides(c_out=0.5), "c_out"),
    (SpecOverrides(latent_scaling=0.5), "latent_scaling"),
    (SpecOverrides(prediction="epsilon"), "prediction"),
    (SpecOverrides(positive=torch.zeros(3, 8), negative=torch.zeros(3, 8)), "positive and negative"),
]


@pytest.mark.parametrize(("overrides", "names"), GIVEN, ids=[names for _, names in GIVEN])
def test_what_is_baked_in_cannot_be_given(baked: Path, overrides: SpecOverrides, names: str) -> None:
    with pytest.raises(CheckpointError, match=f"{names} cannot be given for this file, whose weights have them baked"):
        load_unet(baked, overrides=overrides)


def test_what_is_not_baked_in_can_be_given(baked: Path) -> None:
    spec = load_unet(baked, overrides=SpecOverrides(c_skip=0.5, guidance=2.0, scale=3.0)).spec
    assert (spec.c_skip, spec.guidance, spec.scale) == (0.5, 2.0, 3.0)


def test_a_baked_file_can_be_stored_in_another_format(baked: Path, tmp_path: Path) -> None:
    bake_unet(baked, tmp_path / "half.safetensors", "fp16")
    found, plain = read_unet(tmp_path / "half.safetensors", folded=True), read_unet(baked, folded=True)
    assert found.folds == plain.folds
    for name, tensor in plain.state.items():
        assert torch.equal(found.state[name], tensor.half())


def test_a_file_with_some_folds_gets_the_others_when_it_is_loaded(unet_file: Path, tmp_path: Path) -> None:
    some = load_unet(unet_file, folds=("time", "ends"))
    path = tmp_path / "some.safetensors"
    write_unet(path, some.spec, some.network.state_dict(), some.positive, some.negative, some.folds)
    ours, plain, latent = load_unet(path), load_unet(unet_file), noise(1, 4, 8, 8)
    assert ours.folds == plain.folds
    assert distance(one_step(latent, ours), one_step(latent, plain)) <= 1e-5
    assert ours.prompt(noise(3, 8)).shape == ours.positive.shape


def test_a_file_that_cannot_be_folded_further_is_refused_by_name(unet_file: Path, tmp_path: Path) -> None:
    unet = load_unet(unet_file, folds=("qkv", "scale"))
    with pytest.raises(CheckpointError, match=r"qkv is folded without norms, which would have to come before it"):
        write_unet(
            tmp_path / "odd.safetensors", unet.spec, unet.network.state_dict(), unet.positive, unet.negative, unet.folds
        )
    assert not (tmp_path / "odd.safetensors").exists()


def test_numbers_beyond_float16_are_refused(vae_file: Path, tmp_path: Path) -> None:
    found = read_vae(vae_file)
    state = {**found.state, "encoder.conv_in.weight": found.state["encoder.conv_in.weight"] * 1e6}
    write_vae(vae_file, found.spec, state)
    with pytest.raises(
        CheckpointError, match=r"encoder.conv_in.weight has numbers beyond 65504, .* choose bf16 or fp32"
    ):
        bake_vae(vae_file, tmp_path / "half.safetensors", "fp16")
    assert not (tmp_path / "half.safetensors").exists()
    bake_vae(vae_file, tmp_path / "half.safetensors", "bf16")


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


Change = Callable[[dict[str, Tensor]], object]
BROKEN: dict[str, tuple[Change, str]] = {
    "no scale": (lambda s: s.pop(SCALE), r"expected tensors of F16, BF16, F32, got 1 of F8_E4M3"),
    "no weight": (lambda s: s.pop(WEIGHT), f"1 missing: {WEIGHT}; 1 unexpected: {SCALE}"),
    "shape": (lambda s: s.update({SCALE: torch.ones(7)}), r"with scales as F32 \[8\], got F8_E4M3 with F32 \[7\]"),
    "half scale": (lambda s: s.update({SCALE: s[SCALE].half()}), r"F32 \[8\], got F8_E4M3 with F16 \[8\]"),
    "wide weight": (
        lambda s: s.update({WEIGHT: s[WEIGHT].float()}),
        rf"expected {WEIGHT} as F8_E4M3 with scales as F32 \[8\], got F32",
    ),
    "nan": (lambda s: s.update({SCALE: s[SCALE] * torch.nan}), f"{WEIGHT} hold NaN or infinite values"),
    "nan weight": (lambda s: s[WEIGHT].view(torch.int8).flatten()[3:4].fill_(127), f"{WEIGHT} hold NaN or infinite"),
    "infinite": (lambda s: s.update({SCALE: s[SCALE] * torch.inf}), f"{WEIGHT} hold NaN or infinite values"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_scales_are_named(unet_file: Path, tmp_path: Path, change: Change, message: str) -> None:
    target = tmp_path / "baked.safetensors"
    bake_unet(unet_file, target, "fp8")
    state, metadata = load_file(target), metadata_of(target)
    change(state)
    save_file(state, target, metadata)
    with pytest.raises(CheckpointError, match=message):
        load_unet(target)


def test_weights_that_are_not_those_of_the_folds_are_refused(baked: Path, unet_file: Path) -> None:
    metadata = metadata_of(baked)
    save_file(load_file(unet_file), baked, metadata)
    with pytest.raises(
        CheckpointError, match=r"does not fit its network of \d+ tensors; \d+ missing: .*; \d+ unexpected"
    ):
        load_unet(baked)


def test_weights_and_scales_are_written_as_a_pair(unet_file: Path, tmp_path: Path) -> None:
    found = read_unet(unet_file)
    state = {**found.state, SCALE: torch.ones(8)}
    with pytest.raises(CheckpointError, match=r"expected .*conv1.weight as torch.float8_e4m3fn with scales of"):
        write_unet(tmp_path / "new.safetensors", replace(found.spec, guidance=1.0), state, found.positive)


def test_the_folds_of_running_are_taken_after_loading(baked: Path) -> None:
    assert not [name for name in load_file(baked) if "phases" in name]
    unet = load_unet(baked)
    assert "phases" in unet.folds
    assert [name for name in unet.network.state_dict() if "phases" in name]
    assert unet.folds >= frozenset(UNET_FOLDS) - {"packed"}
    assert isinstance(unet.network, UNet)
