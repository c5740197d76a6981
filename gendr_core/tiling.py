"""Runs a network over overlapping tiles of a latent and blends the results into one.

Role: the fallback of ``step`` for a frame that does not fit as a whole. It knows no network: progress and cancel are
the business of the function it is given. Left neighbour ``plan``, which says how to tile; ``blend`` has the weights.

What tiles cannot have in common stays apart: group statistics and attention see one tile each. Blending spreads such
differences over the overlaps; it does not remove them.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from .blend import blend_weights
from .geometry import Span, partition, tile_spans
from .plan import Tiles


def _axis_spans(length: int, tiles: Tiles) -> list[Span]:
    return tile_spans(length, tiles.size, tiles.overlap, tiles.multiple)


def tile_grid(height: int, width: int, tiles: Tiles) -> list[tuple[Span, Span]]:
    """Return the rows and the columns of each tile, row by row from the top left; all tiles have one shape.

    Args:
        height: latent cells. With multiples of ``tiles.multiple`` here and below, every tile starts at one, so the
            strided convolutions of a tile sample the same cells as those of the whole frame.
        width: latent cells.
        tiles: sizes in latent cells.
    """
    return list(product(_axis_spans(height, tiles), _axis_spans(width, tiles)))


def run_tiles(
    latent: Tensor,
    tiles: Tiles,
    compute: Callable[[Tensor], Tensor],
    *,
    out_channels: int,
    canvas_device: torch.device | str,
    on_part: Callable[[Tensor, Span, Span], None] | None = None,
) -> Tensor:
    """Return the weighted sum of ``compute`` over all tiles, [1, out_channels, h, w], float32, on ``canvas_device``.

    Sums are taken in float32 whatever ``compute`` returns. Memory: the result, one batch in and its
    results, and one tile in float32. A frame that is a single tile gives ``compute(latent)`` itself, bit for
    bit.

    Args:
        latent: [1, C, h, w], any floating dtype and device. One frame: frames of a batch come one after the other.
        tiles: sizes in latent cells, and how many tiles go through ``compute`` together.
        compute: maps [n, C, th, tw], n from 1 to ``tiles.batch``, to [n, out_channels, th, tw]; any floating dtype
            and device.
        out_channels: channels of what ``compute`` returns.
        canvas_device: where the result is put together.
        on_part: called after each tile with its own result [1, out_channels, th, tw], before blending, and with its
            rows and columns.
    """
    height, width = latent.shape[2:]
    grid = tile_grid(height, width, tiles)
    if len(grid) == 1:
        whole = compute(latent).to(canvas_device, torch.float32)
        if on_part is not None:
            on_part(whole, *grid[0])
        return whole
    down, across = (_weights(length, tiles, canvas_device) for length in (height, width))
    canvas = torch.zeros(1, out_channels, height, width, dtype=torch.float32, device=canvas_device)
    for batch in partition(len(grid), tiles.batch):
        places = grid[batch.places]
        # Handed on by no name, so that the results of one batch are gone when the next one is computed.
        _blend(
            canvas,
            compute(torch.cat([latent[:, :, rows.places, columns.places] for rows, columns in places])),
            [(rows, columns, down[rows][:, None] * across[columns]) for rows, columns in places],
            on_part,
        )
    return canvas


def _blend(
    canvas: Tensor,
    restored: Tensor,
    places: Sequence[tuple[Span, Span, Tensor]],
    on_part: Callable[[Tensor, Span, Span], None] | None,
) -> None:
    """Add each of ``restored`` [n, C, th, tw], times its weights [th, tw], to its place on the canvas."""
    for tile, (rows, columns, weights) in zip(restored, places, strict=True):
        canvas[0, :, rows.places, columns.places].addcmul_(tile.to(canvas.device, torch.float32), weights)
        if on_part is not None:
            on_part(tile[None], rows, columns)


def _weights(length: int, tiles: Tiles, device: torch.device | str) -> dict[Span, Tensor]:
    """Return the blend weights of each span of an axis."""
    spans = _axis_spans(length, tiles)
    return dict(zip(spans, blend_weights(spans, length).to(device), strict=True))
