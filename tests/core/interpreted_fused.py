"""The fused kernels by Triton's interpreter, on a processor; test_fused.py runs this file in a process of its own.

Triton settles when it is imported whether it interprets, and torch imports it: this needs TRITON_INTERPRET=1 from the
start of the process.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import seeded, tiny_unet, tiny_vae
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.model import GenDRUNet, GenDRVAE, fold_unet, fold_vae
from gendr_core.nets import fused
from gendr_core.nets.fused import FusedGroupNorm, fuse, moments, normalise
from gendr_core.nets.kernels import normalised
from gendr_core.plan import Bands, StagePlan
from gendr_core.spec import UNET_FOLDS, VAE_FOLDS
from gendr_core.step import one_step

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
"""Largest error of a rounded value over that value. The interpreter cuts bfloat16 off; a GPU rounds to nearest."""
WIDTHS = (1, 2, 4, 8, 10, 16, 20, 30, 40, 60, 80)
"""Channels of a group in these networks, and two that are fewer than any."""


@pytest.fixture(autouse=True)
def _few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that a small frame has parts of several tiles, as a large one has.
    monkeypatch.setattr(fused, "MOST_PARTS", 12)


def frame(*shape: int, dtype: torch.dtype = torch.float32, offset: float = 0.0, scale: float = 1.0) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    # Different statistics in different rows, groups and images.
    ramp = sum(
        torch.linspace(0.5, 1.5, length).view([-1 if i == axis else 1 for i in range(4)])
        for axis, length in enumerate(shape[:3])
    )
    return (scale * noise * ramp + offset * ramp).to(dtype).contiguous(memory_format=torch.channels_last)


def vector(channels: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(channels, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def frames(draw: Any) -> tuple[int, Tensor]:
    groups, width = draw(st.integers(1, 5)), draw(st.sampled_from(WIDTHS))
    shape = (draw(st.integers(1, 3)), groups * width, draw(st.integers(1, 40)), draw(st.integers(1, 12)))
    offset = draw(st.sampled_from((0.0, 1.0, -30.0, 1000.0)))
    return groups, frame(*shape, dtype=draw(st.sampled_from(DTYPES)), offset=offset)


@settings(max_examples=20)
@given(case=frames())
def test_moments_are_exact_beside_the_rounding_of_float32(case: Any) -> None:
    groups, x = case
    mean, variance = moments(x, groups)
    exact = x.double().reshape(len(x), groups, -1)
    size = exact.square().mean(2).sqrt()
    assert mean.dtype == variance.dtype == torch.float32
    assert mean.shape == variance.shape == (len(x), groups)
    assert ((mean - exact.mean(2)).abs() <= 4e-7 * size).all()
    # Of values of this size, float32 cannot tell a deviation from one that is a few of its steps wider.
    deviation = exact.var(2, unbiased=False).sqrt()
    assert ((variance.double().sqrt() - deviation).abs() <= 1e-6 * deviation + 2e-7 * size).all()


@settings(max_examples=20)
@given(case=frames(), affine=st.booleans(), activate=st.booleans())
def test_a_fused_norm_is_the_formula(case: Any, affine: bool, activate: bool) -> None:
    groups, x = case
    channels = x.shape[1]
    norm = nn.GroupNorm(groups, channels, 1e-5, affine)
    norm = (seeded(norm, 3) if affine else norm).to(x.dtype)
    result = FusedGroupNorm(norm)(x, activate=activate)
    values = x.double().reshape(len(x), groups, -1)
    mean, deviation = values.mean(2, keepdim=True), (values.var(2, unbiased=False, keepdim=True) + norm.eps).sqrt()
    expected = ((values - mean) / deviation).reshape(x.shape)
    if affine:
        expected = expected * norm.weight.double().view(-1, 1, 1) + norm.bias.double().view(-1, 1, 1)
    size = expected.abs().amax(dim=(1, 2, 3), keepdim=True)
    expected = F.silu(expected) if activate else expected
    assert result.dtype == x.dtype
    assert result.stride()[1:] == (1, x.shape[3] * channels, channels)
    # What the mean of float32 loses, in units of the deviation, is no fault of the kernel.
    lost = (mean.abs() / deviation).amax(1)[..., None, None]
    limit = (ROUNDING[x.dtype] + 2e-6) * size + 4e-7 * lost * (size + 1.0)
    assert ((result - expected).abs() <= limit).all()


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_a_mean_far_from_zero_leaves_the_variance_alone(offset: float) -> None:
    x = frame(1, 8, 40, 50) + offset
    _, variance = moments(x, 2)
    expected = x.double().reshape(1, 2, -1).var(2, unbiased=False)
    # E[x^2] - E[x]^2 in float32 would be off by more than the variance itself.
    assert torch.allclose(variance.double(), expected, rtol=1e-3)


@pytest.mark.parametrize("most", [1, 2, 2048])
def test_a_frame_in_any_number_of_parts_has_the_same_moments(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST_PARTS", most)
    # 71 parts of a tile each, or few of several tiles; the last has five positions more than whole tiles.
    x = frame(1, 6, 65, 69, offset=2.0)
    mean, variance = moments(x, 2)
    exact = x.double().reshape(1, 2, -1)
    assert torch.allclose(mean.double(), exact.mean(2), rtol=1e-6)
    assert torch.allclose(variance.double(), exact.var(2, unbiased=False), rtol=1e-6)


def test_frames_in_another_order_and_rows_of_frames_give_the_same() -> None:
    x = frame(2, 12, 9, 7, offset=3.0)
    affine = (vector(12, 1, torch.float32), vector(12, 2, torch.float32))
    part = x[:, :, 2:7]
    expected = F.group_norm(part, 3, *affine, eps=1e-5)
    for given_part in (part, part.contiguous(), part.clone(memory_format=torch.channels_last)):
        result = normalise(given_part, moments(given_part, 3), affine, 1e-5, activate=False)
        assert torch.allclose(result, expected, atol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_an_image_has_the_same_bits_alone_and_among_others_and_every_time() -> None:
    x, norm = frame(3, 20, 30, 11), FusedGroupNorm(nn.GroupNorm(5, 20, affine=False))
    together = normalised(norm, x, activate=True)
    assert torch.equal(together, normalised(norm, x, activate=True))
    assert torch.equal(together[1:2], normalised(norm, x[1:2], activate=True))


def models(*, is_fused: bool) -> tuple[GenDRUNet, GenDRVAE]:
    """Return tiny models with all folds, in bands of their own devices' order, with fused norms if asked."""
    unet = fold_unet(tiny_unet(negative=True), set(UNET_FOLDS) - {"packed"})
    vae = fold_vae(tiny_vae(), VAE_FOLDS)
    if is_fused:
        for model in (unet, vae):
            fuse(model.network)
    return unet, vae


def distance(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


class Orders(TorchFunctionMode):
    """Notes of every convolution whether its input is in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, torch.conv2d):
            _, channels, _, width = args[0].shape
            self.seen.append(args[0].stride()[1:] == (1, width * channels, channels))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """What is brought into order."""
    made: list[torch.Size] = []
    plain = fused.as_channels_last

    def spy(x: Tensor) -> Tensor:
        result = plain(x)
        if result is not x:
            made.append(x.shape)
        return result

    for place in ("fused", "kernels"):
        monkeypatch.setattr(f"gendr_core.nets.{place}.as_channels_last", spy)
    return made


@pytest.mark.parametrize("guidance", [1.0, 1.7])
@pytest.mark.parametrize("band_bytes", [2**24, 3000])
def test_a_fused_step_is_the_plain_one(band_bytes: int, guidance: float, copies: list[torch.Size]) -> None:
    latent, plan = frame(1, 4, 6, 10).contiguous(), StagePlan(bands=Bands(band_bytes=band_bytes))
    with torch.inference_mode():
        expected = one_step(latent, models(is_fused=False)[0], guidance=guidance, plan=plan)
        copies.clear()
        with Orders() as orders:
            result = one_step(latent, models(is_fused=True)[0], guidance=guidance, plan=plan)
    assert distance(result, expected) <= 1e-5
    assert len(orders.seen) > 10
    assert all(orders.seen)
    # The latent alone has to be brought into order.
    assert copies == [latent.shape]


@pytest.mark.parametrize(("band_bytes", "recompute"), [(2**24, False), (8000, False), (8000, True)])
def test_a_fused_vae_is_the_plain_one(band_bytes: int, recompute: bool, copies: list[torch.Size]) -> None:
    plan = StagePlan(bands=Bands(band_bytes=band_bytes, recompute=recompute))
    pixels, latent = frame(1, 3, 24, 16).contiguous(), frame(2, 4, 3, 2).contiguous()
    plain, ours = (models(is_fused=is_fused)[1] for is_fused in (False, True))
    with torch.inference_mode():
        expected = encode(pixels, "vae16", plain, plan=plan), decode(latent, "vae16", plain, plan=plan)
        copies.clear()
        with Orders() as orders:
            result = encode(pixels, "vae16", ours, plan=plan), decode(latent, "vae16", ours, plan=plan)
    assert [distance(*pair) <= 1e-5 for pair in zip(result, expected, strict=True)] == [True, True]
    assert all(orders.seen)
    assert len(copies) == 2


def test_a_network_in_16_bits_is_no_worse_fused() -> None:
    unet, latent = tiny_unet(), frame(1, 4, 10, 12)

    def predicted(*, is_fused: bool, dtype: torch.dtype) -> Tensor:
        model = fold_unet(replace(unet, network=deepcopy(unet.network), dtype=dtype), set(UNET_FOLDS) - {"packed"})
        if is_fused:
            fuse(model.network)
        with torch.inference_mode():
            return one_step(latent, model)

    exact = predicted(is_fused=False, dtype=torch.float32)
    plain, ours = (
        (predicted(is_fused=is_fused, dtype=torch.float16) - exact).square().mean() for is_fused in (False, True)
    )
    assert ours <= 1.3 * plain


def test_a_plain_whole_network_runs_fused() -> None:
    network, prompt = tiny_unet().network, torch.ones(1, 3, 8)
    latent = frame(1, 4, 7, 9)
    expected = network(latent, 354, prompt)
    fuse(network)
    assert distance(network(latent, 354, prompt), expected) <= 1e-5
