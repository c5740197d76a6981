"""Weights that join overlapping spans of an axis into one seamless whole.

Role: ``tiling`` weighs the tiles of a frame by the products of the weights of its two axes. They sum to 1 along each
axis, so the products sum to 1 over the frame, and nothing is left to divide by.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import pi

import torch
from torch import Tensor

from .geometry import Span


def blend_weights(spans: Sequence[Span], length: int) -> Tensor:
    """Return the weights of each span's places, [num_spans, span length], float32, on the CPU; above 0, at most 1.

    At every place of the axis the weights of the spans that cover it sum to 1. Across the R places of an overlap they
    rise as (1 - cos(pi * (i + 1/2) / R)) / 2, i = 0 ... R - 1, and fall alike: the halves keep them off 0. The ends
    of the axis have no ramp. Spans that differ by d then join in steps of at most d * pi / (2 * R) per place (to
    0.1 %, measured), where R is the narrowest overlap, or half a span if that is less.

    Args:
        spans: in order, all of one length, covering 0 to ``length``; as ``tile_spans`` makes them. Places may be
            covered by more than two.
        length: places of the axis.
    """
    weights = torch.ones(len(spans), len(spans[0]), dtype=torch.float64)
    for before, (left, right) in enumerate(pairwise(spans)):
        overlap = left.stop - right.start
        # sin^2(x / 2) is (1 - cos x) / 2 without the cancellation near 0.
        ramp = torch.sin((torch.arange(overlap, dtype=torch.float64) + 0.5) * (pi / 2 / max(1, overlap))) ** 2
        weights[before, len(left) - overlap :] *= ramp.flip(0)
        weights[before + 1, :overlap] *= ramp
    # Two ramps add up to 1 by themselves; three or more do not.
    total = torch.zeros(length, dtype=torch.float64)
    for span, weight in zip(spans, weights, strict=True):
        total[span.places] += weight
    for span, weight in zip(spans, weights, strict=True):
        weight /= total[span.places]
    return weights.to(torch.float32)
