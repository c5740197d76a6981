"""KL against hand-computed values."""

import math

import pytest
import torch

from gendr_train.losses.divergence import kl


def test_zero_for_the_standard_normal_and_hand_computed_elsewhere() -> None:
    mean = torch.tensor([[[[0.0, 0.0]]], [[[2.0, 0.0]]]])
    logvar = torch.tensor([[[[0.0, 0.0]]], [[[0.0, math.log(4.0)]]]])
    values = kl(mean, logvar)
    assert float(values[0]) == 0.0
    # (4 + 1 - 1 - 0) / 2 = 2 and (0 + 4 - 1 - ln 4) / 2, halved over two values
    assert float(values[1]) == pytest.approx((2.0 + (3.0 - math.log(4.0)) / 2) / 2)
