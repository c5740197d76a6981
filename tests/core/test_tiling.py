"""Tiles of a latent: the whole comes back from its parts, without seams, in float32."""

from math import pi, sin

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendr_core.geometry import Span
from gendr_core.plan import Tiles
from gendr_core.tiling import run_tiles, tile_grid


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, int, Tiles]:
    """Height and width of a latent in cells, and tiles for it."""
    size = draw(st.integers(1, 13))
    overlap = draw(st.integers(0, size - 1))
    # At most some ten tiles along an edge.
    edges = st.integers(1, min(25, size + 9 * (size - overlap))).map(lambda edge: 8 * edge)
    return draw(edges), draw(edges), Tiles(size=8 * size, overlap=8 * overlap, batch=draw(st.integers(1, 5)))


def noise(channels: int, height: int, width: int) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def identity(batch: Tensor) -> Tensor:
    return batch


@settings(deadline=None, max_examples=50)
@given(frames())
def test_identity_gives_back_the_latent(frame: tuple[int, int, Tiles]) -> None:
    height, width, tiles = frame
    latent = noise(2, height, width)
    restored = run_tiles(latent, tiles, identity, out_channels=2, canvas_device="cpu")
    torch.testing.assert_close(restored, latent, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(frames())
def test_every_tile_has_one_shape_and_starts_at_a_multiple_of_eight(frame: tuple[int, int, Tiles]) -> None:
    height, width, tiles = frame
    grid = tile_grid(height, width, tiles)
    assert {(len(rows), len(columns)) for rows, columns in grid} == {(min(tiles.size, height), min(tiles.size, width))}
    assert all(rows.start % 8 == columns.start % 8 == 0 for rows, columns in grid)
    assert grid == sorted(grid, key=lambda tile: (tile[0].start, tile[1].start))
    assert grid[0] == (Span(0, len(grid[0][0])), Span(0, len(grid[0][1])))
    assert (grid[-1][0].stop, grid[-1][1].stop) == (height, width)


@settings(deadline=None, max_examples=50)
@given(frames())
def test_batches_hold_each_tile_once_and_never_too_many(frame: tuple[int, int, Tiles]) -> None:
    height, width, tiles = frame
    seen: list[Tensor] = []

    def compute(batch: Tensor) -> Tensor:
        seen.append(batch)
        return batch

    latent = noise(1, height, width)
    run_tiles(latent, tiles, compute, out_channels=1, canvas_device="cpu")
    grid = tile_grid(height, width, tiles)
    assert [len(batch) for batch in seen[:-1]] == [tiles.batch] * (len(seen) - 1)
    assert 1 <= len(seen[-1]) <= tiles.batch
    expected = torch.cat([latent[:, :, rows.places, columns.places] for rows, columns in grid])
    assert torch.equal(torch.cat(seen), expected)


def test_a_constant_stays_constant_to_the_border() -> None:
    tiles = Tiles(size=32, overlap=16, batch=3)
    restored = run_tiles(
        noise(4, 72, 120),
        tiles,
        lambda batch: torch.full((len(batch), 2, *batch.shape[2:]), 0.7),
        out_channels=2,
        canvas_device="cpu",
    )
    torch.testing.assert_close(restored, torch.full((1, 2, 72, 120), 0.7), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_results_are_summed_in_float32(dtype: torch.dtype) -> None:
    latent = noise(2, 64, 88)
    tiles = Tiles(size=32, overlap=16)
    restored = run_tiles(latent, tiles, lambda batch: batch.to(dtype), out_channels=2, canvas_device="cpu")
    # Summed in half precision it would be off by 1e-3.
    torch.testing.assert_close(restored, latent.to(dtype).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_tile_is_the_result_itself(dtype: torch.dtype) -> None:
    latent = noise(3, 40, 64)

    def compute(batch: Tensor) -> Tensor:
        return (batch * 1.7 - 0.3)[:, :2].to(dtype)

    restored = run_tiles(latent, Tiles(size=64, overlap=16), compute, out_channels=2, canvas_device="cpu")
    assert restored.dtype == torch.float32
    assert torch.equal(restored, compute(latent).float())


def test_tiles_see_the_phase_of_the_whole_frame() -> None:
    def blocks(batch: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(batch, 8), scale_factor=8)

    latent = noise(2, 136, 104)
    restored = run_tiles(latent, Tiles(size=40, overlap=16, batch=4), blocks, out_channels=2, canvas_device="cpu")
    torch.testing.assert_close(restored, blocks(latent), rtol=1e-6, atol=1e-6)


def test_false_borders_of_a_convolution_are_blended_out() -> None:
    def smooth(batch: Tensor) -> Tensor:
        return F.conv2d(batch, torch.full((1, 1, 3, 3), 1 / 9), padding=1)  # zeros around each tile: a false border

    latent = torch.ones(1, 1, 96, 112)

    def error(overlap: int) -> float:
        tiles = Tiles(size=48, overlap=overlap)
        return float(
            (run_tiles(latent, tiles, smooth, out_channels=1, canvas_device="cpu") - smooth(latent)).abs().max()
        )

    assert error(0) > 0.3
    # A third is missing along an edge; the outermost place of a ramp has this weight, and two edges may cross.
    assert error(16) < 2 * sin(pi / (4 * 16)) ** 2 / 3


@settings(deadline=None, max_examples=50)
@given(frames(), st.integers(0, 2**31))
def test_tiles_that_differ_join_without_a_seam(frame: tuple[int, int, Tiles], seed: int) -> None:
    height, width, tiles = frame
    generator = torch.Generator().manual_seed(seed)
    restored = run_tiles(
        torch.zeros(1, 1, height, width),
        tiles,
        lambda batch: batch + torch.rand(len(batch), 1, 1, 1, generator=generator),
        out_channels=1,
        canvas_device="cpu",
    )
    # Offsets differ by less than 1; a ramp wider than half a tile is not to be had.
    ramp = min(tiles.overlap, tiles.size / 2)
    steepest = 1.001 * pi / (2 * ramp) if ramp else 1.0
    for dim in (2, 3):
        steps = restored.diff(dim=dim).abs()
        assert steps.numel() == 0 or float(steps.max()) <= steepest + 1e-6


def test_each_part_is_shown_once_it_is_finished() -> None:
    latent = noise(1, 72, 56)
    tiles = Tiles(size=32, overlap=8, batch=4)
    shown: list[tuple[Span, Span]] = []

    def on_part(tile: Tensor, rows: Span, columns: Span) -> None:
        shown.append((rows, columns))
        assert torch.equal(tile, latent[:, :, rows.places, columns.places])

    run_tiles(latent, tiles, identity, out_channels=1, canvas_device="cpu", on_part=on_part)
    assert shown == tile_grid(72, 56, tiles)


def test_a_single_tile_is_shown_too() -> None:
    shown: list[tuple[Span, Span]] = []
    run_tiles(
        noise(1, 16, 24),
        Tiles(size=32, overlap=8),
        identity,
        out_channels=1,
        canvas_device="cpu",
        on_part=lambda _, rows, columns: shown.append((rows, columns)),
    )
    assert shown == [(Span(0, 16), Span(0, 24))]
