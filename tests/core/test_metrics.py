"""Scores against hand-made numbers and the formulas written out directly."""

import math

import pytest
import torch
from torch import Tensor

from gendr_core.errors import ImageError
from gendr_core.metrics import color_shift, grid_ratio, luma_studio, noise_sigma, psnr_y, sharpness, ssim_y


def image_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth_image(height: int, width: int) -> Tensor:
    rows = torch.sin(torch.arange(height) / 9.0)[:, None]
    columns = torch.cos(torch.arange(width) / 7.0)[None]
    return (0.5 + 0.2 * rows + 0.2 * columns)[None, ..., None].expand(1, height, width, 3)


def test_luma_runs_from_16_to_235() -> None:
    ends = luma_studio(torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)).flatten() * 255.0
    assert ends.tolist() == pytest.approx([16.0, 235.0])
    gray = image_of(1, 4, 4, 1)
    assert torch.equal(luma_studio(gray), luma_studio(gray.expand(-1, -1, -1, 3)))


def test_psnr_on_numbers() -> None:
    """All of RGB off by 0.1: Y off by 0.1 * 219 / 255."""
    target = torch.full((2, 4, 4, 3), 0.5)
    image = target.clone()
    image[1] += 0.1
    scores = psnr_y(image, target)
    assert scores[0] == math.inf
    assert float(scores[1]) == pytest.approx(-20.0 * math.log10(0.1 * 219.0 / 255.0), abs=1e-5)


def test_ssim_is_the_formula_in_every_window() -> None:
    image, target = image_of(1, 13, 12, 3, seed=1), image_of(1, 13, 12, 3, seed=2)
    place = torch.arange(11, dtype=torch.float64) - 5.0
    window = torch.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2.0 * 1.5**2))
    window /= window.sum()
    x, y = luma_studio(image)[0, 0], luma_studio(target)[0, 0]
    scores: list[float] = []
    for row in range(3):
        for column in range(2):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_a, mean_b = float((window * a).sum()), float((window * b).sum())
            variance_a, variance_b = (
                float((window * (a - mean_a) ** 2).sum()),
                float((window * (b - mean_b) ** 2).sum()),
            )
            covariance = float((window * (a - mean_a) * (b - mean_b)).sum())
            top = (2 * mean_a * mean_b + 0.0001) * (2 * covariance + 0.0009)
            scores.append(top / ((mean_a**2 + mean_b**2 + 0.0001) * (variance_a + variance_b + 0.0009)))
    assert float(ssim_y(image, target)) == pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_ssim_of_equal_images_is_1_and_falls_with_noise() -> None:
    clean = smooth_image(40, 40)
    noise = torch.randn(1, 40, 40, 3, generator=torch.Generator().manual_seed(0))
    scores = [float(ssim_y((clean + amount * noise).clamp(0, 1), clean)) for amount in (0.0, 0.02, 0.1)]
    assert scores[0] == pytest.approx(1.0)
    assert scores[0] > scores[1] > scores[2]


def test_scores_refuse_what_they_cannot_compare() -> None:
    with pytest.raises(ImageError, match="same size"):
        psnr_y(torch.rand(1, 4, 4, 3), torch.rand(1, 4, 5, 3))
    with pytest.raises(ImageError, match=r"at least 11 pixels.*got 40x10"):
        ssim_y(torch.rand(1, 10, 40, 3), torch.rand(1, 10, 40, 3))
    with pytest.raises(ImageError, match="drop the alpha"):
        psnr_y(torch.rand(1, 4, 4, 4), torch.rand(1, 4, 4, 4))
    with pytest.raises(ImageError, match="as many images"):
        color_shift(torch.rand(2, 4, 4, 3), torch.rand(1, 4, 4, 3))


@pytest.mark.parametrize("sigma", [2.0, 10.0, 25.0])
def test_noise_sigma_finds_white_noise_on_a_picture_with_edges(sigma: float) -> None:
    clean = smooth_image(128, 128).clone()
    clean[:, :, 64:] *= 0.6
    noise = torch.randn(1, 128, 128, 1, generator=torch.Generator().manual_seed(0))
    assert float(noise_sigma(clean + noise * sigma / 255.0)) == pytest.approx(sigma, rel=0.05, abs=0.3)
    assert float(noise_sigma(clean)) < 0.1


def test_sharpness_of_a_ramp_is_its_slope_and_blur_lowers_it() -> None:
    ramp = (torch.arange(50.0) * 3.0 / 255.0).view(1, 1, 50, 1).expand(1, 20, 50, 3)
    assert float(sharpness(ramp)) == pytest.approx(3.0, abs=1e-3)
    noisy = image_of(1, 32, 32, 3)
    blurred = torch.nn.functional.avg_pool2d(noisy.permute(0, 3, 1, 2), 3, 1).permute(0, 2, 3, 1)
    assert float(sharpness(blurred)) < float(sharpness(noisy))


@pytest.mark.parametrize("period", [8, 32])
def test_grid_ratio_sees_blocks_of_its_own_period_only(period: int) -> None:
    textured = image_of(1, 160, 192, 3)
    assert float(grid_ratio(textured, period)) == pytest.approx(1.0, abs=0.05)
    cells = image_of(1, 160 // period, 192 // period, 1, seed=3)
    blocks = cells.repeat_interleave(period, dim=1).repeat_interleave(period, dim=2)
    blocky = (0.9 * textured + 0.1 * 8.0 * (blocks - 0.5)).expand(1, 160, 192, 3)
    assert float(grid_ratio(blocky, period)) > 1.2
    assert float(grid_ratio(blocky, period - 1)) < 1.1


def test_grid_ratio_on_numbers() -> None:
    """Steps of 3 across the line at pixel 4 and of 1 elsewhere, along one axis; 0 against 0 along the other."""
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 6.0, 7.0]) / 255.0
    image = values.view(1, 1, 6, 1).expand(1, 6, 6, 3)
    assert float(grid_ratio(image, 4)) == pytest.approx((3.0 + 1.0) / 2.0, abs=1e-4)


def test_flat_and_tiny_images_score_neutrally() -> None:
    for size in (1, 2, 40):
        flat = torch.full((2, size, size, 3), 0.5)
        assert grid_ratio(flat).tolist() == [1.0, 1.0]
        assert noise_sigma(flat).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
        assert sharpness(flat).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
        assert color_shift(flat, flat).tolist() == [0.0, 0.0]


def test_color_shift_is_the_distance_of_the_casts() -> None:
    reference = image_of(1, 30, 40, 3) * 0.5
    cast = torch.tensor([3.0, 0.0, -4.0]) / 255.0
    assert float(color_shift(reference + cast, reference)) == pytest.approx(5.0, abs=1e-4)


def test_color_shift_ignores_size_and_detail() -> None:
    image = smooth_image(160, 200)
    enlarged = image.permute(0, 3, 1, 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).permute(0, 2, 3, 1)
    assert float(color_shift(enlarged, image)) < 0.05
    checker = ((torch.arange(160)[:, None] + torch.arange(200)[None]) % 2 - 0.5)[None, ..., None] * 0.2
    assert float(color_shift(image + checker, image)) < 0.2
