"""Frames of any size through the networks, exactly: activations whole, every layer in bands of rows.

Role: the convolutional half of ``windows.BandedFrame``, which the stages hand to ``UNet`` and ``VAE`` for inference;
``nets`` know only the ``WholeFrame`` that it derives from. Convolutions read one row more on each side of a band,
normalisations gather their statistics over the whole frame before they are applied, so nothing depends on where a band
ends (docs/algorithm.md, C4).

A frame that fits in one band runs whole. Inference only: results take the place of what is no longer needed.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import Span, partition
from .host import Meter
from .nets import Operations, WholeFrame
from .nets.layers import Downsample, ResnetBlock, Upsample
from .parking import Frames
from .plan import Bands

PROCESSOR = torch.device("cpu")
Read = Callable[[Span], Tensor]
"""Gives rows of a frame as [B, C, rows, W], ready for a convolution."""


COPIED_BYTES = 2**24
"""Of a band that is copied to float32 for its statistics at once."""


class Moments:
    """Mean and variance of every group of channels over a frame, gathered band by band in float32.

    Parts join by n = n_a + n_b, d = m_b - m_a, m = m_a + d n_b / n, M2 = M2_a + M2_b + d^2 n_a n_b / n
    (Chan, Golub and LeVeque 1979), written for variances.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Start with no rows, for the groups of ``norm``."""
        self._norm = norm
        self._rows = 0
        self._mean = self._variance = torch.empty(0)

    def add(self, band: Tensor) -> None:
        """Take [B, C, rows, W] in."""
        if band.dtype == torch.float32 or band.device.type in ("cpu", "meta"):
            self._take(band)
        else:
            # Here the kernel stores statistics in the dtype of the band: 16-bit bands go in as float32 pieces.
            for part in partition(band.shape[2], max(1, COPIED_BYTES // (4 * band[:, :, 0].numel()))):
                self._take(band[:, :, part.places].float())

    def _take(self, band: Tensor) -> None:
        batch, channels, rows, width = band.shape
        ones = torch.ones(channels, device=band.device)
        # The fused kernel reads a band once and keeps float32 statistics; its normalised band is not used.
        shape = (batch, channels, rows * width, self._norm.num_groups)
        _, mean, rstd = torch.native_group_norm(band.contiguous(), ones, torch.zeros_like(ones), *shape, self._norm.eps)
        mean, variance = mean.float(), rstd.float().pow(-2) - self._norm.eps
        if self._rows:
            share = rows / (self._rows + rows)
            distance = mean - self._mean
            variance = torch.lerp(self._variance, variance, share) + share * (1.0 - share) * distance.square()
            mean = self._mean + share * distance
        self._mean, self._variance, self._rows = mean, variance, self._rows + rows

    def normalisation(self, weight: Tensor, bias: Tensor) -> "Normalisation":
        """Return what the norm does to every position, given its affine parameters [C] in float32."""
        batch, groups = self._mean.shape
        per_group = weight.shape[0] // groups
        mean, variance = (
            moment.repeat_interleave(per_group, dim=1).flatten() for moment in (self._mean, self._variance.clamp(min=0))
        )
        return Normalisation(mean, variance, weight.repeat(batch), bias.repeat(batch), self._norm.eps)


class Normalisation:
    """A group normalisation whose statistics are known: the same at every position."""

    def __init__(self, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
        """Keep the four values of every image and channel, each [B * C], float32."""
        self._values = (mean, variance, weight, bias)
        self._eps = eps

    def __call__(self, band: Tensor, *, activate: bool) -> Tensor:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias, then SiLU if asked, of [B, C, rows, W]."""
        mean, variance, weight, bias = self._values
        flat = band.reshape(1, -1, *band.shape[2:])
        # Batch normalisation outside of training is just this formula, in one kernel.
        result = F.batch_norm(flat, mean, variance, weight, bias, training=False, eps=self._eps)
        return (F.silu(result, inplace=True) if activate else result).view(band.shape)


class BandedConvolutions(WholeFrame):
    """The blocks made of convolutions, in bands of rows."""

    def __init__(
        self, bands: Bands, operations: Operations, meter: Meter | None = None, *, device: torch.device = PROCESSOR
    ) -> None:
        """Remember how to run.

        Args:
            bands: how large a band may be, and where frames live.
            operations: of the network that this will run.
            meter: told of every band.
            device: where the network computes, which only parked frames do not tell.
        """
        self.bands = bands
        self.frames = Frames(device if bands.parked else None)
        self.operations = operations
        self.meter = meter or Meter()

    def pieces(self, length: int, size: int) -> Sequence[Span]:
        """Return the spans of an axis of ``length`` to work on, one after the other."""
        return self.meter.pieces(partition(length, size))

    def convolution(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Return [B, C_out, H, W] of a 3x3 convolution with stride 1."""
        if self.fits(x, conv.out_channels):
            return self.frames.park(self.whole(super().convolution(conv, self.frames.read_all(x)), conv))
        out = self.frames.make(x, x.shape[0], conv.out_channels, *x.shape[2:])
        self._convolve(conv, lambda span: self.frames.read(x, span), out, self.split_rows(x, conv.out_channels))
        return out

    def output(self, norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Return [B, C_out, H, W]: normalisation, SiLU and a 3x3 convolution. What leaves the network is not parked."""
        if self.fits(x, conv.out_channels):
            return self.whole(super().output(norm, conv, self.frames.read_all(x)), conv)
        spans = self.split_rows(x, conv.out_channels)
        normalise = self.normalisation(norm, lambda span: self.frames.read(x, span), spans)
        out = self.frames.make_near(x, x.shape[0], conv.out_channels, *x.shape[2:])
        self._convolve(conv, lambda span: normalise(self.frames.read(x, span), activate=True), out, spans)
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
        if x.element_size() * out_shape[0] * out_shape[1] * size[0] * size[1] <= self.bands.band_bytes:
            return self.frames.park(self.whole(super().upsample(block, self.frames.read_all(x), size), block.conv))
        out = self.frames.make(x, *out_shape)

        def read(span: Span) -> Tensor:
            coarse = Span(span.start // 2, (span.stop + 1) // 2)
            fine = F.interpolate(self.frames.read(x, coarse), scale_factor=2.0, mode="nearest")
            return fine[:, :, span.within(coarse.times(2)), : size[1]]

        self._convolve(block.conv, read, out, self.split_rows(out))
        return out

    def normalisation(self, norm: nn.GroupNorm, read: Read, spans: Sequence[Span]) -> Normalisation:
        """Return ``norm`` with its statistics over all rows of ``spans``."""
        moments = Moments(norm)
        for span in spans:
            moments.add(read(span))
        return self._affine(norm, moments, read(Span(0, 1)))

    def _affine(self, norm: nn.GroupNorm, moments: Moments, like: Tensor) -> Normalisation:
        weight, bias = self.operations.weights(norm, like.new_empty(0, dtype=torch.float32))
        return moments.normalisation(weight, torch.zeros_like(weight) if bias is None else bias)

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
            rows = torch.cat([above, self.frames.read(x, Span(span.start, outer.stop))], dim=2)
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
        height = out.shape[2]
        weights = self.operations.weights(conv, self.frames.make_near(out, 0))
        for span in spans:
            have = span.widened(1, 1, height)
            result = _convolved(read(have), *weights, have=have, want=span)
            if add is not None:
                result.add_(add(span))
            self.frames.write(out, span, result)
            self.meter.advance(flops_of(out, conv), span, height)

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

    def whole(self, result: Tensor, *layers: nn.Module | None) -> Tensor:
        """Return ``result``, which all of ``layers`` together made in one piece."""
        rows = Span(0, result.shape[2])
        self.meter.advance(flops_of(result, *layers), rows, len(rows))
        return result


def flops_of(out: Tensor, *layers: nn.Module | None) -> int:
    """Return 2 * weights * positions of ``out`` of all layers, convolutions or linear."""
    num_weights = sum(layer.get_parameter("weight").numel() for layer in layers if layer is not None)
    return 2 * num_weights * out[:, 0].numel()


def _convolved(rows: Tensor, weight: Tensor, bias: Tensor | None, *, have: Span, want: Span) -> Tensor:
    """Return rows ``want`` of a 3x3 convolution, given its input rows ``have``: one more on each side, if there is."""
    if have.start < want.start and want.stop < have.stop:
        return F.conv2d(rows, weight, bias, padding=(0, 1))
    # At an end of the frame, where a row of zeros belongs; the surplus row on the other side is dropped.
    return F.conv2d(rows, weight, bias, padding=1)[:, :, want.within(have)]
