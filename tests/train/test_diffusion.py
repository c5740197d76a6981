"""The noise schedule against the core's numbers and against its own inverse."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_core.spec import Prediction, alpha_bar, one_step_coefficients
from gendr_train.diffusion import add_noise, alpha_bars, min_snr_weight, snr, to_clean, training_target

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
TIMESTEPS = st.lists(st.integers(0, 999), min_size=1, max_size=4)


def test_the_schedule_is_the_cores() -> None:
    table = alpha_bars()
    assert table.shape == (1000,)
    assert table.dtype == torch.float32
    assert (table.diff() < 0).all()
    assert float(table[354]) == pytest.approx(0.49981740338943415, abs=1e-7)
    assert table[[0, 999]].tolist() == pytest.approx([alpha_bar(0), alpha_bar(999)], abs=1e-7)


def test_noise_hand_computed() -> None:
    clean, noise = torch.tensor([[[[2.0]]], [[[2.0]]]]), torch.tensor([[[[-1.0]]], [[[3.0]]]])
    noised = add_noise(clean, noise, torch.tensor([354, 999]))
    # Roots of ab and of 1 - ab, where ab is 0.499817 and 0.004660.
    assert noised.flatten().tolist() == pytest.approx([2 * 0.706977 - 0.707236, 2 * 0.068265 + 3 * 0.997667], abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(timesteps=TIMESTEPS, prediction=st.sampled_from(PREDICTIONS), seed=st.integers(0, 9))
def test_a_perfect_prediction_gives_the_clean_latent_back(
    timesteps: list[int], prediction: Prediction, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, len(timesteps), 3, 2, 2, generator=generator)
    timestep = torch.tensor(timesteps)
    noised = add_noise(clean, noise, timestep)
    predicted = training_target(clean, noise, timestep, prediction)
    # epsilon divides by sqrt(ab), 0.068 at the end: float32 errors grow fifteenfold.
    torch.testing.assert_close(to_clean(noised, predicted, timestep, prediction), clean, rtol=0, atol=2e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_step_of_the_core_is_the_same_formula(prediction: Prediction) -> None:
    noised, predicted = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    clean = to_clean(noised, predicted, torch.tensor([200]), prediction)
    assert clean[0].tolist() == pytest.approx(one_step_coefficients(prediction, alpha_bar(200)), rel=1e-6)


@pytest.mark.parametrize(("timestep", "expected"), [(354, 0.99927), (0, 1 / 0.00085 - 1), (999, 0.0046817)])
def test_snr(timestep: int, expected: float) -> None:
    assert float(snr(torch.tensor([timestep]))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_errors_of_the_clean_latent_alike(gamma: float) -> None:
    timestep = torch.tensor([0, 200, 354, 999])
    noised = torch.zeros(4, 1)
    for prediction in PREDICTIONS:
        error = to_clean(noised, torch.ones(4, 1), timestep, prediction).square()[:, 0]
        weight = min_snr_weight(timestep, gamma, prediction)
        torch.testing.assert_close(weight, error * snr(timestep).clamp(max=gamma), rtol=1e-5, atol=1e-7)
    assert float(min_snr_weight(timestep, gamma, "epsilon")[3]) == 1.0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_half_precision_is_computed_in_float_and_gradients_reach_both(prediction: Prediction) -> None:
    timestep = torch.tensor([999])
    clean, predicted = torch.ones(2, 1, 4, dtype=torch.bfloat16).unbind()
    clean.requires_grad_()
    predicted.requires_grad_()
    noised = add_noise(clean, torch.ones_like(clean), timestep)
    restored = to_clean(noised, predicted, timestep, prediction)
    restored.sum().backward()
    assert noised.dtype == restored.dtype == training_target(clean, clean, timestep, prediction).dtype == torch.float32
    signal, spread = math.sqrt(alpha_bar(999)), math.sqrt(1 - alpha_bar(999))
    skip, out = (1.0, -spread / signal) if prediction == "epsilon" else (signal**2, -spread)
    assert clean.grad is not None
    assert predicted.grad is not None
    assert float(clean.grad[0, 0]) == pytest.approx(skip, rel=1e-2)
    assert float(predicted.grad[0, 0]) == pytest.approx(out, rel=1e-2)
