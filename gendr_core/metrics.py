"""How good an image is: full-reference and no-reference scores that need no weights and no download.

Role: used by ``gendr evaluate``, the training's validation and the benchmarks; the pipeline does not score.
Every function takes images [B, H, W, C] in 0 to 1 with C of 1 or 3 and returns one float64 score per image, [B].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ImageError

STUDIO_WEIGHTS, STUDIO_OFFSET = (65.481 / 255.0, 128.553 / 255.0, 24.966 / 255.0), 16.0 / 255.0
"""BT.601 luma in studio range, 16 to 235 of 255: what restoration papers call the Y channel."""

SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
"""Window and constants of Wang et al. 2004, Image quality assessment, section III-C, for a data range of 1."""

COLOR_GRID = 16
"""Cells per edge that ``color_shift`` compares: coarse enough to see colours and not detail."""
MEDIAN_TO_SIGMA = 0.6744897501960817
"""Median of |x| for a standard normal x."""


def luma_studio(image: Tensor) -> Tensor:
    """Return Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255 as float64 [B, 1, H, W], 0.063 to 0.922.

    Gray counts as equal R, G and B.

    Raises:
        ImageError: the image is not [B, H, W, 1] or [B, H, W, 3].
    """
    if image.ndim != 4 or image.shape[3] not in (1, 3):
        raise ImageError(
            f"expected an image [batch, height, width, 1 or 3] to score, got shape {tuple(image.shape)}: drop the alpha"
        )
    rgb = image.to(torch.float64).expand(-1, -1, -1, 3)
    return ((rgb * rgb.new_tensor(STUDIO_WEIGHTS)).sum(dim=3) + STUDIO_OFFSET).unsqueeze(1)


def _luma_levels(image: Tensor) -> Tensor:
    """Return BT.601 luma in 8-bit levels, full range 0 to 255, float64 [B, 1, H, W]."""
    return (luma_studio(image) - STUDIO_OFFSET) * (255.0 * 255.0 / 219.0)


def _both_luma(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape[:3] != target.shape[:3]:
        raise ImageError(
            f"expected two images of the same size to compare, got {tuple(image.shape)} and {tuple(target.shape)}:"
            " resize one of them"
        )
    return luma_studio(image), luma_studio(target)


def psnr_y(image: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of studio luma in dB, [B]; infinite for equal images. Higher is better.

    PSNR = -10 log10 mean (Y - Y')^2, no border cropped, values not rounded to 8 bits.

    Raises:
        ImageError: the two differ in size, or have alpha.
    """
    y, y_target = _both_luma(image, target)
    return -10.0 * (y - y_target).square().mean(dim=(1, 2, 3)).log10()


def _gaussian_mean(x: Tensor) -> Tensor:
    place = torch.arange(SSIM_WINDOW_PX, dtype=x.dtype, device=x.device) - SSIM_WINDOW_PX // 2
    weights = torch.exp(-place.square() / (2.0 * SSIM_SIGMA_PX**2))
    weights = weights / weights.sum()
    rows = F.conv2d(x, weights.view(1, 1, -1, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, -1))


def ssim_y(image: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of studio luma, [B], at most 1 for equal images. Higher is better.

    SSIM = mean (2 m m' + C1)(2 s_mm' + C2) / ((m^2 + m'^2 + C1)(s^2 + s'^2 + C2)) with an 11x11 gaussian window of
    sigma 1.5, over the pixels whose window lies inside   (Wang et al. 2004, eq. 13 and 17).

    Raises:
        ImageError: the two differ in size, have alpha, or an edge is shorter than 11 pixels.
    """
    y, y_target = _both_luma(image, target)
    if min(y.shape[2:]) < SSIM_WINDOW_PX:
        raise ImageError(
            f"expected edges of at least {SSIM_WINDOW_PX} pixels for SSIM, got {y.shape[3]}x{y.shape[2]}:"
            " use a larger image"
        )
    mean, mean_target = _gaussian_mean(y), _gaussian_mean(y_target)
    variance = _gaussian_mean(y * y) - mean * mean
    variance_target = _gaussian_mean(y_target * y_target) - mean_target * mean_target
    covariance = _gaussian_mean(y * y_target) - mean * mean_target
    luminance = (2.0 * mean * mean_target + SSIM_C1) / (mean.square() + mean_target.square() + SSIM_C1)
    structure = (2.0 * covariance + SSIM_C2) / (variance + variance_target + SSIM_C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def noise_sigma(image: Tensor) -> Tensor:
    """Return the standard deviation of white luma noise in 8-bit levels, [B]. Fine texture counts in part.

    sigma = median |I * M| / (0.6745 * 6), M = [1 -2 1]^T [1 -2 1], whose norm is 6: the mask of Immerkaer 1996
    (Fast noise variance estimation) with the median of Donoho and Johnstone 1994, which edges hardly move.
    0 for images with an edge below 3 pixels.
    """
    y = _luma_levels(image)
    if min(y.shape[2:]) < 3:
        return y.new_zeros(y.shape[0])
    residual = y.diff(n=2, dim=2).diff(n=2, dim=3)
    return residual.abs().flatten(1).median(dim=1).values / (MEDIAN_TO_SIGMA * 6.0)


def sharpness(image: Tensor) -> Tensor:
    """Return the mean gradient of luma in 8-bit levels per pixel, [B]. Noise and ringing raise it too.

    mean sqrt(dx^2 + dy^2) with forward differences. 0 for images with an edge of 1 pixel.
    """
    y = _luma_levels(image)
    if min(y.shape[2:]) < 2:
        return y.new_zeros(y.shape[0])
    across, down = y.diff(dim=3)[:, :, 1:, :], y.diff(dim=2)[:, :, :, 1:]
    return (across.square() + down.square()).sqrt().mean(dim=(1, 2, 3))


def grid_ratio(image: Tensor, period_px: int = 8) -> Tensor:
    """Return how much stronger luma steps are across the lines of a grid than elsewhere, [B]; 1 means no grid.

    mean |step between pixels k - 1 and k| over k divisible by ``period_px``, over the same mean for all other k;
    the mean of both axes. With 8 it measures JPEG blocks (after enlarging by s: 8 s), with a tile's stride the
    seams of tiles. 1 where the image is flat or has no such line.

    Args:
        image: [B, H, W, C].
        period_px: distance between the lines of the grid, at least 2; the grid starts at the top left corner.
    """
    y = _luma_levels(image)
    ratios: list[Tensor] = []
    for axis in (2, 3):
        steps = y.diff(dim=axis).abs().mean(dim=(1, 5 - axis))  # [B, length - 1], step k - 1 is before pixel k
        on_line = torch.arange(1, y.shape[axis], device=y.device) % period_px == 0
        if bool(on_line.any()) and not bool(on_line.all()):
            on, off = steps[:, on_line].mean(dim=1), steps[:, ~on_line].mean(dim=1)
            ratios.append(torch.where(on == off, 1.0, on / off))
    return torch.stack(ratios).mean(dim=0) if ratios else y.new_ones(y.shape[0])


def color_shift(image: Tensor, reference: Tensor) -> Tensor:
    """Return how far coarse colours are from the reference's, mean distance in RGB in 8-bit levels, [B].

    Both are averaged to at most 16x16 cells by a triangle filter, so the sizes may differ (the input at its own
    size is a fit reference) and detail has no say. Lower is better; 0 to 441.

    Raises:
        ImageError: the batches or channels differ.
    """
    if image.shape[0] != reference.shape[0] or image.shape[3] != reference.shape[3]:
        raise ImageError(
            f"expected as many images and channels in both, got {tuple(image.shape)} and {tuple(reference.shape)}:"
            " compare like with like"
        )
    rows, columns = (min(COLOR_GRID, image.shape[axis], reference.shape[axis]) for axis in (1, 2))

    def coarse(x: Tensor) -> Tensor:
        planes = x.to(torch.float64).expand(-1, -1, -1, 3).permute(0, 3, 1, 2).contiguous()
        return F.interpolate(planes, (rows, columns), mode="bilinear", align_corners=False, antialias=True) * 255.0

    distance = (coarse(image) - coarse(reference)).square().sum(dim=1).sqrt()
    return distance.mean(dim=(1, 2))
