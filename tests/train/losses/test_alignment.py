"""REPA's cosine: hand-computed values, resizing, and where gradients go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_train.losses.alignment import alignment


def test_hand_computed() -> None:
    projected = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]], [[[1.0, 1.0]], [[2.0, 2.0]]]])  # [2, 2, 1, 2]
    target = torch.tensor([[[[2.0, 5.0]], [[0.0, 0.0]]], [[[-1.0, 2.0]], [[-2.0, -1.0]]]])
    # The cosines are 1 and 3/5, then -1 and 0.
    assert alignment(projected, target).tolist() == pytest.approx([-0.8, 0.5])


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (3, 5), (1, 1)])
def test_a_target_of_another_size_is_resized(size: tuple[int, int]) -> None:
    direction = torch.tensor([1.0, 2.0, -2.0]).reshape(1, 3, 1, 1)
    assert alignment(direction.expand(1, 3, 2, 2), direction.expand(1, 3, *size)).tolist() == pytest.approx([-1.0])


def test_resizing_sees_every_place_of_the_target() -> None:
    # (1, 0) in the first column of four, (0, 1) elsewhere. The triangle of half-width 4 around the middle weighs the
    # columns 5/8, 7/8, 7/8, 5/8 of 3: (5/24, 19/24). Without antialiasing only the middle two would count: (0, 1).
    first = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 1, 4, 4)
    target = torch.cat([first, 1.0 - first], dim=1)
    values = alignment(torch.tensor([[[[1.0]], [[0.0]]]]), target)
    assert values.tolist() == pytest.approx([-5 / (5**2 + 19**2) ** 0.5])


def test_gradients_turn_the_projection_towards_the_target_and_leave_the_target() -> None:
    projected = torch.tensor([[[[1.0]], [[0.0]]]], requires_grad=True)
    target = torch.tensor([[[[1.0]], [[1.0]]]], requires_grad=True)
    alignment(projected, target).sum().backward()
    assert target.grad is None
    assert projected.grad is not None
    # Across the vector only, minus the target's component there, 1 / sqrt 2.
    assert projected.grad.flatten().tolist() == pytest.approx([0.0, -(0.5**0.5)], abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), factor=st.floats(0.1, 100.0))
def test_bounded_and_blind_to_lengths(seed: int, factor: float) -> None:
    projected, target = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    values = alignment(projected, target)
    assert (values.abs() <= 1.0 + 1e-6).all()
    torch.testing.assert_close(alignment(factor * projected, target / factor), values)
    torch.testing.assert_close(alignment(target, target), torch.full((2,), -1.0))


@pytest.mark.parametrize("value", [0.0, 1e-6, 300.0])
def test_finite_in_half_precision(value: float) -> None:
    projected = torch.full((2, 4, 3, 3), value, dtype=torch.bfloat16, requires_grad=True)
    for target in (torch.zeros(2, 4, 6, 6, dtype=torch.bfloat16), torch.ones(2, 4, 2, 2, dtype=torch.bfloat16)):
        values = alignment(projected, target)
        (gradient,) = torch.autograd.grad(values.sum(), projected)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient).all()
