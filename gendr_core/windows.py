"""Attention over frames of any size: tokens in bands, self-attention in overlapping windows or over everything.

Role: completes ``bands``; ``BandedFrame`` is what the stages hand to ``UNet`` and ``VAE``. Each window of 64x64 cells,
as many as SD2.1's finest level was trained with, attends to 16 more cells on every side, so that neighbouring windows
see nearly the same (docs/algorithm.md, C4.3). The rule is the same at every level: coarser levels see further, and the
work grows with the number of pixels. The VAE's one attention stays exact: queries in pieces, keys of the whole frame.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .bands import BandedConvolutions, flops_of
from .geometry import Extent, Span
from .host import Meter
from .memory import PROCESSOR
from .nets import Operations, WholeFrame
from .nets.attention import Attention, FrameAttention, SpatialTransformer, TransformerBlock, spread
from .nets.layers import layers_of
from .plan import Bands, Windows

SCORES_PER_BAND_BYTE = 4
"""Query-key pairs in one piece of attention, for each byte that a band may take: half a second at width 512 on two CPU
cores, enough to keep a GPU busy, and a bound on what a kernel that holds them would take."""
HIDDEN_RATIO = 8
"""Width of the feed-forward layer's first result over that of the tokens: the widest thing in a block."""


class BandedFrame(BandedConvolutions):
    """Every block of both networks on frames of any size; inference only."""

    def __init__(
        self,
        bands: Bands,
        operations: Operations,
        *,
        windows: Windows | None = None,
        meter: Meter | None = None,
        device: torch.device = PROCESSOR,
        channels_last: bool = False,
    ) -> None:
        """Remember how to run.

        Args:
            bands: how large a band may be, and where frames live; those of the UNet are never parked.
            operations: of the network that this will run.
            windows: of the UNet's self-attention; None lets every position see the whole frame.
            meter: told of every band, window and piece of attention.
            device: where the network computes, which only parked frames do not tell.
            channels_last: of the network, whether it wants frames in that order on any device.
        """
        super().__init__(bands, operations, meter, device=device, channels_last=channels_last)
        self.windows = windows

    def transformer(self, block: SpatialTransformer, x: Tensor, context: Tensor) -> Tensor:
        """Return [B', C, H, W], in the place of ``x`` if B' is B, given the prompts ``context`` [B', M, D]."""
        extent, (layer,) = Extent(*x.shape[2:]), layers_of(block.transformer_blocks, TransformerBlock)
        if self._windows_for(extent) is None and self.fits(x, HIDDEN_RATIO * x.shape[1]):
            result = WholeFrame.transformer(self, block, x, context)
            num_flops = _block_flops(layer, x, result, len_keys=extent.area)
            self.meter.advance(num_flops + flops_of(x, block.proj_in) + flops_of(result, block.proj_out), Span(0, 1), 1)
            return result
        bands = self.split_rows(x, HIDDEN_RATIO * x.shape[1])
        normalise = self.normalisation(block.norm, lambda span: x[:, :, span.places], bands)
        tokens = x.new_empty(x.shape[0], extent.area, x.shape[1])
        for span in bands:
            rows = normalise(x[:, :, span.places], activate=False)
            tokens[:, span.times(extent.width).places] = block.proj_in(rows.flatten(2).transpose(1, 2))
            self.meter.advance(flops_of(x, block.proj_in), span, extent.height)
        tokens, x = self._attend(layer, tokens, context, extent), spread(x, len(context))
        num_flops = flops_of(x, block.proj_out, num_weights=_feed_forward_weights(layer))
        for span in bands:
            rows = block.proj_out(layer.feed(tokens[:, span.times(extent.width).places]))
            x[:, :, span.places] += rows.transpose(1, 2).unflatten(2, (len(span), extent.width))
            self.meter.advance(num_flops, span, extent.height)
        return x

    def attention(self, block: FrameAttention, x: Tensor) -> Tensor:
        """Return [B, C, H, W] in the place of ``x``, of attention over the whole frame."""
        batch, channels, height, width = x.shape
        pieces = self._pieces(height * width, height * width)
        num_flops = _mixing_flops(block, x, height * width)
        if self.fits(x) and len(pieces) == 1:
            result = WholeFrame.attention(self, block, self.frames.read_all(x))
            self.meter.advance(num_flops + flops_of(x, num_weights=2 * channels**2), Span(0, 1), 1)
            return self.frames.park(result)
        bands = self.split_rows(x)
        normalise = self.normalisation(block.group_norm, lambda span: self.frames.read(x, span), bands)
        # Of the coarsest level, and read by every query: near the network even where frames are parked.
        tokens, keys, values = (self.frames.make_near(x, batch, height * width, channels) for _ in range(3))
        for span in bands:
            places = span.times(width).places
            rows = normalise(self.frames.read(x, span), activate=False).flatten(2).transpose(1, 2)
            tokens[:, places] = rows
            keys[:, places], values[:, places] = block.keys_values(rows)
            self.meter.advance(flops_of(x, num_weights=2 * channels**2), span, height)
        for span in pieces:
            # Nobody reads the normalised tokens of a piece again: its result takes their place.
            tokens[:, span.places] = block.mix(block.queries(tokens[:, span.places]), keys, values)
            self.meter.advance(num_flops, span, height * width)
        for span in bands:
            rows = tokens[:, span.times(width).places].transpose(1, 2)
            self.frames.add(x, span, rows.reshape(batch, channels, len(span), width))
        return x

    def _attend(self, layer: TransformerBlock, tokens: Tensor, context: Tensor, extent: Extent) -> Tensor:
        """Return [B', H * W, C] of both attentions of ``layer`` on ``tokens`` [B, H * W, C], in place if B' is B."""
        grid = tokens.view(tokens.shape[0], extent.height, extent.width, -1)
        frame = grid[..., 0][:, None]
        rows_per_band = self.rows_per_band(frame, HIDDEN_RATIO * tokens.shape[2])
        bands = [span.times(extent.width) for span in self.pieces(extent.height, rows_per_band)]
        keys, values = torch.empty_like(tokens), torch.empty_like(tokens)
        for span in bands:
            part = layer.norm1(tokens[:, span.places])
            keys[:, span.places], values[:, span.places] = layer.attn1.keys_values(part)
            self.meter.advance(flops_of(frame, num_weights=2 * layer.attn1.channels**2), span, extent.area)
        windows = self._windows_for(extent)
        if windows is not None:
            self._attend_in_windows(layer, grid, [x.view_as(grid) for x in (keys, values)], windows)
        else:
            num_flops = _mixing_flops(layer.attn1, frame, extent.area)
            for span in self._pieces(extent.area, extent.area):
                part = tokens[:, span.places]
                part += layer.attn1.mix(layer.attn1.queries(layer.norm1(part)), keys, values)
                self.meter.advance(num_flops, span, extent.area)
        del keys, values
        tokens = spread(tokens, len(context))
        prompt = layer.attn2.keys_values(context)
        num_flops = _mixing_flops(layer.attn2, frame, context.shape[1]) * (len(context) // len(frame))
        for span in bands:
            part = tokens[:, span.places]
            part += layer.attn2.mix(layer.attn2.queries(layer.norm2(part)), *prompt)
            self.meter.advance(num_flops, span, extent.area)
        return tokens

    def _attend_in_windows(
        self, layer: TransformerBlock, grid: Tensor, keys_values: list[Tensor], windows: Windows
    ) -> None:
        """Add self-attention to ``grid`` [B, H, W, C] window by window; keys and values have its shape."""
        height, width = grid.shape[1:3]
        reach = min(height, windows.reach) * min(width, windows.reach)
        num_flops = _mixing_flops(layer.attn1, grid[..., 0][:, None], reach)
        for rows in self.pieces(height, windows.size):
            for columns in self.pieces(width, windows.size):
                above, beside = _seen_from(rows, height, windows), _seen_from(columns, width, windows)
                near = [x[:, above.places, beside.places].flatten(1, 2) for x in keys_values]
                window = grid[:, rows.places, columns.places]
                queries = layer.attn1.queries(layer.norm1(window.flatten(1, 2)))
                window += layer.attn1.mix(queries, *near).view_as(window)
                # As if windows lay one after the other, so that the first begins at 0.
                begin = rows.start * width + columns.start * len(rows)
                self.meter.advance(num_flops, Span(begin, begin + len(rows) * len(columns)), height * width)

    def _windows_for(self, extent: Extent) -> Windows | None:
        """Return the windows of a frame, None where one would see all of it."""
        if self.windows is None or max(extent.height, extent.width) <= self.windows.reach:
            return None
        return self.windows

    def _pieces(self, num_queries: int, num_keys: int) -> Sequence[Span]:
        return self.pieces(num_queries, max(1, SCORES_PER_BAND_BYTE * self.bands.band_bytes // num_keys))


def _seen_from(span: Span, length: int, windows: Windows) -> Span:
    """Return the places that a window sees on an axis of ``length``: as many as any other window."""
    reach = min(length, windows.reach)
    start = min(max(0, span.start - windows.context), length - reach)
    return Span(start, start + reach)


def _mixing_flops(attention: Attention, frame: Tensor, num_keys: int) -> int:
    """Return the FLOPs of attention at every position of ``frame`` [B, any, H, W], without keys and values."""
    channels = attention.channels
    return flops_of(frame, num_weights=2 * channels**2 + 2 * channels * num_keys)


def _feed_forward_weights(layer: TransformerBlock) -> int:
    back = layer.ff.back
    return layer.ff.gate.proj.weight.numel() + (0 if back is None else back.weight.numel())


def _block_flops(layer: TransformerBlock, x: Tensor, result: Tensor, *, len_keys: int) -> int:
    """Return the FLOPs of a block with full attention, on ``x`` before the prompt and on ``result`` from there on.

    The prompt's few tokens are left out.
    """
    before = flops_of(x, num_weights=2 * layer.attn1.channels**2) + _mixing_flops(layer.attn1, x, len_keys)
    behind = flops_of(result, num_weights=_feed_forward_weights(layer)) + _mixing_flops(layer.attn2, result, 0)
    return before + behind
