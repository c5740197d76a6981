"""CiD: hand-computed values, routes of gradients, and its fixed points on Gaussians, those that repel included.

The toy: originals z_h = s u, restored latents y = a (rho u + sqrt(1 - rho^2) u'), and the exact scores of both at the
noisy y: f = k(s) z_t, g = k(a) z_t, k(r) = p r^2 / (p^2 r^2 + q^2), p = sqrt(ab), q = sqrt(1 - ab); guidance multiplies
f by a number. With D = k(s) - k(a) and no guidance the loss is

    L / w = D (k(s) (p^2 a^2 + q^2) - p a s rho) - xi D^2 (p^2 a^2 + q^2)
    dL/da / w = p D (2 p a (k(s) - xi D) - s rho)               scores fixed, as the generator's optimiser sees them

so a = s is stationary for every xi, and attracts if and only if p k(s) < rho / 2. Elsewhere the second factor has a
root below s, where the loss comes to rest instead: the target, unlike SiD's, does not move along with the generator.
"""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendr_train.diffusion import add_noise, alpha_bars
from gendr_train.losses.consistency import cid
from gendr_train.losses.score_identity import inverse_distance

TARGET = torch.tensor([[1.0, -1.0]])
REAL = torch.tensor([[2.0, 1.0]])
GUIDED = torch.tensor([[3.0, 0.0]])
FAKE = torch.tensor([[0.0, 2.0]])
# w = 1 / ((1 + 2) / 2) = 2/3, f - g = [2, -1], c - g = [3, -2], c - z_h = [2, 1]; L1 = w 5/2, L3 = w (6 - 2) / 2
NOISY, QUIET = 600, 200
"""p k(1) = ab = 0.164 and 0.754: on either side of 1/2."""


def gain(deviation: float, timestep: int) -> float:
    power = float(alpha_bars()[timestep])
    return math.sqrt(power) * deviation**2 / (power * deviation**2 + 1 - power)


def slope(
    scale: float, timestep: int, *, xi: float = 1.0, rho: float = 1.0, guidance: float = 1.0, deviation: float = 1.0
) -> float:
    """Return dL/da / w at a = ``scale``."""
    generator = torch.Generator().manual_seed(0)
    shared, own, noise = torch.randn(3, 1, 50_000, generator=generator)
    target, parameter = deviation * shared, torch.tensor(scale, requires_grad=True)
    restored = parameter * (rho * shared + math.sqrt(1 - rho**2) * own)
    noised = add_noise(restored, noise, torch.tensor([timestep]))
    real, fake = gain(deviation, timestep) * noised, gain(scale, timestep) * noised
    loss = cid(target, real, guidance * real, fake, xi=xi) / inverse_distance(target, real)
    (gradient,) = torch.autograd.grad(loss.sum(), parameter)
    return float(gradient)


@pytest.mark.parametrize("xi", [0.0, 1.0, 1.2])
def test_hand_computed(xi: float) -> None:
    values = cid(TARGET, REAL, GUIDED, FAKE, xi=xi)
    assert values.tolist() == pytest.approx([2 / 3 * (2 - xi * 5 / 2)])


def test_gradients_reach_the_predictions_and_neither_target_nor_weight() -> None:
    leaves = [x.clone().requires_grad_() for x in (TARGET, REAL, GUIDED, FAKE)]
    loss = cid(*leaves, xi=1.0).sum()
    target, real, guided, fake = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert target is None
    # w/2 = 1/3 times -2 (f - g), then (c - g) + (c - z_h), then -(c - z_h) + 2 (f - g)
    assert real[0].tolist() == pytest.approx([-4 / 3, 2 / 3])
    assert guided[0].tolist() == pytest.approx([5 / 3, -1 / 3])
    assert fake[0].tolist() == pytest.approx([2 / 3, -3 / 3])


@pytest.mark.parametrize("rho", [0.7, 1.0])
@pytest.mark.parametrize("timestep", [NOISY, QUIET])
def test_the_slope_is_the_one_computed_by_hand(timestep: int, rho: float) -> None:
    signal = math.sqrt(float(alpha_bars()[timestep]))
    for scale, xi in ((0.6, 1.0), (0.9, 0.0), (1.3, 1.2)):
        gap = gain(1.0, timestep) - gain(scale, timestep)
        expected = signal * gap * (2 * signal * scale * (gain(1.0, timestep) - xi * gap) - rho)
        assert slope(scale, timestep, xi=xi, rho=rho) == pytest.approx(expected, abs=0.02 * abs(gap))


@pytest.mark.parametrize("xi", [0.0, 1.0, 1.2])
@pytest.mark.parametrize("timestep", [20, QUIET, NOISY, 980])
def test_latents_distributed_like_the_originals_are_stationary(timestep: int, xi: float) -> None:
    for rho in (0.0, 0.7, 1.0):
        assert slope(1.0, timestep, xi=xi, rho=rho) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("xi", [0.0, 1.0])
def test_that_point_attracts_where_noise_prevails_and_repels_where_it_does_not(xi: float) -> None:
    assert slope(0.9, NOISY, xi=xi) < 0.0 < slope(1.1, NOISY, xi=xi)
    assert slope(1.1, QUIET, xi=xi) < 0.0 < slope(0.9, QUIET, xi=xi)
    # The same noise repels where the pair agrees less: 0.164 < rho / 2 fails below rho = 0.33.
    assert slope(1.1, NOISY, xi=xi, rho=0.2) < 0.0 < slope(0.9, NOISY, xi=xi, rho=0.2)


def test_at_low_noise_it_comes_to_rest_below_the_originals() -> None:
    # xi = 0: the second factor vanishes at a = rho / (2 p k(1)) = rho / (2 * 0.753692).
    rest = 0.5 / float(alpha_bars()[QUIET])
    assert rest == pytest.approx(0.6634, abs=1e-4)
    assert slope(rest, QUIET, xi=0.0) == pytest.approx(0.0, abs=2e-3)
    assert slope(0.9 * rest, QUIET, xi=0.0) < 0.0 < slope(1.1 * rest, QUIET, xi=0.0)


@pytest.mark.parametrize("xi", [0.0, 1.0])
def test_descent_at_high_noise_ends_at_the_originals(xi: float) -> None:
    scale = 0.6
    for _ in range(100):
        scale -= 3.0 * slope(scale, NOISY, xi=xi)
    assert scale == pytest.approx(1.0, abs=0.01)


def test_guidance_moves_the_resting_point_above_the_originals() -> None:
    assert slope(1.0, NOISY, guidance=1.1) < 0.0
    # L3 alone vanishes where k(a) = 1.1 k(1).
    rest = next(0.01 * i for i in range(100, 200) if gain(0.01 * i, NOISY) > 1.1 * gain(1.0, NOISY))
    assert rest > 1.0
    assert slope(0.95 * rest, NOISY, guidance=1.1, xi=0.0) < 0.0 < slope(1.05 * rest, NOISY, guidance=1.1, xi=0.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), factor=st.floats(0.1, 10.0), xi=st.floats(0.0, 2.0))
def test_scaling_and_signs(seed: int, factor: float, xi: float) -> None:
    target, real, guided, fake = torch.randn(4, 2, 4, 3, generator=torch.Generator().manual_seed(seed))
    scaled = [factor * x for x in (target, real, guided, fake)]
    torch.testing.assert_close(cid(*scaled, xi=xi), factor * cid(target, real, guided, fake, xi=xi))
    # L1 is never negative, and alone where guided and fake agree; L3 is alone at xi = 0.
    assert (cid(target, real, fake, fake, xi=xi) <= 0.0).all()
    assert cid(target, real, real, real, xi=xi).tolist() == [0.0, 0.0]
    apart = cid(target, real, guided, fake, xi=0.0) - cid(target, real, guided, fake, xi=1.0)
    torch.testing.assert_close(apart, inverse_distance(target, real) * (real - fake).square().flatten(1).mean(1))


@pytest.mark.parametrize("values", [(0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 2.0), (300.0, -300.0, 300.0, -300.0)])
def test_finite_in_half_precision(values: tuple[float, float, float, float]) -> None:
    leaves: list[Tensor] = [torch.full((2, 3), v, dtype=torch.bfloat16, requires_grad=True) for v in values]
    result = partial(cid, xi=1.0)(*leaves)
    assert result.shape == (2,)
    assert result.dtype == torch.float32
    found = torch.autograd.grad(result.sum(), leaves[1:])
    assert all(torch.isfinite(x).all() for x in (result, *found))
