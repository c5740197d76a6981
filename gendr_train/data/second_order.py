"""Two rounds of blur, resize, noise and JPEG, and a last low-pass: the damage of real photos as Real-ESRGAN draws it.

Role: called by ``dataset`` in the workers and by ``damage`` on the device. Strengths are drawn first and noise fields
after them, all from one CPU generator and never depending on pixels, so every device sees the same draws. After
Real-ESRGAN (arXiv:2107.10833) and its published training options. Here each image has resizes of its own,
where there a batch shares them; edges are replicated instead of reflected; and Poisson noise is its normal
approximation, as in ``gendr_core.degrade``, with 256 photons at white whatever levels the image holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from gendr_core.degrade import blur, jpeg

from ..degradations import Range, Round, SecondOrder
from .chance import chance, pick, uniform
from .degrade import SCALE
from .kernels import random_kernel, random_sinc

ResizeMethod = Literal["area", "bilinear", "bicubic"]
Jpeg = Callable[[Tensor, int], Tensor]

METHODS: tuple[ResizeMethod, ...] = ("area", "bilinear", "bicubic")
PHOTONS = 256.0
"""At white and Poisson scale 1: 8-bit levels counted as photons."""
GRAY_WEIGHTS = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundStrengths:
    """What one round does."""

    kernel: Tensor | None
    """[k, k] float32, CPU; none leaves the image sharp."""
    factor: float
    """Size of the result over that of the original in the first round, of the damaged image in the second."""
    method: ResizeMethod
    gaussian: bool
    """Gaussian noise, else Poisson."""
    noise: float
    """Standard deviation on the 0..1 scale, or Poisson's multiple."""
    gray: bool
    quality: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Strengths:
    """What happens to one image."""

    first: RoundStrengths
    second: RoundStrengths
    last_method: ResizeMethod
    last_kernel: Tensor | None
    """[k, k] low-pass, float32, CPU."""
    jpeg_last: bool
    """The second JPEG comes after the last resize and low-pass, else before them."""


def draw_strengths(ranges: SecondOrder, generator: torch.Generator) -> Strengths:
    """Return the strengths of one image.

    Args:
        ranges: what they are drawn from.
        generator: CPU; its state advances.
    """
    return Strengths(
        first=_draw_round(ranges.first, generator),
        second=_draw_round(ranges.second, generator),
        last_method=_draw_method(generator),
        last_kernel=random_sinc(ranges.second, generator) if chance(ranges.last_sinc_probability, generator) else None,
        jpeg_last=chance(0.5, generator),
    )


def degrade_second_order(
    image_bchw: Tensor, ranges: SecondOrder, generator: torch.Generator, *, compress: Jpeg = jpeg
) -> Tensor:
    """Return the damaged image [B, 3, H/4, W/4], float32 with values k/255, on the image's device.

    Args:
        image_bchw: [B, 3, H, W] float32, 0..1, sides multiples of 4; one draw of strengths serves the whole batch.
        ranges: what the strengths are drawn from.
        generator: CPU; source of every draw and of the noise; its state advances.
        compress: what JPEG does; the default needs a CPU image, ``jpeg_on_device`` none.
    """
    strengths = draw_strengths(ranges, generator)
    height, width = image_bchw.shape[2] // SCALE, image_bchw.shape[3] // SCALE
    first, second = strengths.first, strengths.second

    image = _blur_resize_noise(image_bchw, first, (SCALE * height, SCALE * width), generator)
    image = compress(image, first.quality)
    image = _blur_resize_noise(image, second, (height, width), generator)
    if not strengths.jpeg_last:
        image = compress(image, second.quality)
    image = _resize(image, (height, width), strengths.last_method)
    if strengths.last_kernel is not None:
        image = blur(image, strengths.last_kernel)
    if strengths.jpeg_last:
        image = compress(image, second.quality)
    return (image.clamp(0.0, 1.0) * 255.0).round() / 255.0


def _draw_round(ranges: Round, generator: torch.Generator) -> RoundStrengths:
    kernel = random_kernel(ranges, generator) if chance(ranges.blur_probability, generator) else None
    factor = _draw_factor(ranges, generator)
    method = _draw_method(generator)
    gaussian = chance(ranges.gaussian_probability, generator)
    low, high = ranges.noise_sigma_8bit
    noise: Range = (low / 255.0, high / 255.0) if gaussian else ranges.poisson_scale
    return RoundStrengths(
        kernel=kernel,
        factor=factor,
        method=method,
        gaussian=gaussian,
        noise=uniform(noise, generator),
        gray=chance(ranges.gray_probability, generator),
        quality=round(uniform(ranges.jpeg_quality, generator)),
    )


def _draw_factor(ranges: Round, generator: torch.Generator) -> float:
    smallest, largest = ranges.resize
    up, down = ranges.enlarge_probability, ranges.shrink_probability
    # The rest is what rounding may leave just below 0.
    spans: tuple[Range, ...] = ((1.0, largest), (smallest, 1.0), (1.0, 1.0))
    return uniform(spans[pick((up, down, max(0.0, 1.0 - up - down)), generator)], generator)


def _draw_method(generator: torch.Generator) -> ResizeMethod:
    return METHODS[pick((1.0, 1.0, 1.0), generator)]


def _blur_resize_noise(
    image: Tensor, strengths: RoundStrengths, unit: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Do a round up to its JPEG; ``unit`` is the size [H, W] that a factor of 1 gives."""
    if strengths.kernel is not None:
        image = blur(image, strengths.kernel)
    height, width = (max(1, int(side * strengths.factor)) for side in unit)
    image = _resize(image, (height, width), strengths.method)
    field = torch.randn((len(image), 1 if strengths.gray else 3, height, width), generator=generator).to(image.device)
    if strengths.gaussian:
        return (image + strengths.noise * field).clamp(0.0, 1.0)
    light = image.clamp(0.0, 1.0)
    if strengths.gray:
        light = (light * light.new_tensor(GRAY_WEIGHTS).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    return (image + strengths.noise * (light / PHOTONS).sqrt() * field).clamp(0.0, 1.0)


def _resize(image: Tensor, size: tuple[int, int], method: ResizeMethod) -> Tensor:
    """Resample without a low-pass before: the aliasing of careless software is part of the damage."""
    if method == "area":
        return functional.interpolate(image, size=size, mode="area")
    return functional.interpolate(image, size=size, mode=method, align_corners=False)
