"""Costs of single layers, against numbers made by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gendr_train.frames import TrainingFrame
from gendr_train.meter import measure_pass


def test_a_linear_layer_keeps_its_bf16_weight_and_input() -> None:
    layer = nn.Linear(32, 16, bias=False, device="meta")
    inputs = torch.empty(8, 32, device="meta", requires_grad=True)
    found = measure_pass(layer, lambda _: layer(inputs), differentiates=True, precision="bf16", frame=TrainingFrame)
    assert found.forward_flops == 2 * 8 * 32 * 16
    assert found.backward_flops == 2 * found.forward_flops
    # Both operands in bf16, and the result.
    assert found.kept_bytes == 2 * (8 * 32 + 32 * 16 + 8 * 16)


def test_a_pass_without_gradients_keeps_nothing() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, device="meta")
    inputs = torch.empty(2, 4, 8, 8, device="meta")
    found = measure_pass(layer, lambda _: layer(inputs), differentiates=False, precision="fp32", frame=TrainingFrame)
    assert found == (2 * 2 * 64 * 6 * 4 * 9, 0, 0, 4 * 2 * 6 * 64)


def test_gradients_to_the_input_alone_are_one_product() -> None:
    layer = nn.Linear(32, 16, device="meta").requires_grad_(False)
    inputs = torch.empty(8, 32, device="meta", requires_grad=True)
    found = measure_pass(layer, lambda _: layer(inputs), differentiates=True, precision="fp32", frame=TrainingFrame)
    assert found.backward_flops == found.forward_flops


@pytest.mark.parametrize("tokens", [64, 256])
def test_attention_never_holds_all_pairs(tokens: int) -> None:
    inputs = torch.empty(1, 1, tokens, 16, device="meta", requires_grad=True)
    found = measure_pass(
        nn.Identity(),
        lambda _: functional.scaled_dot_product_attention(inputs, inputs, inputs),
        differentiates=True,
        precision="fp32",
        frame=TrainingFrame,
    )
    assert found.forward_flops == 2 * 2 * tokens * tokens * 16
    # The result, and one number per row of the softmax.
    assert found.kept_bytes < 4 * tokens * (16 + 4) + 64
