"""Kernels: sum 1, point symmetry, values by hand, and what a low-pass passes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_train.data.kernels import FAMILIES, KernelFamily, bell_kernel, random_kernel, random_sinc, sinc_kernel
from gendr_train.degradations import Round

sides = st.integers(1, 10).map(lambda n: 2 * n + 1)
sigmas = st.floats(0.2, 3.0)


@settings(max_examples=60, deadline=None)
@given(sides, st.sampled_from(FAMILIES), sigmas, sigmas, st.floats(0.0, math.pi), st.floats(0.5, 4.0))
def test_bells_are_normalised_and_point_symmetric(
    side: int, family: KernelFamily, along: float, across: float, angle: float, beta: float
) -> None:
    kernel = bell_kernel(side, family, (along, across), angle, beta)
    assert kernel.shape == (side, side)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-6)
    assert float(kernel.max()) == pytest.approx(float(kernel[side // 2, side // 2]))


def test_bells_have_the_values_of_their_formulas() -> None:
    # One pixel from the centre at sigma 1, q is 1; at sigma 2 across, q is 1/4.
    for family, beta, near, far in (
        ("gaussian", 3.0, math.exp(-0.5), math.exp(-0.125)),
        ("generalised", 2.0, math.exp(-0.5), math.exp(-0.5 / 16)),
        ("plateau", 2.0, 0.5, 16 / 17),
    ):
        kernel = bell_kernel(5, family, (1.0, 2.0), 0.0, beta)  # type: ignore[arg-type]
        assert float(kernel[2, 3] / kernel[2, 2]) == pytest.approx(near, rel=1e-5)
        assert float(kernel[3, 2] / kernel[2, 2]) == pytest.approx(far, rel=1e-5)
        turned = bell_kernel(5, family, (1.0, 2.0), math.pi / 2, beta)  # type: ignore[arg-type]
        assert torch.allclose(turned, kernel.T, atol=1e-6)


@pytest.mark.parametrize("cutoff", [1.05, 1.8, 2.6])
def test_a_low_pass_passes_below_its_cutoff_only(cutoff: float) -> None:
    kernel = sinc_kernel(51, cutoff)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(kernel, kernel.T)
    assert torch.allclose(kernel, kernel.flip(0))
    assert float(kernel.min()) < 0.0
    x = torch.arange(-25, 26, dtype=torch.float32)
    response = {share: float((kernel.sum(0) * torch.cos(share * cutoff * x)).sum()) for share in (0.7, 1.2)}
    assert response[0.7] == pytest.approx(1.0, abs=0.15)
    assert abs(response[1.2]) < 0.15


def test_a_low_pass_has_the_values_of_its_formula() -> None:
    # w = 2: k(0) = 4 / (4 pi) = 1 / pi and k(1) = 2 J1(2) / (2 pi), J1(2) = 0.5767248.
    kernel = sinc_kernel(3, 2.0)
    assert float(kernel[1, 2] / kernel[1, 1]) == pytest.approx(0.5767248, rel=1e-5)


def test_drawn_kernels_keep_to_their_sides_and_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    ranges = Round(kernel_px=(5, 9))
    drawn = [random_kernel(ranges, generator) for _ in range(200)] + [random_sinc(ranges, generator) for _ in range(50)]
    assert {len(kernel) for kernel in drawn} == {5, 7, 9}
    assert all(abs(float(kernel.sum()) - 1.0) < 1e-5 for kernel in drawn)
    # Only low-passes go below 0: a tenth of the first 200.
    assert 8 <= sum(float(kernel.min()) < 0.0 for kernel in drawn[:200]) <= 35
    round_only = Round(kernel_weights=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0), sinc_probability=0.0)
    for _ in range(20):
        kernel = random_kernel(round_only, generator)
        assert torch.equal(kernel, kernel.T)
