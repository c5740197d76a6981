"""The distance of features: hand-computed values, invariances, and where gradients go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_train.losses.perceptual import perceptual


def test_hand_computed_and_summed_over_maps() -> None:
    first = torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])  # [1, 2, 1, 2]: (3, 4) and (1, 0)
    target = torch.tensor([[[[2.0, 0.0]], [[0.0, 7.0]]]])  # (2, 0) and (0, 7)
    # |(0.6, 0.8) - (1, 0)|^2 = 0.8 and |(1, 0) - (0, 1)|^2 = 2
    assert perceptual([first], [target]).tolist() == pytest.approx([1.4])
    opposite = torch.tensor([[[[5.0]]]])  # a map of its own size; |1 - -1|^2 = 4
    assert perceptual([first, opposite], [target, -opposite]).tolist() == pytest.approx([5.4])


def test_gradients_reach_the_output_alone() -> None:
    output = torch.tensor([[[[1.0]], [[0.0]]]], requires_grad=True)
    target = torch.tensor([[[[0.0]], [[1.0]]]], requires_grad=True)
    perceptual([output], [target]).sum().backward()
    assert target.grad is None
    assert output.grad is not None
    # L = 2 - 2 cos: across the vector, -2 towards the target
    assert output.grad.flatten().tolist() == pytest.approx([0.0, -2.0], abs=1e-5)


def test_different_numbers_of_maps_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        perceptual([torch.ones(1, 1, 1, 1)] * 2, [torch.ones(1, 1, 1, 1)])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), factor=st.floats(0.1, 100.0))
def test_bounded_symmetric_and_blind_to_lengths(seed: int, factor: float) -> None:
    output, target = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    values = perceptual([output], [target])
    assert (values >= 0.0).all()
    assert (values <= 4.0).all()
    torch.testing.assert_close(perceptual([target], [output]), values)
    torch.testing.assert_close(perceptual([factor * output], [target]), values)
    assert perceptual([output], [output]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 1e-6, 300.0])
def test_finite_in_half_precision(value: float) -> None:
    output = torch.full((2, 4, 3, 3), value, dtype=torch.bfloat16, requires_grad=True)
    for target in (torch.zeros_like(output), torch.ones_like(output), -output):
        values = perceptual([output], [target])
        (gradient,) = torch.autograd.grad(values.sum(), output)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient).all()
