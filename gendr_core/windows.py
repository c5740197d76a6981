"""Attention over frames of any size: tokens in bands, self-attention in overlapping windows or over everything.

Role: completes ``bands``; ``BandedFrame`` is what the stages hand to ``UNet`` and ``VAE``. Each window of 64x64 cells,
as many as SD2.1's finest level was trained with, attends to 16 more cells on every side, so that neighbouring windows
see nearly the same (docs/algorithm.md, C4.3). The rule is the same at every level: coarser levels see further, and the
work grows with the number of pixels. The VAE's one attention stays exact: queries in pieces, keys of the whole frame.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .bands import PROCESSOR, BandedConvolutions, flops_of
from .geometry import Extent, Span
from .host import Meter
from .nets import Operations, WholeFrame
from .nets.layers import GEGLU, FrameAttention, SpatialTransformer, TransformerBlock, layers_of
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
    ) -> None:
        """Remember how to run.

        Args:
            bands: how large a band may be, and where frames live; those of the UNet are never parked.
            operations: of the network that this will run.
            windows: of the UNet's self-attention; None lets every position see the whole frame.
            meter: told of every band, window and piece of attention.
            device: where the network computes, which only parked frames do not tell.
        """
        super().__init__(bands, operations, meter, device=device)
        self.windows = windows

    def transformer(self, block: SpatialTransformer, x: Tensor, context: Tensor) -> Tensor:
        """Return [B, C, H, W] in the place of ``x``, given the prompt ``context`` [B, M, D]."""
        extent, blocks = Extent(*x.shape[2:]), layers_of(block.transformer_blocks, TransformerBlock)
        if self._windows_for(extent) is None and self.fits(x, HIDDEN_RATIO * x.shape[1]):
            result = WholeFrame.transformer(self, block, x, context)
            num_flops = sum(_block_flops(layer, x, len_keys=extent.area) for layer in blocks)
            self.meter.advance(num_flops + flops_of(x, block.proj_in, block.proj_out), Span(0, 1), 1)
            return result
        bands = self.split_rows(x, HIDDEN_RATIO * x.shape[1])
        normalise = self.normalisation(block.norm, lambda span: x[:, :, span.places], bands)
        tokens = x.new_empty(x.shape[0], extent.area, x.shape[1])
        for span in bands:
            rows = normalise(x[:, :, span.places], activate=False)
            tokens[:, span.times(extent.width).places] = block.proj_in(rows.flatten(2).transpose(1, 2))
            self.meter.advance(flops_of(x, block.proj_in), span, extent.height)
        for layer in blocks:
            self._transformer_block(layer, tokens, context, extent)
        for span in bands:
            rows = block.proj_out(tokens[:, span.times(extent.width).places])
            x[:, :, span.places] += rows.transpose(1, 2).unflatten(2, (len(span), extent.width))
            self.meter.advance(flops_of(x, block.proj_out), span, extent.height)
        return x

    def attention(self, block: FrameAttention, x: Tensor) -> Tensor:
        """Return [B, C, H, W] in the place of ``x``, of attention over the whole frame."""
        batch, channels, height, width = x.shape
        pieces = self._pieces(height * width, height * width)
        num_flops = flops_of(x, block.to_q, block.to_out[0]) + _attention_flops(x, channels, height * width)
        if self.fits(x) and len(pieces) == 1:
            result = WholeFrame.attention(self, block, self.frames.read_all(x))
            self.meter.advance(num_flops + flops_of(x, block.to_k, block.to_v), Span(0, 1), 1)
            return self.frames.park(result)
        bands = self.split_rows(x)
        normalise = self.normalisation(block.group_norm, lambda span: self.frames.read(x, span), bands)
        # Of the coarsest level, and read by every query: near the network even where frames are parked.
        tokens, keys, values = (self.frames.make_near(x, batch, height * width, channels) for _ in range(3))
        for span in bands:
            places = span.times(width).places
            rows = normalise(self.frames.read(x, span), activate=False).flatten(2).transpose(1, 2)
            tokens[:, places], keys[:, places], values[:, places] = rows, block.to_k(rows), block.to_v(rows)
            self.meter.advance(flops_of(x, block.to_k, block.to_v), span, height)
        for span in pieces:
            # Nobody reads the normalised tokens of a piece again: its result takes their place.
            tokens[:, span.places] = block.mix(tokens[:, span.places], keys, values)
            self.meter.advance(num_flops, span, height * width)
        for span in bands:
            rows = tokens[:, span.times(width).places].transpose(1, 2)
            self.frames.add(x, span, rows.reshape(batch, channels, len(span), width))
        return x

    def _transformer_block(self, layer: TransformerBlock, tokens: Tensor, context: Tensor, extent: Extent) -> None:
        """Run ``layer`` on ``tokens`` [B, H * W, C] in place."""
        grid = tokens.view(tokens.shape[0], extent.height, extent.width, -1)
        frame = grid[..., 0][:, None]
        rows_per_band = self.rows_per_band(frame, HIDDEN_RATIO * tokens.shape[2])
        bands = [span.times(extent.width) for span in self.pieces(extent.height, rows_per_band)]
        keys, values = torch.empty_like(tokens), torch.empty_like(tokens)
        for span in bands:
            part = layer.norm1(tokens[:, span.places])
            keys[:, span.places], values[:, span.places] = layer.attn1.to_k(part), layer.attn1.to_v(part)
            self.meter.advance(flops_of(frame, layer.attn1.to_k, layer.attn1.to_v), span, extent.area)
        windows = self._windows_for(extent)
        if windows is not None:
            self._attend_in_windows(layer, grid, [x.view_as(grid) for x in (keys, values)], windows)
        else:
            num_flops = _self_attention_flops(layer, frame, extent.area)
            for span in self._pieces(extent.area, extent.area):
                part = tokens[:, span.places]
                part += layer.attn1.mix(layer.norm1(part), keys, values)
                self.meter.advance(num_flops, span, extent.area)
        prompt = layer.attn2.to_k(context), layer.attn2.to_v(context)
        for span in bands:
            part = tokens[:, span.places]
            part += layer.attn2.mix(layer.norm2(part), *prompt)
            part += layer.ff(layer.norm3(part))
            self.meter.advance(_prompt_and_feed_forward_flops(layer, frame, context.shape[1]), span, extent.area)

    def _attend_in_windows(
        self, layer: TransformerBlock, grid: Tensor, keys_values: list[Tensor], windows: Windows
    ) -> None:
        """Add self-attention to ``grid`` [B, H, W, C] window by window; keys and values have its shape."""
        height, width = grid.shape[1:3]
        reach = min(height, windows.reach) * min(width, windows.reach)
        num_flops = _self_attention_flops(layer, grid[..., 0][:, None], reach)
        for rows in self.pieces(height, windows.size):
            for columns in self.pieces(width, windows.size):
                above, beside = _seen_from(rows, height, windows), _seen_from(columns, width, windows)
                near = [x[:, above.places, beside.places].flatten(1, 2) for x in keys_values]
                window = grid[:, rows.places, columns.places]
                window += layer.attn1.mix(layer.norm1(window.flatten(1, 2)), *near).view_as(window)
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


def _attention_flops(frame: Tensor, channels: int, num_keys: int) -> int:
    """Return the FLOPs of scores and mixing for every position of ``frame`` [B, any, H, W]."""
    return 4 * channels * num_keys * frame[:, 0].numel()


def _self_attention_flops(layer: TransformerBlock, frame: Tensor, num_keys: int) -> int:
    """Return the FLOPs of self-attention without keys and values."""
    channels: int = layer.attn1.to_q.in_features
    return flops_of(frame, layer.attn1.to_q, layer.attn1.to_out[0]) + _attention_flops(frame, channels, num_keys)


def _prompt_and_feed_forward_flops(layer: TransformerBlock, frame: Tensor, num_tokens: int) -> int:
    """Return the FLOPs of the rest of a block; keys and values of the prompt are left out."""
    inner, _, outer = layer.ff.net
    linears = (layer.attn2.to_q, layer.attn2.to_out[0], cast("GEGLU", inner).proj, outer)
    return flops_of(frame, *linears) + _attention_flops(frame, layer.attn2.to_q.in_features, num_tokens)


def _block_flops(layer: TransformerBlock, frame: Tensor, *, len_keys: int) -> int:
    """Return the FLOPs of a whole block with full attention; the prompt's few tokens are left out."""
    own = flops_of(frame, layer.attn1.to_k, layer.attn1.to_v) + _self_attention_flops(layer, frame, len_keys)
    return own + _prompt_and_feed_forward_flops(layer, frame, 0)
