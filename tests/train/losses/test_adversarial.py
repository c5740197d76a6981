"""The adversarial game: hand-computed values, directions, and where it stands still."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gendr_train.losses.adversarial import fool, tell_fake, tell_real

Loss = Callable[[Tensor], Tensor]


@pytest.mark.parametrize(("loss", "sign"), [(fool, -1.0), (tell_real, -1.0), (tell_fake, 1.0)])
def test_hand_computed_with_gradient(loss: Loss, sign: float) -> None:
    logits = torch.tensor([[[[0.0, 0.0]]], [[[math.log(3.0), -math.log(3.0)]]]], requires_grad=True)
    values = loss(logits)
    values.sum().backward()
    # ln 2; (ln(1 + 1/3) + ln(1 + 3)) / 2, the same for either sign
    assert values.tolist() == pytest.approx([math.log(2), (math.log(4 / 3) + math.log(4)) / 2])
    assert logits.grad is not None
    steps = [
        sign * 0.5 / 2,
        sign * 0.5 / 2,
        sign * (0.75 if sign > 0 else 0.25) / 2,
        sign * (0.25 if sign > 0 else 0.75) / 2,
    ]
    assert logits.grad.flatten().tolist() == pytest.approx(steps)


def test_an_adversary_that_cannot_tell_rests_at_zero() -> None:
    logits = torch.zeros(1, 1, requires_grad=True)
    (tell_real(logits) + tell_fake(logits)).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad) == 0.0


@given(low=st.floats(-50, 50), rise=st.floats(0.1, 50))
def test_monotone_and_not_negative(low: float, rise: float) -> None:
    logits = torch.tensor([[low], [low + rise]])
    for loss, falls in ((fool, True), (tell_real, True), (tell_fake, False)):
        first, second = loss(logits).tolist()
        assert min(first, second) >= 0.0
        assert first >= second if falls else first <= second


@pytest.mark.parametrize("loss", [fool, tell_real, tell_fake])
def test_finite_in_half_precision(loss: Loss) -> None:
    logits = torch.tensor([[-3e38, 3e38], [0.0, 1e-38]], dtype=torch.bfloat16).requires_grad_()
    values = loss(logits)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert logits.grad is not None
    assert torch.isfinite(values).all()
    assert torch.isfinite(logits.grad).all()
