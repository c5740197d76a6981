"""Random x4 damage: strengths drawn from ranges, then the pure functions of ``gendr_core.degrade``.

Role: called by ``dataset`` on every crop. Everything random comes from the generator that is passed in, so the same
generator state gives the same damage.
"""

import math

import torch
from torch import Tensor

from gendr_core.degrade import (
    DownscaleMethod,
    add_gaussian_noise,
    add_shot_noise,
    blur,
    downscale,
    gaussian_kernel,
    jpeg,
)

from ..degradations import Degradation
from .chance import chance, uniform

SCALE = 4
"""Size of the original over size of the damaged image."""


def degrade_randomly(image_bchw: Tensor, ranges: Degradation, generator: torch.Generator) -> Tensor:
    """Return the damaged image [B, 3, H/4, W/4], float32 0..1; with values k/255 where JPEG was drawn.

    Args:
        image_bchw: [B, 3, H, W] float32, 0..1, CPU, sides multiples of 4; one draw serves the whole batch.
        ranges: what the strengths are drawn from.
        generator: source of every draw and of the noise; its state advances.
    """
    image = image_bchw
    if chance(ranges.blur_probability, generator):
        image = blur(image, _random_kernel(ranges, generator))
    image = downscale(image, SCALE, _random_method(ranges, generator))
    if chance(ranges.noise_probability, generator):
        image = _add_random_noise(image, ranges, generator)
    if chance(ranges.jpeg_probability, generator):
        return jpeg(image, round(uniform(ranges.jpeg_quality, generator)))
    return image.clamp(0.0, 1.0)


def _random_kernel(ranges: Degradation, generator: torch.Generator) -> Tensor:
    along = uniform(ranges.blur_sigma_px, generator)
    if not chance(ranges.anisotropic_probability, generator):
        return gaussian_kernel(along, along)
    across = uniform(ranges.blur_sigma_px, generator)
    return gaussian_kernel(along, across, uniform((0.0, math.pi), generator))


def _random_method(ranges: Degradation, generator: torch.Generator) -> DownscaleMethod:
    if chance(ranges.bicubic_probability, generator):
        return "bicubic"
    return "bilinear" if chance(0.5, generator) else "area"


def _add_random_noise(image: Tensor, ranges: Degradation, generator: torch.Generator) -> Tensor:
    gray = chance(ranges.gray_probability, generator)
    if chance(ranges.shot_probability, generator):
        # Spread is 1/sqrt(photons), so even steps in the exponent are even steps in strength.
        low, high = ranges.shot_photons
        photons = math.exp(uniform((math.log(low), math.log(high)), generator))
        return add_shot_noise(image, photons, gray=gray, generator=generator)
    sigma = uniform(ranges.noise_sigma_8bit, generator) / 255.0
    return add_gaussian_noise(image, sigma, gray=gray, generator=generator)
