from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gendr_train.fitting import POSITIONS_PER_WEIGHT, RIDGE, fit_convolution


def inputs(seed: int, channels: int = 5) -> torch.Tensor:
    return torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.5


def convolution(seed: int, channels: int = 5) -> nn.Conv2d:
    conv = nn.Conv2d(channels, 3, 3, padding=1).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
    conv.bias.copy_(torch.randn(3, generator=generator) + 7.0)  # type: ignore[union-attr]
    return conv


def test_a_convolution_is_found_again_from_what_it_gives() -> None:
    truth, fitted = convolution(1), convolution(2)
    fit_convolution(fitted, [(inputs(seed), truth(inputs(seed))) for seed in range(4)])
    unseen = inputs(9)
    torch.testing.assert_close(fitted(unseen), truth(unseen), rtol=0.0, atol=0.01)


def test_what_the_examples_do_not_tell_stays() -> None:
    truth, fitted = convolution(1), convolution(2)
    blind = [x * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])[:, None, None] for x in (inputs(3), inputs(4))]
    before = fitted.weight[:, 4].clone()
    fit_convolution(fitted, [(x, truth(x)) for x in blind])
    torch.testing.assert_close(fitted.weight[:, 4], before)
    assert (fitted.weight[:, :4] - truth.weight[:, :4]).abs().max() < 0.1


def test_a_fit_that_is_right_already_changes_nothing() -> None:
    truth, fitted = convolution(1), convolution(1)
    fit_convolution(fitted, [(inputs(3), truth(inputs(3)))])
    torch.testing.assert_close(fitted.weight, truth.weight, rtol=0.0, atol=1e-5)


def test_no_more_examples_are_taken_than_needed() -> None:
    # 5 x 9 weights and a bias; an example has 2 x 16 x 16 positions.
    needed = -(-POSITIONS_PER_WEIGHT * 46 // 512)
    taken: list[int] = []

    def examples(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for seed in range(count):
            taken.append(seed)
            yield inputs(seed), convolution(1)(inputs(seed))

    enough, endless = convolution(2), convolution(2)
    fit_convolution(enough, examples(needed))
    fit_convolution(endless, examples(1000))
    assert len(taken) == 2 * needed
    assert torch.equal(enough.weight, endless.weight)


def test_one_cell_by_hand() -> None:
    # One channel, one cell: the neighbours are padding, so y = w x + b with x = 2 twice and targets 1 and 4. The bias
    # is free and the input constant, so all of the mean, 2.5, goes to the bias and nothing to the weight.
    conv = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    nn.init.zeros_(conv.weight)
    fit_convolution(conv, [(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), y)) for y in (1.0, 4.0)])
    assert conv.bias is not None
    assert conv.bias.item() == pytest.approx(2.5)
    assert conv.weight.abs().max() < 1e-6


def test_the_penalty_by_hand() -> None:
    # x = -1, 1 and y = -1, 1 in single cells: gram 2 for the centre, 0 for eight neighbours, so the penalty is
    # 2 / 9 RIDGE and w = 2 / (2 + 2 / 9 RIDGE).
    conv = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    nn.init.zeros_(conv.weight)
    fit_convolution(conv, [(torch.full((1, 1, 1, 1), x), torch.full((1, 1, 1, 1), x)) for x in (-1.0, 1.0)])
    assert conv.weight[0, 0, 1, 1].item() == pytest.approx(1.0 / (1.0 + RIDGE / 9.0), abs=1e-6)
