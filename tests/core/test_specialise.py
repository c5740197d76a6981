"""Folded networks are the networks that they were folded from."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tiny_unet, tiny_vae
from torch import Tensor, nn

from gendr_core.errors import CheckpointError
from gendr_core.model import GenDRUNet, GenDRVAE, fold_unet, fold_vae
from gendr_core.nets import TORCH_OPERATIONS, UNet
from gendr_core.nets.layers import Factory, Upsample
from gendr_core.plan import Bands, StagePlan
from gendr_core.sketch import UNetKind, VAEKind, unet_sketch, vae_sketch
from gendr_core.spec import FILE_FOLDS, UNET_FOLDS, VAE_FOLDS, Fold, ModelSpec, UNetArch, VAEArch, VAESpec
from gendr_core.step import one_step

SETS: list[tuple[Fold, ...]] = [*((fold,) for fold in UNET_FOLDS), UNET_FOLDS]
VAE_SETS: list[tuple[Fold, ...]] = [*((fold,) for fold in VAE_FOLDS), VAE_FOLDS]
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}


def unet_of(dtype: torch.dtype) -> GenDRUNet:
    unet = tiny_unet(4, negative=True, timestep=354, c_skip=1.3, c_out=-0.7, latent_scaling=0.3)
    return replace(
        unet,
        network=unet.network.to(dtype),
        positive=unet.positive.to(dtype),
        negative=None if unet.negative is None else unet.negative.to(dtype),
        dtype=dtype,
    )


def vae_of(dtype: torch.dtype) -> GenDRVAE:
    vae = tiny_vae()
    return replace(vae, network=vae.network.to(dtype), dtype=dtype)


def folded(unet: GenDRUNet, folds: tuple[Fold, ...]) -> GenDRUNet:
    return fold_unet(replace(unet, network=deepcopy(unet.network)), folds)


def distance(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def prediction(unet: GenDRUNet, latent: Tensor) -> Tensor:
    """The last convolution of the whole, with what stands before and behind it; in the network's own dtype."""
    spec, prompt = unet.spec, unet.positive.to(latent).expand(len(latent), -1, -1)
    scaled = latent if "ends" in unet.folds else latent * spec.input_scaling
    result = unet.network(scaled, spec.timestep, prompt)
    return result if "ends" in unet.folds else result * (spec.c_out / spec.output_scaling)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("folds", SETS, ids="-".join)
def test_a_folded_unet_predicts_what_the_plain_one_does(folds: tuple[Fold, ...], dtype: torch.dtype) -> None:
    plain, latent = unet_of(dtype), noise(2, 4, 6, 10, dtype=dtype)
    assert distance(prediction(folded(plain, folds), latent), prediction(plain, latent)) <= LIMITS[dtype]


@pytest.mark.parametrize("guidance", [1.0, 1.7])
@pytest.mark.parametrize("band_bytes", [2**24, 3000])
@pytest.mark.parametrize("folds", SETS, ids="-".join)
def test_a_folded_step_is_the_plain_step_whole_and_in_bands(
    folds: tuple[Fold, ...], band_bytes: int, guidance: float
) -> None:
    plain, latent = unet_of(torch.float32), noise(1, 4, 12, 20)
    expected = one_step(latent, plain, guidance=guidance)
    plan = StagePlan(bands=Bands(band_bytes=band_bytes))
    with torch.inference_mode():
        result = one_step(latent, folded(plain, folds), guidance=guidance, plan=plan)
    assert distance(result, expected) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("folds", VAE_SETS, ids="-".join)
def test_a_folded_vae_is_the_plain_one(folds: tuple[Fold, ...], dtype: torch.dtype) -> None:
    plain = vae_of(dtype)
    other = fold_vae(replace(plain, network=deepcopy(plain.network)), folds)
    pixels, latent = noise(1, 3, 32, 48, dtype=dtype), noise(2, 4, 5, 3, dtype=dtype)
    assert distance(other.network.encode(pixels), plain.network.encode(pixels)) <= LIMITS[dtype]
    assert distance(other.network.decode(latent), plain.network.decode(latent)) <= LIMITS[dtype]


@pytest.mark.parametrize("shorter", [0, 1])
@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), batch=st.integers(1, 2))
def test_phases_enlarge_frames_of_any_size(shorter: int, height: int, width: int, batch: int) -> None:
    network = nn.Module()
    network.up = Upsample(Factory(TORCH_OPERATIONS, None, torch.float64), 3)
    x, size = noise(batch, 3, height, width, dtype=torch.float64), (2 * height - shorter, 2 * width - shorter)
    expected = network.up(x, size)
    _fold_phases_of(network)
    assert distance(network.up(x, size), expected) <= 1e-12


def _fold_phases_of(network: nn.Module) -> None:
    from gendr_core import specialise

    specialise._fold_phases(network, TORCH_OPERATIONS)  # pyright: ignore[reportPrivateUsage]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_full_size_unet_loses_53_million_parameters() -> None:
    spec = ModelSpec(arch=UNetArch())
    size: Callable[[frozenset[Fold]], int] = lambda folds: count(unet_sketch(UNetKind(spec, torch.float32, folds)))  # noqa: E731
    assert size(frozenset()) == 865_979_856
    assert size(frozenset(UNET_FOLDS) - {"phases"}) == 812_482_896
    # Four kernels of 2x2 in place of one of 3x3: for speed, not for size.
    assert size(frozenset(UNET_FOLDS)) == 812_482_896 + 7 * (640**2 + 2 * 1280**2) + 3 * (640 + 2 * 1280)


def test_the_full_size_vae_keeps_its_parameters_but_for_both_ends() -> None:
    spec = VAESpec(arch=VAEArch())
    plain = count(vae_sketch(VAEKind(spec, torch.float32, frozenset())))
    assert plain == 57_266_643
    assert count(vae_sketch(VAEKind(spec, torch.float32, frozenset({"ends"})))) == (
        plain - (16 * 512 * 9 + 16) - (32 * 32 + 32) - (16 * 16 + 16) + 512 * 9
    )


def test_a_prompt_of_another_length_goes_through_a_folded_network() -> None:
    plain, latent = unet_of(torch.float32), noise(1, 4, 8, 8)
    ours, prompt = folded(plain, UNET_FOLDS), noise(7, 8)
    expected = one_step(latent, replace(plain, positive=prompt))
    assert distance(one_step(latent, replace(ours, positive=ours.prompt(prompt))), expected) <= 1e-5


def test_folding_leaves_no_weight_of_the_timestep_and_of_the_prompt() -> None:
    names = [name for name, _ in folded(unet_of(torch.float32), UNET_FOLDS).network.named_parameters()]
    assert not [name for name in names if "time_emb" in name or "attn2.to_k" in name or "norm3" in name]


@pytest.mark.parametrize("first", [FILE_FOLDS, ("prompt", "time"), ("norms", "scale", "qkv"), ("ends",)], ids="-".join)
def test_folds_may_come_in_two_goes(first: tuple[Fold, ...]) -> None:
    plain, latent = unet_of(torch.float64), noise(1, 4, 6, 10, dtype=torch.float64)
    both = fold_unet(folded(plain, first), UNET_FOLDS)
    whole = folded(plain, UNET_FOLDS)
    assert both.folds == whole.folds
    assert both.network.state_dict().keys() == whole.network.state_dict().keys()
    assert distance(prediction(both, latent), prediction(plain, latent)) <= 1e-12


def test_a_vae_may_be_folded_in_two_goes() -> None:
    plain, latent = vae_of(torch.float64), noise(1, 4, 5, 3, dtype=torch.float64)
    first = fold_vae(replace(plain, network=deepcopy(plain.network)), ("norms", "scale", "qkv", "ends"))
    both = fold_vae(first, VAE_FOLDS)
    assert both.folds == frozenset(VAE_FOLDS)
    assert distance(both.network.decode(latent), plain.network.decode(latent)) <= 1e-12


@pytest.mark.parametrize(
    ("first", "late"), [(("qkv",), "norms and scale"), (("norms", "qkv"), "scale"), (("qkv", "scale"), "norms")]
)
def test_what_has_to_come_before_qkv_cannot_follow_it(first: tuple[Fold, ...], late: str) -> None:
    with pytest.raises(CheckpointError, match=f"qkv is folded without {late}, which would have to come before it"):
        fold_unet(folded(unet_of(torch.float32), first), UNET_FOLDS)
    vae = fold_vae(vae_of(torch.float32), first)
    with pytest.raises(CheckpointError, match=f"qkv is folded without {late}"):
        fold_vae(vae, VAE_FOLDS)


def test_a_plain_network_keeps_the_names_of_diffusers() -> None:
    network = UNet(UNetArch(), device="meta")
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in network.state_dict()
    assert not [name for name in network.state_dict() if "qkv" in name or "phases" in name]
