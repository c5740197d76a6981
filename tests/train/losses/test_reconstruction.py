"""Image distances against hand-computed values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gendr_train.losses import reconstruction

LOSSES = [reconstruction.l1, reconstruction.charbonnier, reconstruction.gradient, reconstruction.spectrum]
OUTPUT = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
TARGET = torch.tensor([[[[0.0, 2.0], [1.0, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
# difference of the first sample: [[1, 0], [2, 4]]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (reconstruction.l1, 7 / 4),
        # Far from zero it is the absolute difference less eps, where there is one.
        (reconstruction.charbonnier, 7 / 4 - 1e-3 + 1e-3 / 4),
        # across: |0-1|, |4-2|; down: |2-1|, |4-0|
        (reconstruction.gradient, 3 / 2 + 5 / 2),
        # sums over both axes, halved: 7, 1+2-4 = -1; 1-6 = -5, 1-0-2+4 = 3
        (reconstruction.spectrum, (7 + 1 + 5 + 3) / 2 / 4),
    ],
)
def test_hand_computed(loss: Callable[[Tensor, Tensor], Tensor], expected: float) -> None:
    values = loss(OUTPUT, TARGET)
    assert values.shape == (2,)
    assert float(values[0]) == pytest.approx(expected, abs=2e-6)
    assert float(values[1]) == 0.0


def test_chroma_sees_colour_and_not_lightness() -> None:
    gray, red = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1.0
    # Y = 0.299, so the colour differences are 0.701, -0.299 and -0.299.
    values = reconstruction.chroma(torch.cat([gray, red]), torch.zeros(2, 3, 4, 4))
    assert values.tolist() == pytest.approx([0.0, (0.701 + 2 * 0.299) / 3], abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    output = OUTPUT.to(torch.bfloat16).requires_grad_()
    values = loss(output, TARGET.to(torch.bfloat16))
    values.sum().backward()
    assert values.dtype == torch.float32
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()
