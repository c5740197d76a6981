"""Frames of any size through the networks, exactly: activations whole, every layer in bands of rows.

Role: the convolutional half of ``windows.BandedFrame``, which the stages hand to ``UNet`` and ``VAE`` for inference;
``nets`` know only the ``WholeFrame`` that it derives from. Convolutions read one row more on each side of a band,
normalisations gather their statistics over the whole frame before they are applied, so nothing depends on where a band
ends (docs/algorithm.md, C4).

A frame that fits in one band runs whole. Inference only: results take the place of what is no longer needed.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import Span, partition
from .host import Meter
from .memory import PROCESSOR
from .moments import Moments, Normalisation
from .nets import Operations, WholeFrame
from .nets.frame import guided
from .nets.layers import PHASES, Downsample, ResnetBlock, Upsample
from .parking import Frames
from .plan import Bands

Read = Callable[[Span], Tensor]
"""Gives rows of a frame as [B, C, rows, W], ready for a convolution."""


class BandedConvolutions(WholeFrame):
    """The blocks made of convolutions, in bands of rows."""

    def __init__(
        self,
        bands: Bands,
        operations: Operations,
        meter: Meter | None = None,
        *,
        device: torch.device = PROCESSOR,
        channels_last: bool = False,
    ) -> None:
        """Remember how to run.

        Args:
            bands: how large a band may be, and where frames live.
            operations: of the network that this will run.
            meter: told of every band.
            device: where the network computes, which only parked frames do not tell.
            channels_last: of the network, whether it wants frames in that order on any device.
        """
        self.bands = bands
        self.frames = Frames(device if bands.parked else None, channels_last=channels_last)
        self.operations = operations
        self.meter = meter or Meter()

    def pieces(self, length: int, size: int) -> Sequence[Span]:
        """Return the spans of an axis of ``length`` to work on, one after the other."""
        return self.meter.pieces(partition(length, size))

    def convolution(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Return [B, C_out, H, W] of a 3x3 convolution with stride 1."""
        x = self.frames.in_order(x)
        if self.fits(x, conv.out_channels):
            return self.frames.park(self.whole(super().convolution(conv, self.frames.read_all(x)), conv))
        out = self.frames.make(x, x.shape[0], conv.out_channels, *x.shape[2:])
        self._convolve(conv, lambda span: self.frames.read(x, span), out, self.split_rows(x, conv.out_channels))
        return out

    def output(self, norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, *, guidance: float | None = None) -> Tensor:
        """Return [B, C_out, H, W], as ``WholeFrame.output``. What leaves the network is not parked."""
        if self.fits(x, conv.out_channels):
            return self.whole(super().output(norm, conv, self.frames.read_all(x), guidance=guidance), conv)
        spans = self.split_rows(x, conv.out_channels)
        normalise = self.normalisation(norm, lambda span: self.frames.read(x, span), spans)
        batch = x.shape[0] if guidance is None else x.shape[0] // 2
        out = self.frames.make_near(x, batch, conv.out_channels, *x.shape[2:])

        def read(span: Span) -> Tensor:
            return guided(normalise(self.frames.read(x, span), activate=True), guidance)

        self._convolve(conv, read, out, spans)
        return out

    def resnet(
        self,
        block: ResnetBlock,
        x: Tensor,
        *,
        time_embedding: Tensor | None = None,
        skip: Tensor | None = None,
        owned: bool = False,
    ) -> Tensor:
        """Return [B, C_out, H, W] of a resnet block; arguments as ``WholeFrame.resnet``."""
        channels, frames = max(block.conv1.in_channels, block.conv1.out_channels), self.frames
        if self.fits(x, channels):
            result = super().resnet(block, frames.read_all(x), time_embedding=time_embedding, skip=skip)
            return frames.park(self.whole(result, block.conv1, block.conv2, block.conv_shortcut))
        spans = self.split_rows(x, channels)

        def read(span: Span) -> Tensor:
            rows = frames.read(x, span)
            return rows if skip is None else torch.cat([rows, frames.read(skip, span)], dim=1)

        time_bias = block.time_bias(time_embedding)
        first = self.normalisation(block.norm1, read, spans)
        in_place = owned and skip is None and block.conv_shortcut is None
        if in_place and self.bands.recompute:
            return self._resnet_again(block, x, first, time_bias)
        middle = frames.make(x, x.shape[0], block.conv1.out_channels, *x.shape[2:])
        bias: Read | None = None if time_bias is None else lambda _: time_bias
        self._convolve(block.conv1, lambda span: first(read(span), activate=True), middle, spans, add=bias)
        second = self.normalisation(block.norm2, lambda span: frames.read(middle, span), spans)

        def shortcut(span: Span) -> Tensor:
            self.meter.advance(flops_of(middle, block.conv_shortcut), span, x.shape[2])
            rows = read(span)
            return rows if block.conv_shortcut is None else block.conv_shortcut(rows)

        out = x if in_place else frames.make(middle, *middle.shape)
        self._convolve(
            block.conv2, lambda span: second(frames.read(middle, span), activate=True), out, spans, add=shortcut
        )
        return out

    def downsample(self, block: Downsample, x: Tensor) -> Tensor:
        """Return the frame at half its size."""
        if self.fits(x):
            return self.frames.park(self.whole(super().downsample(block, self.frames.read_all(x)), block.conv))
        height, before = x.shape[2], 0 if block.pad_end else 1
        size = [(length + before + 1 - 3) // 2 + 1 for length in x.shape[2:]]
        out = self.frames.make(x, *x.shape[:2], *size)
        weight, bias = self.operations.weights(block.conv, self.frames.make_near(x, 0))
        for span in self.split_rows(out):
            # Output row r reads input rows 2 r - before to 2 r - before + 2; what lies outside is 0.
            first, last = 2 * span.start - before, 2 * span.stop - before + 1
            inside = Span(max(0, first), min(height, last))
            borders = (before, 1, inside.start - first, last - inside.stop)
            padded = F.pad(self.frames.read(x, inside), borders)
            self.frames.write(out, span, F.conv2d(padded, weight, bias, stride=2))
            self.meter.advance(flops_of(out, block.conv), span, out.shape[2])
        return out

    def upsample(self, block: Upsample, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the frame at ``size``, twice its own or one less."""
        out_shape = (*x.shape[:2], *size)
        if x.element_size() * math.prod(out_shape) <= self.bands.band_bytes:
            result = super().upsample(block, self.frames.read_all(x), size)
            return self.frames.park(self.whole(result, num_weights=block.num_weights))
        out = self.frames.make(x, *out_shape)
        if block.phases is not None and size == (2 * x.shape[2], 2 * x.shape[3]):
            self._enlarge(block, x, out)
            return out

        def read(span: Span) -> Tensor:
            coarse = Span(span.start // 2, (span.stop + 1) // 2)
            fine = F.interpolate(self.frames.read(x, coarse), scale_factor=2.0, mode="nearest")
            return fine[:, :, span.within(coarse.times(2)), : size[1]]

        self._convolve_by(block.kernel(self.frames.make_near(out, 0)), read, out, self.split_rows(out))
        return out

    def _enlarge(self, block: Upsample, x: Tensor, out: Tensor) -> None:
        """Write ``x`` at twice its size, convolved by the phases of ``block``, into ``out``."""
        height, width = x.shape[2:]
        like = self.frames.make_near(out, 0)
        phases = [self.operations.weights(phase, like) for phase in block.layers]
        for span in self.pieces(height, max(1, self.rows_per_band(out, 0) // 2)):
            rows = self.frames.read(x, span.widened(1, 1, height))
            fine = self.frames.make_near(out, *out.shape[:2], 2 * len(span), 2 * width)
            for (row, column), weights in zip(PHASES, phases, strict=True):
                have = Span(span.start - 1 + row, span.stop + row)
                inside = Span(max(0, have.start), min(height, have.stop))
                # At an end of the frame a row of zeros belongs; the surplus one on the other side is dropped.
                border = int(inside != have)
                near = rows[:, :, inside.within(span.widened(1, 1, height))]
                result = F.conv2d(near, *weights, padding=(border, 1))
                first = have.start - inside.start + border
                fine[:, :, row::2, column::2] = result[:, :, first : first + len(span), column : column + width]
            self.frames.write(out, span.times(2), fine)
            self.meter.advance(flops_of(out, num_weights=block.num_weights), span, height)

    def normalisation(self, norm: nn.GroupNorm, read: Read, spans: Sequence[Span]) -> Normalisation:
        """Return ``norm`` with its statistics over all rows of ``spans``."""
        moments = Moments(norm)
        for span in spans:
            moments.add(read(span))
        return self._affine(norm, moments, read(Span(0, 1)))

    def _affine(self, norm: nn.GroupNorm, moments: Moments, like: Tensor) -> Normalisation:
        weight, bias = (
            self.operations.weights(norm, like.new_empty(0, dtype=torch.float32)) if norm.affine else (None, None)
        )
        return moments.normalisation(weight, bias)

    def _resnet_again(self, block: ResnetBlock, x: Tensor, first: Normalisation, time_bias: Tensor | None) -> Tensor:
        """Return a resnet block in the place of ``x``, computing its middle once for the statistics and once to use."""
        height = x.shape[2]
        # Two rows above a band are kept, which a thinner band would not have.
        spans = self.pieces(height, max(2, self.rows_per_band(x, x.shape[1])))
        conv1, conv2 = (
            self.operations.weights(conv, self.frames.make_near(x, 0)) for conv in (block.conv1, block.conv2)
        )

        def middle(rows: Tensor, have: Span, want: Span) -> Tensor:
            result = _convolved(first(rows, activate=True), *conv1, have=have, want=want)
            return result if time_bias is None else result.add_(time_bias)

        moments, above = Moments(block.norm2), self.frames.read(x, Span(0, 0))
        for span in spans:
            have = span.widened(1, 1, height)
            moments.add(middle(self.frames.read(x, have), have, span))
            self.meter.advance(flops_of(x, block.conv1), span, height)
        second = self._affine(block.norm2, moments, above)
        for span in spans:
            inner, outer = span.widened(1, 1, height), span.widened(2, 2, height)
            rows = self.frames.read(x, Span(span.start, outer.stop))
            # What is joined to nothing would lose its order in memory.
            rows = torch.cat([above, rows], dim=2) if span.start else rows
            # The next band reads these as they were.
            above = self.frames.read(x, Span(span.stop - 2, span.stop)).clone()
            normalised = second(middle(rows, outer, inner), activate=True)
            self.frames.add(x, span, _convolved(normalised, *conv2, have=inner, want=span))
            self.meter.advance(flops_of(x, block.conv1, block.conv2), span, height)
        return x

    def _convolve(
        self, conv: nn.Conv2d, read: Read, out: Tensor, spans: Sequence[Span], *, add: Read | None = None
    ) -> None:
        """Write a 3x3 convolution with stride 1 of what ``read`` gives, plus what ``add`` gives, into ``out``."""
        self._convolve_by(self.operations.weights(conv, self.frames.make_near(out, 0)), read, out, spans, add=add)

    def _convolve_by(
        self,
        weights: tuple[Tensor, Tensor | None],
        read: Read,
        out: Tensor,
        spans: Sequence[Span],
        *,
        add: Read | None = None,
    ) -> None:
        """Do the work of ``_convolve`` by a kernel [C_out, C, 3, 3] and its bias."""
        height = out.shape[2]
        for span in spans:
            have = span.widened(1, 1, height)
            result = _convolved(read(have), *weights, have=have, want=span)
            if add is not None:
                result.add_(add(span))
            self.frames.write(out, span, result)
            self.meter.advance(2 * weights[0].numel() * out[:, 0].numel(), span, height)

    def fits(self, x: Tensor, channels: int = 0) -> bool:
        """Return whether a frame of the size of ``x`` is one band; ``channels`` if it gets wider than ``x`` is."""
        return x.element_size() * x[:, 0].numel() * max(channels, x.shape[1]) <= self.bands.band_bytes

    def rows_per_band(self, x: Tensor, channels: int) -> int:
        """Return the rows of a band of a frame of the size of ``x``, at least 1; ``channels`` as in ``fits``."""
        row_bytes = x.element_size() * x.shape[0] * x.shape[3] * max(channels, x.shape[1])
        return max(1, self.bands.band_bytes // row_bytes)

    def split_rows(self, x: Tensor, channels: int = 0) -> Sequence[Span]:
        """Return the bands of a frame of the size of ``x``; ``channels`` as in ``fits``."""
        return self.pieces(x.shape[2], self.rows_per_band(x, channels))

    def whole(self, result: Tensor, *layers: nn.Module | None, num_weights: int = 0) -> Tensor:
        """Return ``result``, which all of ``layers`` together and ``num_weights`` more made in one piece."""
        rows = Span(0, result.shape[2])
        self.meter.advance(flops_of(result, *layers, num_weights=num_weights), rows, len(rows))
        return result


def flops_of(out: Tensor, *layers: nn.Module | None, num_weights: int = 0) -> int:
    """Return 2 * weights * positions of ``out``, of all layers, convolutions or linear, and ``num_weights`` more."""
    num_weights += sum(layer.get_parameter("weight").numel() for layer in layers if layer is not None)
    return 2 * num_weights * out[:, 0].numel()


def _convolved(rows: Tensor, weight: Tensor, bias: Tensor | None, *, have: Span, want: Span) -> Tensor:
    """Return rows ``want`` of a 3x3 convolution, given its input rows ``have``: one more on each side, if there is."""
    if have.start < want.start and want.stop < have.stop:
        return F.conv2d(rows, weight, bias, padding=(0, 1))
    # At an end of the frame, where a row of zeros belongs; the surplus row on the other side is dropped.
    return F.conv2d(rows, weight, bias, padding=1)[:, :, want.within(have)]
