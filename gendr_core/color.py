"""Stage 5 of 5: give the restored pixels the colours of the input.

Role: ``pipeline`` calls ``match_color`` once on the whole cropped frame, after ``decode``; the padding never takes
part. Everything is float32 and runs band by band over the rows, so that beside the frames only a few bands are in
memory, and on torch's meta device too. Definitions: docs/algorithm.md, section E.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ColorMethod
from .errors import ImageError
from .geometry import Span, partition
from .host import NEVER, Interrupt
from .tensors import luma, row_bands

LOW_PASS_STEPS = (1, 2, 4, 8, 16)
"""Dilations of the five wavelet levels."""
LOW_PASS_REACH = sum(LOW_PASS_STEPS)
"""Pixels that the five levels look to each side: 31."""

ADAIN_EPSILON = 4e-5
"""Added to each variance: 1e-5 of the 0 to 1 range, which is 4e-5 of the -1 to 1 range."""

LAB_KEPT = (0.8, 0.0, 0.0)
"""Share of the restored L*, a* and b* that the lab method keeps; the rest is matched."""
LAB_THRESHOLD = (6.0 / 29.0) ** 3
LAB_SLOPE = (29.0 / 3.0) ** 3
"""Where CIELAB turns from a cube root to a line, and that line's slope times 116   (CIE 15:2004, 8.2.1)."""
WHITE_D65 = (0.95047, 1.0, 1.08883)
RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
"""Linear sRGB to CIE XYZ under D65   (IEC 61966-2-1 primaries)."""


def low_pass(x: Tensor) -> Tensor:
    """Return the coarse part of ``x`` [B, C, H, W]: five levels of the a-trous wavelet as one filter.

    L = prod_k [1 2 1] / 4 dilated by 2^k, k = 0..4, on both axes: the triangle kernel (32 - |d|) / 1024, |d| <= 31.
    [1 2 1] / 4 is [1 1] / 2 twice, so each level is two additions per axis. Every level replicates its own borders:
    a border once replicated by 31 pixels would count for half of what is near it. Any size from 1x1.
    """
    for step in LOW_PASS_STEPS:
        x = F.pad(x, (step,) * 4, mode="replicate")
        for axis in (2, 2, 3, 3):
            length = x.shape[axis] - step
            x = x.narrow(axis, 0, length) + x.narrow(axis, step, length)
    # All halvings at once: powers of two lose no bits.
    return x.mul_(2.0 ** (-4 * len(LOW_PASS_STEPS)))


def plane_rows(plane: Tensor) -> int:
    """Return the rows of a band for ``coarse_bands``: those of ``row_bands``, but no less than what lies around it."""
    return max(2 * LOW_PASS_REACH, len(row_bands(plane)[0]))


def coarse_bands(
    pixels: Tensor, reference: Tensor, num_rows: int, interrupt: Interrupt = NEVER
) -> Iterator[tuple[Span, Tensor, Tensor]]:
    """Yield every band of rows with ``reference - pixels`` in it and the low-pass of that, in bands of ``num_rows``.

    Every band takes 31 rows more on each side where the frame goes on, which makes it exact to the last bit. A band of
    ``pixels`` may be overwritten once it has come; so may its low-pass, but not its difference.

    Args:
        pixels: [B, C, H, W].
        reference: [B, C, H, W].
        num_rows: rows of a band, at least 1.
        interrupt: asked before every band.
    """
    height = pixels.shape[2]
    known, difference = Span(0, 0), pixels[:, :, :0]
    for band in partition(height, num_rows):
        interrupt.check()
        around = band.widened(LOW_PASS_REACH, LOW_PASS_REACH, height)
        # The rows above are kept from the band before: in ``pixels`` they may be overwritten by now.
        kept = difference[:, :, around.start - known.start :]
        fresh = slice(known.stop, around.stop)
        difference = torch.cat([kept, reference[:, :, fresh] - pixels[:, :, fresh]], dim=2)
        known = around
        inside = band.within(around)
        yield band, difference[:, :, inside], low_pass(difference)[:, :, inside]


def add_coarse(pixels: Tensor, reference: Tensor, result: Tensor, num_rows: int, interrupt: Interrupt = NEVER) -> None:
    """Write ``pixels + low_pass(reference - pixels)`` into ``result``, in bands of ``num_rows`` rows.

    Args:
        pixels: [B, C, H, W].
        reference: [B, C, H, W].
        result: [B, C, H, W]; may be ``pixels``.
        num_rows: rows of a band, at least 1.
        interrupt: asked before every band.
    """
    for band, _, coarse in coarse_bands(pixels, reference, num_rows, interrupt):
        torch.add(pixels[:, :, band.places], coarse, out=result[:, :, band.places])


def _match_wavelet(pixels: Tensor, reference: Tensor, result: Tensor, interrupt: Interrupt) -> None:
    """Put the pixels' detail on the reference's coarse part.

    out = (sr - L sr) + L lq = sr + L(lq - sr)   (StableSR, arXiv:2305.07015, the wavelet colour correction)
    """
    # Plane by plane: the same bytes then hold more rows, and the 62 around a band weigh less.
    for index, channel in product(range(pixels.shape[0]), range(pixels.shape[1])):
        plane, wanted, out = (x[index : index + 1, channel : channel + 1] for x in (pixels, reference, result))
        add_coarse(plane, wanted, out, plane_rows(plane), interrupt)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance [B, C, 1, 1] of ``x`` [B, C, H, W], in its type, summed up in float64.

    mean = sum n_k mean_k / n, (n - 1) variance = sum (M2_k + n_k (mean_k - mean)^2) over the bands k, M2 the sum of
    squared distances from the mean   (Chan, Golub and LeVeque 1979). A single pixel has variance 0.
    """
    bands = row_bands(x)
    # Made at once: small tensors left between the bands would keep their memory from being used again.
    counts, means, squares = x.new_empty((3, len(bands), *x.shape[:2], 1, 1), dtype=torch.float64)
    for index, band in enumerate(bands):
        # Twice as wide, but several times as fast as var_mean.
        values = x[:, :, band.places].to(torch.float64)
        counts[index] = len(band) * x.shape[3]
        means[index] = values.mean(dim=(2, 3), keepdim=True)
        squares[index] = values.sub_(means[index]).square_().sum(dim=(2, 3), keepdim=True)
    num_values = x.shape[2] * x.shape[3]
    mean = (counts * means).sum(dim=0) / num_values
    variance = (squares + counts * (means - mean) ** 2).sum(dim=0) / max(1, num_values - 1)
    return mean.to(x.dtype), variance.to(x.dtype)


def _match_adain(pixels: Tensor, reference: Tensor, result: Tensor, interrupt: Interrupt) -> None:
    """Give the pixels the reference's mean and deviation in each channel.

    out = (sr - mu_sr) / sd_sr * sd_lq + mu_lq, sd = sqrt(unbiased variance + eps)   (arXiv:1703.06868, eq. 8)
    """
    mean, variance = _statistics(pixels)
    interrupt.check()
    reference_mean, reference_variance = _statistics(reference)
    interrupt.check()
    gain = (reference_variance + ADAIN_EPSILON).sqrt() / (variance + ADAIN_EPSILON).sqrt()
    for band in row_bands(pixels):
        out = result[:, :, band.places]
        torch.sub(pixels[:, :, band.places], mean, out=out).mul_(gain).add_(reference_mean)


def rgb_to_lab(pixels: Tensor) -> Tensor:
    """Return CIELAB [B, 3, H, W] (L* 0 to 100, then a*, b*) of sRGB pixels in -1 to 1, clamped to that range.

    c = ((v + 0.055) / 1.055)^2.4 above 0.04045, v / 12.92 below   (IEC 61966-2-1);
    L* = 116 f(Y) - 16, a* = 500 (f(X) - f(Y)), b* = 200 (f(Y) - f(Z)), f(t) = t^(1/3) or (slope t + 16) / 116.
    """
    value = ((pixels + 1.0) * 0.5).clamp(0.0, 1.0)
    linear = torch.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    xyz = torch.einsum("ij,bjhw->bihw", pixels.new_tensor(RGB_TO_XYZ), linear)
    t = xyz / pixels.new_tensor(WHITE_D65).view(1, 3, 1, 1)
    # The clamp only keeps the unused branch finite.
    root = torch.where(t > LAB_THRESHOLD, t.clamp(min=LAB_THRESHOLD) ** (1.0 / 3.0), (LAB_SLOPE * t + 16.0) / 116.0)
    x, y, z = root.unbind(dim=1)
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Return sRGB pixels [B, 3, H, W] clamped to -1 to 1: undoes ``rgb_to_lab``."""
    lightness, a, b = lab.unbind(dim=1)
    y = (lightness + 16.0) / 116.0
    root = torch.stack([y + a / 500.0, y, y - b / 200.0], dim=1)
    t = torch.where(root > LAB_THRESHOLD ** (1.0 / 3.0), root**3, (116.0 * root - 16.0) / LAB_SLOPE)
    xyz = t * lab.new_tensor(WHITE_D65).view(1, 3, 1, 1)
    # Inverted in float64: the inverse then is exact to float32 for every machine.
    inverse = torch.tensor(RGB_TO_XYZ, dtype=torch.float64).inverse().to(lab)
    linear = torch.einsum("ij,bjhw->bihw", inverse, xyz).clamp(0.0, 1.0)
    value = torch.where(linear > 0.0031308, 1.055 * linear ** (1.0 / 2.4) - 0.055, 12.92 * linear)
    return value * 2.0 - 1.0


def match_histogram(values: Tensor, reference: Tensor) -> Tensor:
    """Return ``values`` with each replaced by the reference's value of the same rank: any shape, the same for both.

    sorted(out) = sorted(ref); equal values keep the order of their places. Takes about 32 bytes per value while it
    runs: the sorted reference, and the places, which are sorted in twice their own memory.
    """
    ranked = reference.flatten().sort().values
    order = values.flatten().argsort(stable=True)
    return torch.empty_like(ranked).scatter_(0, order, ranked).view_as(values)


def _match_lab(pixels: Tensor, reference: Tensor, result: Tensor, interrupt: Interrupt) -> None:
    """Give the wavelet match the reference's a* and b* histograms and a fifth of its lightness histogram.

    a*, b* = matched; L* = 0.8 L* + 0.2 matched; clamped to -1 to 1   (SeedVR2's lab method)

    Memory: one channel of one image at a time is matched, which takes about 36 bytes per pixel, as much as three
    frames. Sorting makes the time n log n.
    """
    _match_wavelet(pixels, reference, result, interrupt)
    for band in row_bands(result):
        interrupt.check()
        result[:, :, band.places] = rgb_to_lab(result[:, :, band.places])
    for index, (channel, kept) in product(range(result.shape[0]), enumerate(LAB_KEPT)):
        plane = result[index, channel]
        wanted = torch.empty_like(plane)
        # Converted anew for each channel: two planes less to keep, and little work beside the sorting.
        for band in row_bands(reference):
            interrupt.check()
            wanted[band.places] = rgb_to_lab(reference[index : index + 1, :, band.places])[0, channel]
        matched = match_histogram(plane, wanted)
        plane.mul_(kept).add_(matched.mul_(1.0 - kept))
    for band in row_bands(result):
        interrupt.check()
        result[:, :, band.places] = lab_to_rgb(result[:, :, band.places])


def _match_ycbcr(pixels: Tensor, reference: Tensor, result: Tensor, interrupt: Interrupt) -> None:
    """Give the reference the pixels' luma: Cb and Cr from the reference, Y from the restored.

    In BT.601 full range Cb ~ B - Y and Cr ~ R - Y, so a change of Y alone adds the same to R, G and B:
    out = lq + Y(sr - lq).
    """
    for band in row_bands(pixels):
        interrupt.check()
        wanted = reference[:, :, band.places]
        torch.add(wanted, luma(pixels[:, :, band.places] - wanted), out=result[:, :, band.places])


_METHODS: dict[ColorMethod, Callable[[Tensor, Tensor, Tensor, Interrupt], None]] = {
    "wavelet": _match_wavelet,
    "adain": _match_adain,
    "lab": _match_lab,
    "ycbcr": _match_ycbcr,
}
"""Each writes its match of pixels and reference into a result, which may be the pixels."""


def match_color(
    pixels: Tensor,
    reference: Tensor,
    method: ColorMethod,
    *,
    out: Tensor | None = None,
    interrupt: Interrupt = NEVER,
) -> Tensor:
    """Return ``pixels`` with the colours of ``reference``: [B, 3, H, W], float32, same device.

    Only lab clamps its result to -1 to 1. adain and lab use statistics of the whole frame, so they must not be
    applied to tiles. None of them records gradients.

    Args:
        pixels: [B, 3, H, W], nominally -1 to 1: the restored frame without padding.
        reference: [B, 3, H, W] in -1 to 1: the input at the same size, same device. Never written to.
        method: which of the five. none returns the pixels themselves.
        out: [B, 3, H, W], float32, any strides: written to where given; may be ``pixels``. ``none`` leaves it alone.
        interrupt: asked between bands of rows; what it raises leaves ``out`` half written.

    Raises:
        ImageError: the two differ in shape.
    """
    if pixels.shape != reference.shape:
        raise ImageError(
            f"expected a colour reference of the same shape as the image, {tuple(pixels.shape)},"
            f" got {tuple(reference.shape)}: resize the reference first"
        )
    pixels, reference = pixels.to(torch.float32), reference.to(torch.float32)
    if method == "none":
        return pixels
    result = torch.empty_like(pixels) if out is None else out
    _METHODS[method](pixels, reference, result, interrupt)
    return result
