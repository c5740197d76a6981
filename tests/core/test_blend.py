"""Blend weights: they sum to 1, never reach 0 and rise no faster than a raised cosine."""

from math import cos, pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendr_core.blend import blend_weights
from gendr_core.geometry import Span, tile_spans


def on_the_axis(spans: list[Span], length: int) -> Tensor:
    """Return the weights of the spans, [num_spans, length], 0 outside each span."""
    axis = torch.zeros(len(spans), length)
    for row, span, weight in zip(axis, spans, blend_weights(spans, length), strict=True):
        row[span.places] = weight
    return axis


@st.composite
def spans_of_an_axis(draw: st.DrawFn, min_overlap: int = 0, max_part: float = 1.0) -> tuple[list[Span], int, int]:
    """Spans, the length of their axis and the least overlap asked for, at most a part of the size."""
    size = draw(st.integers(2, 64))
    overlap = draw(st.integers(min_overlap, min(size - 1, int(size * max_part))))
    length = draw(st.integers(1, size + 30 * (size - overlap)))
    return tile_spans(8 * length, 8 * size, 8 * overlap, 8), 8 * length, 8 * overlap


@settings(deadline=None)
@given(spans_of_an_axis())
def test_weights_are_above_zero_and_sum_to_one(case: tuple[list[Span], int, int]) -> None:
    spans, length, _ = case
    weights = blend_weights(spans, length)
    assert weights.dtype == torch.float32
    assert weights.shape == (len(spans), len(spans[0]))
    assert float(weights.min()) > 0.0
    assert float(weights.max()) <= 1.0
    torch.testing.assert_close(on_the_axis(spans, length).sum(0), torch.ones(length), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "overlap"), [(64, 16), (96, 88), (10_008, 10_000), (19_992, 8)])
def test_weights_of_a_very_long_axis(size: int, overlap: int) -> None:
    length = 20_000
    spans = tile_spans(length, size, overlap, 8)
    total = torch.zeros(length, dtype=torch.float64)  # of more than a thousand weights
    for span, weight in zip(spans, blend_weights(spans, length), strict=True):
        assert float(weight.min()) > 0.0
        total[span.places] += weight
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_ramps_are_raised_cosines_on_inner_edges_only() -> None:
    weights = blend_weights([Span(0, 16), Span(12, 28)], 28)
    ramp = [(1 - cos(pi * (place + 0.5) / 4)) / 2 for place in range(4)]
    torch.testing.assert_close(weights[0], torch.tensor([1.0] * 12 + ramp[::-1]))
    torch.testing.assert_close(weights[1], torch.tensor(ramp + [1.0] * 12))


def test_one_span_or_spans_without_overlap_weigh_one() -> None:
    assert blend_weights([Span(0, 8)], 8).tolist() == [[1.0] * 8]
    assert blend_weights([Span(0, 8), Span(8, 16)], 16).tolist() == [[1.0] * 8] * 2


@settings(deadline=None)
@given(spans_of_an_axis(min_overlap=1, max_part=0.5))
def test_spans_that_differ_join_smoothly(case: tuple[list[Span], int, int]) -> None:
    spans, length, overlap = case
    # Half of what all weights change by is the most that values 0 to 1, one for each span, can make the sum change.
    steps = on_the_axis(spans, length).diff(dim=1).abs().sum(0) / 2
    assert steps.numel() == 0 or float(steps.max()) <= 1.001 * pi / (2 * overlap)


def test_three_spans_over_one_place_are_normalised() -> None:
    spans = tile_spans(120, 64, 16, 8)
    assert spans[0].stop > spans[2].start
    torch.testing.assert_close(on_the_axis(spans, 120).sum(0), torch.ones(120), rtol=0, atol=1e-6)
