"""The masked Fourier loss of GenDR-Pix: the pattern that a pixel shuffle leaves, and nothing else.

Role: called by ``stages.pix`` on the student's image and its teacher's.
A shuffle by r fills each r x r cell from r^2 channels. Where these differ in gain, the picture carries a pattern of
period r, and with it energy at k / r cycles per pixel, k = 1, 2, ... up to 1/2, on one axis or both, at any frequency
of the other axis along which its strength varies. GenDR-Pix (arXiv:2602.10630) states the form of the loss and that
its mask belongs to the harmonics of 8; that the mask is 1 there and 0 elsewhere is inferred, as the opposite would
not see the pattern that the loss is meant to remove, and so are strips over points, their width and the mean.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor


def _near_harmonic(size: int, period: int, half_width: float) -> Tensor:
    """Return which of the ``size`` FFT bins lie near a multiple of 1 / period other than 0, [size] bool."""
    # Integers: bin f of n is (period f - k n) / (period n) cycles per pixel away from harmonic k.
    scaled = period * torch.arange(size).minimum(size - torch.arange(size))
    harmonic = (2 * scaled + size) // (2 * size)
    # Half a bin at least, so that a harmonic between two bins is not lost.
    reach = period * max(size * half_width, 0.5)
    return (harmonic > 0) & ((scaled - harmonic * size).abs() <= reach)


def harmonic_mask(height: int, width: int, *, period: int, half_width: float = 0.0) -> Tensor:
    """Return where the pattern of a pixel shuffle by ``period`` lives in an unshifted 2-D FFT, [height, width] bool.

    True where either axis is within ``half_width`` of k / period cycles per pixel, k > 0, or at the nearest bin.

    Args:
        height: rows, at least 2 of rows or columns.
        width: columns.
        period: pixels per cell.
        half_width: cycles per pixel, below 1 / (2 period); wider takes in patterns that vary across their own axis.
    """
    rows = _near_harmonic(height, period, half_width)
    columns = _near_harmonic(width, period, half_width)
    return rows[:, None] | columns[None, :]


# L = mean_{M} | |F(o)| - |F(t)| |, F = orthonormal 2-D FFT, M = harmonic_mask
# (GenDR-Pix: |M (|F(o)| - |F(t)|)|_1)
def masked_spectrum(output: Tensor, target: Tensor, *, period: int, half_width: float = 0.0) -> Tensor:
    """Return the mean difference of amplitudes over the masked frequencies and the channels, [B].

    Blind to phases, so to whole shifts too. Gradients flow to ``output`` alone.

    Args:
        output: [B, C, H, W], the student's image.
        target: of the same shape, the teacher's.
        period: pixels per cell of the student's pixel shuffle.
        half_width: as in ``harmonic_mask``.
    """
    transform = cast("Callable[..., Tensor]", torch.fft.fft2)  # pyright: ignore[reportUnknownMemberType]
    ours, theirs = transform(output.float(), norm="ortho"), transform(target.detach().float(), norm="ortho")
    mask = harmonic_mask(output.shape[2], output.shape[3], period=period, half_width=half_width).to(output.device)
    difference = (ours.abs() - theirs.abs()).abs() * mask
    return difference.flatten(1).sum(1) / (mask.sum() * output.shape[1])
