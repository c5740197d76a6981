"""Weights in 8 bits: how far they are off, and that reading them back adds nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_core.float8 import from_float8, has_nan, to_float8

CODES = torch.arange(256, dtype=torch.uint8)
FINITE = CODES[CODES % 128 != 127].view(torch.float8_e4m3fn)
"""Every number that float8 has."""


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-60, 60), channels=st.integers(1, 5), rest=st.integers(1, 40))
def test_a_weight_is_off_by_a_sixteenth_of_itself_or_little_of_its_channel(
    seed: int, exponent: int, channels: int, rest: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(-20, 1, (channels, rest), generator=generator)
    weight = torch.ldexp(torch.randn(channels, rest, generator=generator), spread + exponent)
    small, scales = to_float8(weight)
    back = from_float8(small, scales)
    assert (small.dtype, scales.dtype, back.dtype) == (torch.float8_e4m3fn, torch.float32, torch.bfloat16)
    allowed = torch.maximum(weight.abs() / 16, weight.abs().amax(1, keepdim=True) * 2.0**-17)
    assert ((back.float() - weight).abs() <= allowed).all()
    # Exactly what the file says: nothing is rounded a second time.
    assert torch.equal(back.double(), small.double() * scales.double()[:, None])


def test_every_channel_has_a_scale_of_its_own() -> None:
    weight = torch.tensor([1e-6, 1.0, 3e5])[:, None, None, None] * torch.linspace(0.1, 1.0, 9).reshape(1, 1, 3, 3)
    back = from_float8(*to_float8(weight)).float()
    assert back.shape == weight.shape
    assert ((back - weight).abs() <= weight / 16).all()


@pytest.mark.parametrize("largest", [448.0, 447.9, 224.0, 1.0, 0.0, 2.0**-100])
def test_the_largest_weight_of_a_channel_fits(largest: float) -> None:
    small, scales = to_float8(torch.tensor([[largest, -largest / 2]]))
    assert torch.isfinite(small.float()).all()
    assert from_float8(small, scales)[0, 0].item() == pytest.approx(largest, rel=1 / 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.float16])
@settings(max_examples=20)
@given(exponents=st.lists(st.integers(-60, 40), min_size=1, max_size=4))
def test_every_product_is_exact_or_rounded_once(dtype: torch.dtype, exponents: list[int]) -> None:
    scales = torch.ldexp(torch.ones(len(exponents)), torch.tensor(exponents))
    weight = FINITE.repeat(len(exponents)).reshape(len(exponents), 1, 127, 2)
    product = FINITE.double() * scales.double()[:, None]
    for order in (torch.contiguous_format, torch.channels_last):
        back = from_float8(weight.contiguous(memory_format=order), scales, dtype)
        assert back.is_contiguous(memory_format=order)
        assert torch.equal(back.flatten(1), product.to(dtype))


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), spread=st.integers(0, 30), exponent=st.integers(-60, 60))
def test_what_was_in_8_bits_comes_back_as_it_was(seed: int, spread: int, exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(-spread, 1, (20, 12), generator=generator) + exponent
    small, scales = to_float8(torch.ldexp(torch.randn(20, 12, generator=generator), powers))
    again, same = to_float8(from_float8(small, scales))
    assert torch.equal(scales, same)
    assert torch.equal(small.view(torch.int8), again.view(torch.int8))


def test_nan_is_seen_before_it_is_multiplied_out() -> None:
    assert not has_nan(FINITE)
    for code in (0x7F, 0xFF):
        assert has_nan(torch.tensor([0, code, 1], dtype=torch.uint8).view(torch.float8_e4m3fn))
