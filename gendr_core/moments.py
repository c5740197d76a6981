"""Group normalisation of a frame that is never there as a whole: its statistics gathered in bands, then applied.

Role: below ``bands``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import partition
from .nets import fused
from .nets.layers import suggested_format

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
        self._mean: Tensor = torch.empty(0)
        self._variance: Tensor = self._mean

    def add(self, band: Tensor) -> None:
        """Take [B, C, rows, W] in."""
        if isinstance(self._norm, fused.FusedGroupNorm):
            self._join(band.shape[2], *fused.moments(band, self._norm.num_groups))
        elif band.dtype == torch.float32 or band.device.type in ("cpu", "meta"):
            self._take(band)
        else:
            # Here the kernel stores statistics in the dtype of the band: 16-bit bands go in as float32 pieces.
            for part in partition(band.shape[2], max(1, COPIED_BYTES // (4 * band[:, :, 0].numel()))):
                self._take(band[:, :, part.places].float())

    def _take(self, band: Tensor) -> None:
        batch, channels, rows, width = band.shape
        # The fused kernel reads a band once and keeps float32 statistics; its normalised band is not used.
        shape = (batch, channels, rows * width, self._norm.num_groups)
        band = band.contiguous(memory_format=suggested_format(band))
        _, mean, rstd = torch.native_group_norm(band, None, None, *shape, self._norm.eps)
        self._join(rows, mean.float(), rstd.float().pow(-2) - self._norm.eps)

    def _join(self, rows: int, mean: Tensor, variance: Tensor) -> None:
        """Take rows in whose mean and variance [B, groups] are known."""
        if self._rows:
            share = rows / (self._rows + rows)
            distance = mean - self._mean
            variance = torch.lerp(self._variance, variance, share) + share * (1.0 - share) * distance.square()
            mean = self._mean + share * distance
        self._mean, self._variance, self._rows = mean, variance, self._rows + rows

    def normalisation(self, weight: Tensor | None, bias: Tensor | None) -> "Normalisation":
        """Return what the norm does to every position, given its affine parameters [C] in float32."""
        return Normalisation(self._norm, (self._mean, self._variance.clamp(min=0)), (weight, bias))


class Normalisation:
    """A group normalisation whose statistics are known: the same at every position."""

    def __init__(
        self, norm: nn.GroupNorm, moments: tuple[Tensor, Tensor], affine: tuple[Tensor | None, Tensor | None]
    ) -> None:
        """Keep mean and variance of every group [B, groups], and the affine parameters [C]; all float32."""
        self._affine, self._eps = affine, norm.eps
        self._fused = isinstance(norm, fused.FusedGroupNorm)
        mean, variance = moments
        if not self._fused:
            per_group = norm.num_channels // norm.num_groups
            mean, variance = (moment.repeat_interleave(per_group, dim=1) for moment in moments)
        self._moments = mean, variance

    def __call__(self, band: Tensor, *, activate: bool) -> Tensor:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias, then SiLU if asked, of [B, C, rows, W]."""
        if self._fused:
            return fused.normalise(band, self._moments, self._affine, self._eps, activate=activate)
        # Batch normalisation outside of training is just this formula, in one kernel, for one image.
        images = [
            F.batch_norm(image, mean, variance, *self._affine, training=False, eps=self._eps)
            for image, mean, variance in zip(torch.split(band, 1), *self._moments, strict=True)
        ]
        result = images[0] if len(images) == 1 else torch.cat(images)
        return F.silu(result, inplace=True) if activate else result
