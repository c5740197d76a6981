"""Sizes and paddings: exact tables for rounding, properties for everything else."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_core.config import RestoreOptions
from gendr_core.errors import OptionError
from gendr_core.geometry import (
    MAX_EDGE,
    PAD_MULTIPLE,
    Extent,
    Padding,
    Span,
    output_extent,
    pad_multiple,
    padding_to_multiple,
    partition,
    tile_spans,
)
from gendr_core.spec import ModelSpec, UNetArch

edges = st.integers(1, 4096)
extents = st.builds(Extent, edges, edges)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (Extent(7, 13), RestoreOptions(), Extent(28, 52)),
        (Extent(513, 1021), RestoreOptions(scale=1.5), Extent(770, 1532)),  # 769.5 and 1531.5: halves go up
        (Extent(5, 15), RestoreOptions(scale=1.1), Extent(6, 17)),  # 5.5 and 16.5, which floats may miss
        (Extent(1, 1), RestoreOptions(scale=0.25), Extent(1, 1)),
        (Extent(3, 1000), RestoreOptions(longest_edge=10), Extent(1, 10)),  # 0.03 of a pixel is a pixel
        (Extent(480, 640), RestoreOptions(longest_edge=1920), Extent(1440, 1920)),
        (Extent(480, 640), RestoreOptions(shortest_edge=1080), Extent(1080, 1440)),
        (Extent(640, 480), RestoreOptions(shortest_edge=480), Extent(640, 480)),
    ],
)
def test_output_extent_table(source: Extent, options: RestoreOptions, expected: Extent) -> None:
    assert output_extent(source, options, default_scale=4.0) == expected


@settings(deadline=None)
@given(extents, st.integers(1, MAX_EDGE))
def test_longest_edge_comes_out_exactly(source: Extent, edge: int) -> None:
    output = output_extent(source, RestoreOptions(longest_edge=edge), default_scale=4.0)
    assert max(output.height, output.width) == edge
    assert min(output.height, output.width) >= 1
    assert (output.height >= output.width) == (source.height >= source.width) or output.height == output.width


@settings(deadline=None)
@given(extents, st.floats(0.25, 8.0))
def test_scaled_edges_are_within_half_a_pixel(source: Extent, scale: float) -> None:
    output = output_extent(source, RestoreOptions(scale=scale), default_scale=4.0)
    for before, after in ((source.height, output.height), (source.width, output.width)):
        assert abs(after - before * scale) <= 0.5 + 1e-9 or after == 1


def test_output_beyond_the_cap_is_refused_with_numbers() -> None:
    with pytest.raises(OptionError, match=r"32768.*48000x4 from an input of 12000x1 at 4 times"):
        output_extent(Extent(1, 12000), RestoreOptions(), default_scale=4.0)
    assert output_extent(Extent(1, MAX_EDGE // 4), RestoreOptions(), default_scale=4.0).width == MAX_EDGE


@settings(deadline=None)
@given(extents, st.integers(1, 128))
def test_padding_is_the_least_and_even(extent: Extent, multiple: int) -> None:
    padding = padding_to_multiple(extent, multiple)
    padded = padding.around(extent)
    assert padded.height % multiple == padded.width % multiple == 0
    assert padded.height - extent.height < multiple
    assert padded.width - extent.width < multiple
    assert padding.right - padding.left in (0, 1)
    assert padding.bottom - padding.top in (0, 1)


@pytest.mark.parametrize(
    ("levels", "cell_px", "expected"), [(4, 8, 64), (5, 4, 64), (2, 8, 64), (1, 2, 64), (5, 8, 128), (4, 16, 128)]
)
def test_edges_divide_by_a_cell_times_the_strides_of_the_unet(levels: int, cell_px: int, expected: int) -> None:
    arch = UNetArch(block_out_channels=(64,) * levels, attention_levels=(False,) * levels)
    assert pad_multiple(ModelSpec(arch=arch, cell_px=cell_px)) == expected


def test_odd_padding_goes_right_and_down() -> None:
    assert padding_to_multiple(Extent(1, 63), PAD_MULTIPLE) == Padding(left=0, right=1, top=31, bottom=32)


def test_span_arithmetic() -> None:
    span = Span(8, 24)
    assert len(span) == 16
    assert span.widened(3, 5, 100) == Span(5, 29)
    assert span.widened(10, 10, 30) == Span(0, 30)
    assert span.times(8) == Span(64, 192)
    assert list(range(100))[span.places] == list(range(8, 24))
    assert list(range(5, 29))[span.within(Span(5, 29))] == list(range(8, 24))


@given(st.integers(0, 20_000), st.integers(1, 500))
def test_partition_covers_each_place_once(length: int, size: int) -> None:
    spans = partition(length, size)
    assert [place for span in spans for place in range(span.start, span.stop)] == list(range(length))
    assert all(len(span) == size for span in spans[:-1])
    assert all(1 <= len(span) <= size for span in spans)


@st.composite
def tilings(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Length, size, overlap and multiple, as ``tile_spans`` takes them."""
    multiple = draw(st.sampled_from([1, 8, 64]))
    size = draw(st.integers(1, 40))
    overlap = draw(st.integers(0, size - 1))
    return draw(st.integers(1, 20_000)), size * multiple, overlap * multiple, multiple


@settings(deadline=None)
@given(tilings())
def test_tile_spans_cover_the_axis_with_the_overlap_asked(tiling: tuple[int, int, int, int]) -> None:
    length, size, overlap, _ = tiling
    spans = tile_spans(*tiling)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert {len(span) for span in spans} == {min(size, length)}
    for left, right in pairwise(spans):
        assert left.start < right.start
        assert left.stop - right.start >= overlap


@settings(deadline=None)
@given(tilings())
def test_tile_spans_are_as_few_as_can_be(tiling: tuple[int, int, int, int]) -> None:
    length, size, overlap, _ = tiling
    # Each span after the first brings at most size - overlap new places.
    fewest = 1 if length <= size else -(-(length - overlap) // (size - overlap))
    assert len(tile_spans(*tiling)) == fewest


@settings(deadline=None)
@given(tilings())
def test_tile_spans_start_at_multiples_evenly(tiling: tuple[int, int, int, int]) -> None:
    length, size, overlap, multiple = tiling
    assert all(span.start % multiple == 0 for span in tile_spans(*tiling)[:-1])
    spans = tile_spans(-(-length // multiple) * multiple, size, overlap, multiple)
    assert all(span.start % multiple == 0 for span in spans)
    distances = {right.start - left.start for left, right in pairwise(spans)}
    assert not distances or max(distances) - min(distances) <= multiple


@pytest.mark.parametrize(
    ("length", "size", "overlap", "expected"),
    [
        (64, 64, 16, [Span(0, 64)]),
        (40, 64, 16, [Span(0, 40)]),
        (72, 64, 16, [Span(0, 64), Span(8, 72)]),
        (112, 64, 16, [Span(0, 64), Span(48, 112)]),
        (120, 64, 16, [Span(0, 64), Span(24, 88), Span(56, 120)]),  # not 0, 48, 56: the overlaps are alike
        (115, 64, 16, [Span(0, 64), Span(24, 88), Span(51, 115)]),  # no multiple of 8: covered all the same
        (32, 16, 0, [Span(0, 16), Span(16, 32)]),
    ],
)
def test_tile_spans_table(length: int, size: int, overlap: int, expected: list[Span]) -> None:
    assert tile_spans(length, size, overlap, 8) == expected
