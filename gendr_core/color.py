"""Stage 5 of 5: give the restored pixels the colours of the input.

Role: ``pipeline`` calls ``match_color`` once on the whole cropped frame, after ``decode``; the padding never takes
part. Everything is float32. Definitions: docs/algorithm.md, section E.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ColorMethod
from .errors import ImageError
from .tensors import luma

LOW_PASS_STEPS = (1, 2, 4, 8, 16)
"""Dilations of the five wavelet levels; together they reach 31 pixels."""

ADAIN_EPSILON = 4e-5
"""Added to each variance: 1e-5 of the 0 to 1 range, which is 4e-5 of the -1 to 1 range."""

LAB_LIGHTNESS_KEPT = 0.8
"""Share of the restored lightness that the lab method keeps; the rest is matched."""
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
    return x * 2.0 ** (-4 * len(LOW_PASS_STEPS))


def _match_nothing(pixels: Tensor, reference: Tensor) -> Tensor:
    """Return the pixels themselves: out = sr."""
    del reference
    return pixels


def _match_wavelet(pixels: Tensor, reference: Tensor) -> Tensor:
    """Return the pixels' detail on the reference's coarse part.

    out = (sr - L sr) + L lq = sr + L(lq - sr)   (StableSR, arXiv:2305.07015, the wavelet colour correction)
    """
    return pixels + low_pass(reference - pixels)


def _match_adain(pixels: Tensor, reference: Tensor) -> Tensor:
    """Return the pixels with the reference's mean and deviation in each channel.

    out = (sr - mu_sr) / sd_sr * sd_lq + mu_lq, sd = sqrt(unbiased variance + eps)   (arXiv:1703.06868, eq. 8)
    """
    num_values = pixels.shape[2] * pixels.shape[3]
    correction = min(1, num_values - 1)  # A single pixel has no spread; 0 / 0 otherwise.

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=correction, keepdim=True)
        return mean, (variance + ADAIN_EPSILON).sqrt()

    mean, deviation = statistics(pixels)
    reference_mean, reference_deviation = statistics(reference)
    return (pixels - mean) * (reference_deviation / deviation) + reference_mean


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
    """Return ``values`` replaced by the reference's value of the same rank, in each channel of each image.

    sorted(out) = sorted(ref); equal values keep the order of their places.

    Args:
        values: [B, C, H, W].
        reference: [B, C, H, W].
    """
    order = values.flatten(2).argsort(dim=2, stable=True)
    ranked = reference.flatten(2).sort(dim=2).values
    return torch.empty_like(ranked).scatter_(2, order, ranked).view_as(values)


def _match_lab(pixels: Tensor, reference: Tensor) -> Tensor:
    """Return the wavelet match with the reference's a* and b* histograms and a fifth of its lightness histogram.

    a*, b* = matched; L* = 0.8 L* + 0.2 matched; clamped to -1 to 1   (SeedVR2's lab method)
    """
    restored, wanted = rgb_to_lab(_match_wavelet(pixels, reference)), rgb_to_lab(reference)
    matched = match_histogram(restored, wanted)
    lightness = LAB_LIGHTNESS_KEPT * restored[:, :1] + (1.0 - LAB_LIGHTNESS_KEPT) * matched[:, :1]
    return lab_to_rgb(torch.cat([lightness, matched[:, 1:]], dim=1))


def _match_ycbcr(pixels: Tensor, reference: Tensor) -> Tensor:
    """Return the reference with the pixels' luma: Cb and Cr from the reference, Y from the restored.

    In BT.601 full range Cb ~ B - Y and Cr ~ R - Y, so a change of Y alone adds the same to R, G and B:
    out = lq + Y(sr - lq).
    """
    return reference + luma(pixels - reference)


_METHODS: dict[ColorMethod, Callable[[Tensor, Tensor], Tensor]] = {
    "none": _match_nothing,
    "wavelet": _match_wavelet,
    "adain": _match_adain,
    "lab": _match_lab,
    "ycbcr": _match_ycbcr,
}


def match_color(pixels: Tensor, reference: Tensor, method: ColorMethod) -> Tensor:
    """Return ``pixels`` with the colours of ``reference``: [B, 3, H, W], float32, same device.

    Only lab clamps its result to -1 to 1. adain and lab use statistics of the whole frame, so they must not be
    applied to tiles.

    Args:
        pixels: [B, 3, H, W], nominally -1 to 1: the restored frame without padding.
        reference: [B, 3, H, W] in -1 to 1: the input at the same size, same device.
        method: which of the five.

    Raises:
        ImageError: the two differ in shape.
    """
    if pixels.shape != reference.shape:
        raise ImageError(
            f"expected a colour reference of the same shape as the image, {tuple(pixels.shape)},"
            f" got {tuple(reference.shape)}: resize the reference first"
        )
    return _METHODS[method](pixels.to(torch.float32), reference.to(torch.float32))
