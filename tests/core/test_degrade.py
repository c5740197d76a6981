"""The evaluation recipes: fixed, seeded, and ordered by severity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_core.degrade import (
    HEAVY,
    LIGHT,
    Recipe,
    add_gaussian_noise,
    add_shot_noise,
    blur,
    degrade,
    downscale,
    gaussian_kernel,
    jpeg,
)
from gendr_core.errors import ImageError, OptionError


def _picture(height: int = 64, width: int = 64) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 9, width), indexing="ij")
    return torch.stack([x.sin(), y.cos(), (x * y).sin()], dim=-1)[None] * 0.4 + 0.5


@pytest.mark.parametrize("recipe", [LIGHT, HEAVY], ids=lambda recipe: recipe.name)
def test_degrade_is_seeded_quantised_and_leaves_its_input_and_the_global_generator_alone(recipe: Recipe) -> None:
    image = _picture()
    before, state = image.clone(), torch.get_rng_state()
    first, second, other = degrade(image, recipe, 5), degrade(image, recipe, 5), degrade(image, recipe, 6)
    assert first.shape == (1, 16, 16, 3)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal((first * 255).round() / 255, first)
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_heavy_is_further_from_the_original_than_light() -> None:
    image = _picture(256, 256)
    clean = downscale(image.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    light, heavy = ((degrade(image, recipe, 1) - clean).square().mean() for recipe in (LIGHT, HEAVY))
    assert heavy > 1.5 * light > 0


@given(st.floats(0.3, 4.0), st.floats(0.3, 4.0), st.floats(0.0, 3.2))
@settings(deadline=None, max_examples=30)
def test_kernels_are_odd_normalised_and_keep_constants(sigma_x: float, sigma_y: float, angle: float) -> None:
    kernel = gaussian_kernel(sigma_x, sigma_y, angle)
    assert kernel.shape[0] == kernel.shape[1]
    assert kernel.shape[0] % 2 == 1
    assert torch.allclose(kernel.sum(), torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-6)
    constant = torch.full((1, 3, 5, 7), 0.25)
    assert torch.allclose(blur(constant, kernel), constant, atol=1e-5)


def test_an_isotropic_kernel_has_the_asked_spread() -> None:
    kernel = gaussian_kernel(2.0, 2.0)
    offsets = torch.arange(kernel.shape[0]) - kernel.shape[0] // 2
    assert float((kernel.sum(0) * offsets.square()).sum()) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "area"])
def test_downscale_keeps_constants_and_divides_sides(method: str) -> None:
    constant = torch.full((2, 3, 8, 12), 0.4)
    small = downscale(constant, 4, method)  # type: ignore[arg-type]
    assert torch.allclose(small, torch.full((2, 3, 2, 3), 0.4), atol=1e-6)


def test_noise_strength_and_grayness() -> None:
    flat = torch.full((1, 3, 128, 128), 0.25)
    generator = torch.Generator().manual_seed(0)
    colour = add_gaussian_noise(flat, 0.1, gray=False, generator=generator) - flat
    gray = add_shot_noise(flat, 100.0, gray=True, generator=generator) - flat
    assert float(colour.std()) == pytest.approx(0.1, rel=0.03)
    assert float(gray.std()) == pytest.approx((0.25 / 100) ** 0.5, rel=0.03)
    assert torch.allclose(gray[:, 0], gray[:, 1])
    assert not torch.allclose(colour[:, 0], colour[:, 1])


def test_jpeg_is_nearly_exact_on_gray_and_worse_at_low_quality() -> None:
    flat = torch.full((1, 3, 16, 16), 100 / 255)
    assert torch.allclose(jpeg(flat, 90), flat, atol=1.01 / 255)
    image = _picture().permute(0, 3, 1, 2)
    fine, coarse = ((jpeg(image, quality) - image).abs().mean() for quality in (95, 10))
    assert coarse > 2 * fine


@pytest.mark.parametrize("shape", [(64, 64, 3), (2, 64, 64, 3), (1, 64, 64, 4), (1, 62, 64, 3), (1, 0, 4, 3)])
def test_unusable_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="expected"):
        degrade(torch.zeros(shape), LIGHT, 0)


def test_unusable_recipes_are_refused() -> None:
    for wrong in ({"jpeg_quality": (0, 50)}, {"blur_sigma_px": (2.0, 1.0)}, {"scale": 0}):
        with pytest.raises(OptionError, match="expected"):
            Recipe(
                **{"name": "x", "blur_sigma_px": (1, 1), "noise_sigma_8bit": (0, 0), "jpeg_quality": (9, 9), **wrong}
            )
