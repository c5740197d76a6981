"""The masked Fourier loss: where its mask lies, that shuffle patterns lie inside, and hand-computed values."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_train.losses.fourier import harmonic_mask, masked_spectrum


def masked_rows(height: int, half_width: float = 0.0) -> list[int]:
    """Return the bins of one axis; the other is at frequency 0, where its own strips do not reach."""
    return harmonic_mask(height, height, period=8, half_width=half_width)[:, 0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("height", "half_width", "expected"),
    [
        (8, 0.0, [1, 2, 3, 4, 5, 6, 7]),
        (16, 0.0, [2, 4, 6, 8, 10, 12, 14]),
        # 1/16 cycles per pixel is as far from 0 as from 1/8; a width of 1/32 takes the neighbours at 1/32.
        (32, 1 / 32, [b for k in range(4, 32, 4) for b in (k - 1, k, k + 1)]),
        # Harmonics at 1.25, 2.5 and 3.75 bins: the nearest, both where two are equally near.
        (10, 0.0, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        # at 2.5, 5, 7.5 and 10 bins
        (20, 0.0, [2, 3, 5, 7, 8, 10, 12, 13, 15, 17, 18]),
        # Smaller than a cell: 1/4 and 1/2 cycles per pixel are harmonics too.
        (4, 0.0, [1, 2, 3]),
        (2, 0.0, [1]),
    ],
)
def test_the_mask_of_one_axis(height: int, half_width: float, expected: list[int]) -> None:
    assert masked_rows(height, half_width) == expected


@given(height=st.integers(2, 70), width=st.integers(2, 70), half_width=st.floats(0.0, 0.05))
def test_the_mask_is_even_spares_the_mean_and_serves_both_axes_alike(
    height: int, width: int, half_width: float
) -> None:
    mask = harmonic_mask(height, width, period=8, half_width=half_width)
    assert mask.shape == (height, width)
    assert mask.any()
    assert not mask[0, 0]
    # Amplitudes of real images are even; so is the mask.
    assert mask.equal(mask.flip(0, 1).roll((1, 1), (0, 1)))
    assert mask.equal(harmonic_mask(width, height, period=8, half_width=half_width).T)
    assert (mask >= harmonic_mask(height, width, period=8)).all()


def test_a_shuffle_pattern_lies_inside_and_smooth_content_outside() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = harmonic_mask(64, 48, period=8)
    # Channels that differ by a constant, seen through the shuffle itself: any pattern of period 8.
    pattern = F.pixel_shuffle(torch.randn(1, 64, 1, 1, generator=generator).expand(1, 64, 8, 6), 8)[0, 0]
    # And one of period 8 across, as strong in each row as chance has it.
    striped = pattern[:1] * torch.randn(64, 1, generator=generator)
    for image in (pattern, striped - striped.mean(1, keepdim=True)):
        amplitude = torch.fft.fft2(image).abs()
        amplitude[0, 0] = 0.0
        assert float(amplitude[~mask].max()) < 1e-5 * float(amplitude[mask].max())
    y, x = torch.arange(64)[:, None] / 64, torch.arange(48)[None] / 48
    smooth = torch.cos(2 * math.pi * (3 * y + 2 * x)) + torch.sin(2 * math.pi * y) + 0.3
    assert masked_spectrum(smooth[None, None], torch.zeros(1, 1, 64, 48), period=8).tolist() == pytest.approx(
        [0.0], abs=1e-6
    )


def test_hand_computed() -> None:
    # A wave of amplitude 1 at 1/8 down a 16 x 8 image: two bins of 16 * 8 / 2 / sqrt(16 * 8) = sqrt(32) each.
    wave = torch.cos(2 * math.pi * torch.arange(16) / 8)[:, None].expand(16, 8)
    # Masked: 7 rows of 16 whole, of the other 9 rows the columns 1 to 7.
    num_masked = 7 * 8 + 9 * 7
    image = torch.stack([wave, torch.zeros(16, 8)])[None]  # two channels, one of them empty
    loss = masked_spectrum(torch.cat([image, 3 * image]), torch.cat([0 * image, image]), period=8)
    assert loss.tolist() == pytest.approx(
        [2 * math.sqrt(32) / num_masked / 2, 2 * 2 * math.sqrt(32) / num_masked / 2], rel=1e-5
    )


def test_gradients_reach_the_output_alone_and_weaken_the_pattern() -> None:
    pattern = F.pixel_shuffle(
        torch.randn(1, 64, 1, 1, generator=torch.Generator().manual_seed(0)).expand(1, 64, 2, 2), 8
    )
    output, target = (pattern + 0.5).requires_grad_(), torch.full((1, 1, 16, 16), 0.5, requires_grad=True)
    loss = masked_spectrum(output, target, period=8)
    loss.sum().backward()
    assert target.grad is None
    assert output.grad is not None
    assert float((output.grad * pattern).sum()) > 0.0
    lower = masked_spectrum(output.detach() - 0.1 * output.grad / output.grad.abs().max(), target, period=8)
    assert float(lower) < float(loss.detach())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), factor=st.floats(0.1, 10.0), shift=st.integers(0, 20))
def test_scale_shift_and_sign(seed: int, factor: float, shift: int) -> None:
    output, target = torch.randn(2, 2, 3, 20, 24, generator=torch.Generator().manual_seed(seed))
    values = masked_spectrum(output, target, period=8)
    assert (values >= 0.0).all()
    torch.testing.assert_close(masked_spectrum(factor * output, factor * target, period=8), factor * values)
    torch.testing.assert_close(masked_spectrum(output.roll(shift, 3), target, period=8), values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(masked_spectrum(output + 1.0, target, period=8), values, rtol=1e-4, atol=1e-5)
    assert masked_spectrum(output, output, period=8).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 1.0, 300.0])
def test_finite_in_half_precision(value: float) -> None:
    output = torch.full((2, 3, 9, 16), value, dtype=torch.bfloat16, requires_grad=True)
    for target in (torch.zeros_like(output), output.detach().flip(0)):
        values = masked_spectrum(output, target, period=8)
        (gradient,) = torch.autograd.grad(values.sum(), output)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient).all()
