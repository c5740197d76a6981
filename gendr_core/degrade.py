"""Photo in, damaged photo out: the pure degradations, and the two fixed recipes that quality is measured with.

Role: ``gendr evaluate`` and validation make their inputs with ``degrade``; gendr_train draws random strengths and
calls the same functions. Order, as in the degradation tables of docs/algorithm.md (A5): blur -> antialiased downscale
-> noise -> JPEG. All in float; the result has been through an 8-bit JPEG file, as real inputs have.
"""

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .errors import ImageError, OptionError

DownscaleMethod = Literal["bicubic", "bilinear", "area"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """An evaluation degradation: a range per strength, drawn uniformly from the seed given to ``degrade``."""

    name: str
    scale: int = 4
    """Size of the original over size of the result."""
    blur_sigma_px: tuple[float, float]
    """Standard deviation of the isotropic Gaussian blur, in pixels of the original."""
    noise_sigma_8bit: tuple[float, float]
    """Standard deviation of the Gaussian colour noise, in 8-bit steps (1/255)."""
    jpeg_quality: tuple[int, int]
    """Pillow's quality number, both ends included; chroma at half resolution."""

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            OptionError: a range is empty, negative or outside JPEG's 1 to 95, or the scale is below 1.
        """
        if self.scale < 1:
            raise OptionError(f"expected a scale of at least 1, got {self.scale}")
        for name in ("blur_sigma_px", "noise_sigma_8bit", "jpeg_quality"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise OptionError(f"expected {name} as (low, high) with 0 <= low <= high, got ({low}, {high})")
        low, high = self.jpeg_quality
        if not 1 <= low <= high <= 95:
            raise OptionError(f"expected jpeg_quality from 1 to 95, got ({low}, {high})")


LIGHT = Recipe(name="light", blur_sigma_px=(0.6, 1.0), noise_sigma_8bit=(1.0, 3.0), jpeg_quality=(80, 95))
"""A photo that was shrunk and saved with care."""
HEAVY = Recipe(name="heavy", blur_sigma_px=(1.5, 2.5), noise_sigma_8bit=(8.0, 15.0), jpeg_quality=(35, 60))
"""A soft, noisy photo saved with visible blocks."""


def gaussian_kernel(sigma_x_px: float, sigma_y_px: float, angle_rad: float = 0.0) -> Tensor:
    """Return a normalised Gaussian [k, k], float32, k odd and covering three sigmas on each side.

    exp(-((x cos a + y sin a)^2 / (2 sx^2) + (y cos a - x sin a)^2 / (2 sy^2))), sum 1.

    Args:
        sigma_x_px: standard deviation along the axis at ``angle_rad``, above 0.
        sigma_y_px: standard deviation across it, above 0.
        angle_rad: rotation of the first axis.
    """
    radius = max(1, math.ceil(3.0 * max(sigma_x_px, sigma_y_px)))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along = x * math.cos(angle_rad) + y * math.sin(angle_rad)
    across = y * math.cos(angle_rad) - x * math.sin(angle_rad)
    kernel = torch.exp(-0.5 * ((along / sigma_x_px) ** 2 + (across / sigma_y_px) ** 2))
    return kernel / kernel.sum()


def blur(image_bchw: Tensor, kernel: Tensor) -> Tensor:
    """Return the image filtered by one kernel on every channel, edges replicated, same shape.

    Args:
        image_bchw: [B, C, H, W] float.
        kernel: [k, k] float32, k odd, sum 1.
    """
    channels, radius = image_bchw.shape[1], kernel.shape[0] // 2
    padded = functional.pad(image_bchw, (radius, radius, radius, radius), mode="replicate")
    weight = kernel.to(image_bchw).expand(channels, 1, *kernel.shape)
    return functional.conv2d(padded, weight, groups=channels)


def downscale(image_bchw: Tensor, factor: int, method: DownscaleMethod = "bicubic") -> Tensor:
    """Return the image at 1/factor of its size, antialiased by the chosen filter; values may overshoot slightly.

    Args:
        image_bchw: [B, C, H, W] float, H and W multiples of ``factor``.
        factor: at least 1.
        method: the resampling filter.
    """
    size = (image_bchw.shape[2] // factor, image_bchw.shape[3] // factor)
    if method == "area":
        return functional.interpolate(image_bchw, size=size, mode="area")
    return functional.interpolate(image_bchw, size=size, mode=method, antialias=True, align_corners=False)


def _noise_like(image_bchw: Tensor, gray: bool, generator: torch.Generator) -> Tensor:
    batch, channels, height, width = image_bchw.shape
    return torch.randn((batch, 1 if gray else channels, height, width), generator=generator)


def add_gaussian_noise(image_bchw: Tensor, sigma: float, *, gray: bool, generator: torch.Generator) -> Tensor:
    """Return image + sigma * n with n standard normal, not clamped.

    Args:
        image_bchw: [B, C, H, W] float, 0..1, CPU.
        sigma: standard deviation on the 0..1 scale.
        gray: whether all channels share one noise field.
        generator: source of the noise.
    """
    return image_bchw + sigma * _noise_like(image_bchw, gray, generator)


def add_shot_noise(image_bchw: Tensor, photons: float, *, gray: bool, generator: torch.Generator) -> Tensor:
    """Return image + sqrt(image / photons) * n: the normal approximation of Poisson noise, not clamped.

    Args:
        image_bchw: [B, C, H, W] float, 0..1, CPU; negative overshoot counts as 0 light.
        photons: photons at full white; fewer means more noise.
        gray: whether all channels share one noise field.
        generator: source of the noise.
    """
    spread = (image_bchw.clamp(min=0.0) / photons).sqrt()
    return image_bchw + spread * _noise_like(image_bchw, gray, generator)


def jpeg(image_bchw: Tensor, quality: int) -> Tensor:
    """Return the image after one JPEG file (4:2:0): clamped, 8 bits, values k/255 as float32.

    Args:
        image_bchw: [B, 3, H, W] float, CPU; clamped to 0..1 first.
        quality: Pillow's number, 1 to 95.
    """
    bytes_bhwc = (image_bchw.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    decoded: list[Tensor] = []
    for picture_hwc in bytes_bhwc:
        file = io.BytesIO()
        Image.fromarray(picture_hwc.numpy()).save(file, format="JPEG", quality=quality, subsampling="4:2:0")
        with Image.open(file) as picture:
            decoded.append(torch.as_tensor(np.array(picture)))
    return torch.stack(decoded).permute(0, 3, 1, 2).to(torch.float32) / 255.0


def _draw(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def degrade(image_bhwc: Tensor, recipe: Recipe, seed: int) -> Tensor:
    """Return the damaged image [1, H/scale, W/scale, 3], float32 with values k/255; the same for the same arguments.

    Args:
        image_bhwc: [1, H, W, 3] float, 0..1, CPU; H and W multiples of the recipe's scale.
        recipe: the strengths, e.g. ``LIGHT`` or ``HEAVY``.
        seed: picks the strengths and the noise.

    Raises:
        ImageError: the image is not one RGB image whose sides divide by the scale.
    """
    scale = recipe.scale
    shape = tuple(image_bhwc.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
        raise ImageError(f"expected one RGB image [1, H, W, 3] to degrade, got shape {shape}")
    if shape[1] < scale or shape[2] < scale or shape[1] % scale or shape[2] % scale:
        raise ImageError(f"expected sides that divide by {scale}, got {shape[2]}x{shape[1]}: crop the image first")
    generator = torch.Generator().manual_seed(seed)
    sigma_px = _draw(generator, *recipe.blur_sigma_px)
    noise_sigma = _draw(generator, *recipe.noise_sigma_8bit) / 255.0
    lowest, highest = recipe.jpeg_quality
    quality = int(torch.randint(lowest, highest + 1, (), generator=generator))

    image = image_bhwc.permute(0, 3, 1, 2).to(torch.float32)
    if sigma_px > 0.0:
        image = blur(image, gaussian_kernel(sigma_px, sigma_px))
    image = downscale(image, scale)
    image = add_gaussian_noise(image, noise_sigma, gray=False, generator=generator)
    return jpeg(image, quality).permute(0, 2, 3, 1).contiguous()
