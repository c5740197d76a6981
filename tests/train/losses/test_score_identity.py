"""SiD, VSD and the denoising loss: hand-computed values, routes of gradients, and fixed points on Gaussians.

The toy: data N(0, s^2), a generator y = a u with u ~ N(0, 1), and the exact scores of both at the noisy y. A Gaussian
of deviation r has E[z_0 | z_t] = sqrt(ab) r^2 / (ab r^2 + 1 - ab) z_t. The fake score knows the present a, but no
gradient reaches a through that.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendr_train.diffusion import add_noise, alpha_bars
from gendr_train.losses.score_identity import denoising, inverse_distance, sid, vsd

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
DEVIATION = 0.8
LOSSES: list[Loss] = [partial(sid, alpha=0.0), partial(sid, alpha=0.5), partial(sid, alpha=1.0), vsd]
CLEAN = torch.tensor([[1.0, -1.0]])
REAL = torch.tensor([[2.0, 1.0]])
FAKE = torch.tensor([[0.0, 2.0]])
# w = 1 / ((1 + 2) / 2) = 2/3, f - g = [2, -1], f - y = [1, 2]


def posterior_mean(noised: Tensor, deviation: float, timestep: int) -> Tensor:
    power = float(alpha_bars()[timestep])
    return power**0.5 * deviation**2 / (power * deviation**2 + 1 - power) * noised


def slope(loss: Loss, scale: float, timestep: int, size: int = 20_000) -> float:
    """Return the gradient of the loss with respect to the generator's scale, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 1, size, generator=generator)
    parameter = torch.tensor(scale, requires_grad=True)
    clean = parameter * latent
    noised = add_noise(clean, noise, torch.tensor([timestep]))
    real, fake = (posterior_mean(noised, deviation, timestep) for deviation in (DEVIATION, scale))
    (gradient,) = torch.autograd.grad(loss(clean, real, fake).sum(), parameter)
    return float(gradient)


def gradients(loss: Loss) -> list[Tensor | None]:
    leaves = [x.clone().requires_grad_() for x in (CLEAN, REAL, FAKE)]
    return list(torch.autograd.grad(loss(*leaves).sum(), leaves, allow_unused=True))


# <[2, -1] [1, 2]> = 0 and <[2, -1]^2> = 5/2
@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 0.0), (1.0, -2 / 3 * 5 / 2), (1.2, -2 / 3 * 1.2 * 5 / 2)])
def test_sid_hand_computed(alpha: float, expected: float) -> None:
    assert sid(CLEAN, REAL, FAKE, alpha=alpha).tolist() == pytest.approx([expected], abs=1e-6)


def test_sid_routes_gradients_to_all_three_and_not_through_the_weight() -> None:
    clean, real, fake = gradients(partial(sid, alpha=1.0))
    # With alpha = 1 it is w <(f - g) (g - y)>, w/2 = 1/3 a constant; g - y = [-1, 3].
    assert clean is not None
    assert real is not None
    assert fake is not None
    assert clean[0].tolist() == pytest.approx([-2 / 3, 1 / 3])
    assert real[0].tolist() == pytest.approx([-1 / 3, 3 / 3])
    assert fake[0].tolist() == pytest.approx([(1 + 2) / 3, (-3 - 1) / 3])


def test_vsd_gradient_and_value() -> None:
    clean, real, fake = gradients(vsd)
    # w (g - f) / 2: descent raises the first value and lowers the second, as the real score says against the fake one.
    assert clean is not None
    assert clean[0].tolist() == pytest.approx([-2 / 3, 1 / 3])
    assert real is None
    assert fake is None
    assert vsd(CLEAN, REAL, FAKE).tolist() == pytest.approx([0.5 * 4 / 9 * 5 / 2])


def test_vsd_keeps_a_step_far_below_the_rounding_of_the_latent() -> None:
    clean = torch.full((1, 4), 1e4, requires_grad=True)
    vsd(clean, torch.zeros(1, 4), torch.full((1, 4), 1e-2)).sum().backward()
    assert clean.grad is not None
    assert clean.grad[0].tolist() == pytest.approx([1e-2 / 1e4 / 4] * 4)


def test_the_denoising_loss() -> None:
    predicted, target = CLEAN.clone().requires_grad_(), REAL.clone().requires_grad_()
    value = denoising(predicted, target, torch.tensor([3.0]))
    value.sum().backward()
    assert value.tolist() == [3 * (1 + 4) / 2]
    assert denoising(CLEAN, REAL).tolist() == [(1 + 4) / 2]
    assert predicted.grad is not None
    assert predicted.grad[0].tolist() == [-3.0, -6.0]
    assert target.grad is None


def test_the_weight_is_clipped_and_carries_no_gradient() -> None:
    clean = CLEAN.clone().requires_grad_()
    weight = inverse_distance(clean, torch.stack([clean[0], REAL[0]])[:1])
    assert weight.tolist() == pytest.approx([1e5])
    assert not weight.requires_grad
    assert inverse_distance(CLEAN, REAL).tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("timestep", [20, 354, 900])
def test_scale_stays_where_generator_and_data_agree_and_is_driven_there(loss: Loss, timestep: int) -> None:
    assert slope(loss, DEVIATION, timestep) == pytest.approx(0.0, abs=1e-6)
    for scale in (0.3, 0.75):
        assert slope(loss, scale, timestep) < 0.0
    for scale in (0.85, 2.0):
        assert slope(loss, scale, timestep) > 0.0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("start", [0.3, 1.5])
def test_descent_ends_at_the_data(loss: Loss, start: float) -> None:
    scale = start
    for i in range(150):
        scale -= 0.3 * slope(loss, scale, (200, 500, 800)[i % 3], size=500)
    assert scale == pytest.approx(DEVIATION, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), factor=st.floats(0.1, 10.0), alpha=st.floats(0.0, 1.2))
def test_scaling(seed: int, factor: float, alpha: float) -> None:
    clean, real, fake = torch.randn(3, 2, 4, 3, generator=torch.Generator().manual_seed(seed))
    scaled = [factor * x for x in (clean, real, fake)]
    # One power of three is taken away by the weight; VSD has it twice.
    torch.testing.assert_close(sid(*scaled, alpha=alpha), factor * sid(clean, real, fake, alpha=alpha))
    torch.testing.assert_close(vsd(*scaled), vsd(clean, real, fake))
    torch.testing.assert_close(denoising(*scaled[:2]), factor**2 * denoising(clean, real))
    assert (vsd(*scaled) >= 0).all()
    assert sid(clean, real, real, alpha=alpha).tolist() == [0.0, 0.0]
    assert vsd(clean, real, real).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (300.0, -300.0, 300.0)])
def test_finite_in_half_precision(loss: Loss, values: tuple[float, float, float]) -> None:
    leaves = [torch.full((2, 3), value, dtype=torch.bfloat16, requires_grad=True) for value in values]
    result = loss(*leaves)
    assert result.shape == (2,)
    assert result.dtype == torch.float32
    found = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
    assert all(torch.isfinite(x).all() for x in (result, *found) if x is not None)
