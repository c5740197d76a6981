"""What random x4 damage is drawn from, as frozen values: the first-order recipe of photos and the second-order one.

Role: a section of ``schema``, read by ``data.degrade`` and ``data.second_order``. Tables: docs/algorithm.md, A5.
"""

import math
from dataclasses import dataclass, field

from gendr_core.errors import OptionError

Range = tuple[float, float]
"""(low, high), drawn uniformly."""

KernelWeights = tuple[float, float, float, float, float, float]
"""Shares of kernels: round and stretched Gaussian, round and stretched generalised, round and stretched plateau."""

JPEG_LIMITS = (1.0, 95.0)


def _check_probability(section: object, name: str, prefix: str) -> None:
    value: float = getattr(section, name)
    if not 0.0 <= value <= 1.0:
        raise OptionError(f"expected {prefix}{name} from 0 to 1, got {value}")


def _check_range(section: object, name: str, limits: tuple[float, float], prefix: str) -> None:
    least, most = limits
    low, high = getattr(section, name)
    if not least <= low <= high <= most:
        raise OptionError(f"expected {prefix}{name} as [low, high] within {least} to {most}, got [{low}, {high}]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """Ranges of one round of blur, downscale, noise and JPEG; the defaults are the preset ``photo``."""

    blur_probability: float = 0.9
    blur_sigma_px: Range = (0.3, 3.0)
    """Standard deviation in pixels of the original."""
    anisotropic_probability: float = 0.3
    """How often the second axis of the blur is drawn by itself, at a random angle."""
    bicubic_probability: float = 0.7
    """How often the downscale is bicubic; bilinear and area share the rest."""
    noise_probability: float = 0.95
    noise_sigma_8bit: Range = (0.5, 18.0)
    shot_probability: float = 0.25
    """How often the noise grows with the light instead of being even."""
    shot_photons: Range = (150.0, 4000.0)
    gray_probability: float = 0.2
    """How often the channels share one noise field."""
    jpeg_probability: float = 0.95
    jpeg_quality: Range = (30.0, 95.0)

    def __post_init__(self) -> None:
        """Check probabilities and ranges.

        Raises:
            OptionError: a probability leaves 0..1 or a range is empty or outside its limits.
        """
        for name in ("blur", "anisotropic", "bicubic", "noise", "shot", "gray", "jpeg"):
            _check_probability(self, f"{name}_probability", "degradation.")
        limits = {
            "blur_sigma_px": (0.05, 20.0),
            "noise_sigma_8bit": (0.0, 255.0),
            "shot_photons": (1.0, 1e9),
            "jpeg_quality": JPEG_LIMITS,
        }
        for name, limit in limits.items():
            _check_range(self, name, limit, "degradation.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Ranges of one round of the second-order recipe; the defaults are those of its first round."""

    blur_probability: float = 1.0
    kernel_px: tuple[int, int] = (7, 21)
    """Smallest and largest side of a kernel, both odd and both drawn."""
    kernel_weights: KernelWeights = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """How often each kind is drawn where no sinc is."""
    sinc_probability: float = 0.1
    """How often the kernel is a circular low-pass, which rings."""
    blur_sigma_px: Range = (0.2, 3.0)
    generalised_beta: Range = (0.5, 4.0)
    """Exponent of generalised Gaussians; below and above 1 are equally likely."""
    plateau_beta: Range = (1.0, 2.0)
    """Exponent of plateau kernels; as above."""
    enlarge_probability: float = 0.2
    shrink_probability: float = 0.7
    """What neither enlarges nor shrinks keeps its size."""
    resize: Range = (0.15, 1.5)
    """Smallest and largest factor, around 1."""
    gaussian_probability: float = 0.5
    """How often the noise is Gaussian; Poisson has the rest."""
    noise_sigma_8bit: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    """Noise in multiples of that of 256 photons at white."""
    gray_probability: float = 0.4
    """How often the channels share one noise field."""
    jpeg_quality: Range = (30.0, 95.0)

    def __post_init__(self) -> None:
        """Check probabilities and ranges.

        Raises:
            OptionError: a probability leaves 0..1, a range is empty or outside its limits, or a kernel side is even.
        """
        prefix = "in a round of degradation, "
        for name in ("blur", "sinc", "enlarge", "shrink", "gaussian", "gray"):
            _check_probability(self, f"{name}_probability", prefix)
        limits = {
            "kernel_px": (3.0, 51.0),
            "blur_sigma_px": (0.05, 20.0),
            "noise_sigma_8bit": (0.0, 255.0),
            "poisson_scale": (0.0, 20.0),
            "jpeg_quality": JPEG_LIMITS,
        }
        around_one = {"generalised_beta": (0.1, 10.0), "plateau_beta": (0.1, 10.0), "resize": (0.05, 4.0)}
        for name, limit in {**limits, **around_one}.items():
            _check_range(self, name, limit, prefix)
        for name in around_one:
            low, high = getattr(self, name)
            if not low <= 1.0 <= high:
                raise OptionError(f"expected {prefix}{name} to hold 1, got [{low}, {high}]")
        if self.kernel_px[0] % 2 == 0 or self.kernel_px[1] % 2 == 0:
            raise OptionError(f"expected {prefix}kernel_px as two odd sides, got {list(self.kernel_px)}")
        if min(self.kernel_weights) < 0.0 or not math.isclose(sum(self.kernel_weights), 1.0, abs_tol=1e-6):
            raise OptionError(f"expected {prefix}kernel_weights with sum 1 and none below 0, got {self.kernel_weights}")
        if self.enlarge_probability + self.shrink_probability > 1.0:
            raise OptionError(
                f"expected {prefix}enlarge_probability + shrink_probability of at most 1,"
                f" got {self.enlarge_probability} + {self.shrink_probability}"
            )


def _second_round() -> Round:
    return Round(
        blur_probability=0.8,
        blur_sigma_px=(0.2, 1.5),
        enlarge_probability=0.3,
        shrink_probability=0.4,
        resize=(0.3, 1.2),
        noise_sigma_8bit=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondOrder:
    """Ranges of two rounds of damage and a last low-pass, as in Real-ESRGAN (arXiv:2107.10833, section 3).

    The defaults are the preset ``realesrgan``: the values that OSEDiff, SeeSR and HYPIR share.
    """

    first: Round = field(default_factory=Round)
    second: Round = field(default_factory=_second_round)
    """Its JPEG comes before or after the last resize and low-pass, equally often."""
    last_sinc_probability: float = 0.8

    def __post_init__(self) -> None:
        """Check the probability.

        Raises:
            OptionError: it leaves 0..1.
        """
        _check_probability(self, "last_sinc_probability", "degradation.")


PRESETS: dict[str, Degradation | SecondOrder] = {
    "photo": Degradation(),
    "light": Degradation(
        blur_sigma_px=(0.3, 1.2), noise_sigma_8bit=(0.0, 4.0), shot_photons=(2000.0, 8000.0), jpeg_quality=(75.0, 95.0)
    ),
    "heavy": Degradation(
        blur_sigma_px=(1.2, 3.0), noise_sigma_8bit=(6.0, 18.0), shot_photons=(100.0, 800.0), jpeg_quality=(30.0, 65.0)
    ),
    "realesrgan": SecondOrder(),
}
"""Named starting points; keys given beside ``preset`` replace single ranges."""
