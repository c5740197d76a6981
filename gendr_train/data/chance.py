"""Single random numbers from a generator that is passed in.

Role: what ``degrade``, ``kernels`` and ``second_order`` draw their strengths with, in float64.
"""

from collections.abc import Sequence

import torch

from ..degradations import Range


def uniform(span: Range, generator: torch.Generator) -> float:
    """Return a number from low to high, evenly.

    Args:
        span: (low, high).
        generator: its state advances by one draw.
    """
    low, high = span
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def chance(probability: float, generator: torch.Generator) -> bool:
    """Return true with a probability.

    Args:
        probability: 0 to 1.
        generator: its state advances by one draw.
    """
    return float(torch.rand((), generator=generator, dtype=torch.float64)) < probability


def pick(weights: Sequence[float], generator: torch.Generator) -> int:
    """Return an index, each as often as its weight says.

    Args:
        weights: none below 0, sum above 0.
        generator: its state advances.
    """
    return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator))
