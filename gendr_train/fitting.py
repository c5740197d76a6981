"""A start for a convolution that has to take the place of something else: what it should give is known on examples.

Role: called by ``stages.adc`` and ``stages.pix`` on a fresh run, where ``whitening`` would forget what a teacher knows.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

RIDGE = 1e-4
"""Penalty on a change of the weights, in mean squares of the inputs: what the examples do not tell stays as it is."""
POSITIONS_PER_WEIGHT = 16
"""After that many for each weight of an output channel no further examples are taken: least squares on N examples adds
about (weights / N) of the error that no weights could avoid, here a sixteenth, which training soon undoes."""

# torch declares no types for it.
_solve = cast("Callable[[Tensor, Tensor], Tensor]", torch.linalg.solve)  # pyright: ignore[reportUnknownMemberType]


# min_d sum_n |(w + d) x_n + b - y_n|^2 + N r |d|^2,  x_n = the 3x3 neighbourhood, r = RIDGE * mean x^2
# normal equations: (X^T X + N r I) d = X^T (Y - X w), in float64; the bias is a column of ones without penalty
@torch.no_grad()
def fit_convolution(conv: nn.Conv2d, examples: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Change a 3x3 convolution with padding 1 as little as its targets allow, in place: ridge regression.

    Args:
        conv: has a bias; where it stands now is what the penalty draws it to.
        examples: pairs of what it sees, [B, C_in, h, w], and what it should give, [B, C_out, h, w]; taken one by one,
            and no more than are needed (``POSITIONS_PER_WEIGHT``), so a generator may compute them on the way.
    """
    assert conv.bias is not None, "the networks' convolutions carry a bias"
    start = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], dim=1).T.double()
    gram, moment = start.new_zeros(len(start), len(start)), torch.zeros_like(start)
    wanted = POSITIONS_PER_WEIGHT * len(start)
    for inputs, targets in examples:
        rows = functional.pad(functional.unfold(inputs.double(), 3, padding=1), (0, 0, 0, 1), value=1.0)
        rows = rows.transpose(1, 2).flatten(0, 1)
        gram += rows.T @ rows
        moment += rows.T @ targets.double().flatten(2).transpose(1, 2).flatten(0, 1)
        wanted -= len(rows)
        if wanted <= 0:
            break
    penalty = gram.diagonal()[:-1].mean() * RIDGE
    damped = gram.clone()
    damped.diagonal()[:-1].add_(penalty)
    fitted = (start + _solve(damped, moment - gram @ start)).T
    conv.weight.copy_(fitted[:, :-1].reshape(conv.weight.shape))
    conv.bias.copy_(fitted[:, -1])
