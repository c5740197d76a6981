"""Blur kernels of the second-order recipe: Gaussians, their generalised and plateau relatives, and circular low-passes.

Role: called by ``second_order``; ``gendr_core.degrade.blur`` applies them. Families and shares: Real-ESRGAN
(arXiv:2107.10833, sections 3.2 and 3.4).
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor

from ..degradations import Range, Round
from .chance import chance, pick, uniform

KernelFamily = Literal["gaussian", "generalised", "plateau"]

FAMILIES: tuple[KernelFamily, ...] = ("gaussian", "generalised", "plateau")
SINC_CUTOFF_RAD: Range = (math.pi / 3, math.pi)
"""Of kernels below 13 pixels and of the last filter: a small kernel cannot ring at lower frequencies."""
WIDE_SINC_CUTOFF_RAD: Range = (math.pi / 5, math.pi)
WIDE_PX = 13


def bell_kernel(side_px: int, family: KernelFamily, sigma_px: Range, angle_rad: float, beta: float) -> Tensor:
    """Return a kernel [side, side] of one family, float32, sum 1, equal at opposite points.

    With q = x' S^-1 x: gaussian exp(-q/2), generalised exp(-q^beta / 2), plateau 1 / (1 + q^beta).

    Args:
        side_px: odd.
        family: the shape of its fall.
        sigma_px: standard deviation along and across the axis at ``angle_rad``, above 0.
        angle_rad: rotation of the first axis.
        beta: exponent; the Gaussian has none and ignores it.
    """
    x, y = _grid(side_px)
    along = (x * math.cos(angle_rad) + y * math.sin(angle_rad)) / sigma_px[0]
    across = (y * math.cos(angle_rad) - x * math.sin(angle_rad)) / sigma_px[1]
    square = along**2 + across**2
    if family == "gaussian":
        values = torch.exp(-0.5 * square)
    elif family == "generalised":
        values = torch.exp(-0.5 * square**beta)
    else:
        values = 1.0 / (1.0 + square**beta)
    return (values / values.sum()).to(torch.float32)


def sinc_kernel(side_px: int, cutoff_rad: float) -> Tensor:
    """Return a circular low-pass [side, side], float32, sum 1: it passes frequencies below the cutoff, and rings.

    k(r) = w J1(w r) / (2 pi r), k(0) = w^2 / (4 pi), cut off at the side   (arXiv:2107.10833, eq. 6)

    Args:
        side_px: odd.
        cutoff_rad: w, radians per pixel, above 0 to pi.
    """
    x, y = _grid(side_px)
    radius = torch.sqrt(x**2 + y**2)
    away = radius.clamp(min=1.0)
    # torch leaves its special functions untyped.
    bessel = cast("Tensor", torch.special.bessel_j1(cutoff_rad * away))  # pyright: ignore[reportUnknownMemberType]
    values = cutoff_rad * bessel / (2.0 * math.pi * away)
    values = torch.where(radius == 0.0, cutoff_rad**2 / (4.0 * math.pi), values)
    return (values / values.sum()).to(torch.float32)


def random_kernel(ranges: Round, generator: torch.Generator) -> Tensor:
    """Return a kernel [k, k] of any kind, float32, sum 1.

    Args:
        ranges: what side, family and width are drawn from.
        generator: source of every draw; its state advances.
    """
    side_px = _random_side(ranges, generator)
    if chance(ranges.sinc_probability, generator):
        return sinc_kernel(side_px, uniform(WIDE_SINC_CUTOFF_RAD if side_px >= WIDE_PX else SINC_CUTOFF_RAD, generator))
    kind = pick(ranges.kernel_weights, generator)
    family = FAMILIES[kind // 2]
    along = across = uniform(ranges.blur_sigma_px, generator)
    angle_rad = 0.0
    if kind % 2 == 1:
        across = uniform(ranges.blur_sigma_px, generator)
        angle_rad = uniform((0.0, math.pi), generator)
    spans = {"gaussian": (1.0, 1.0), "generalised": ranges.generalised_beta, "plateau": ranges.plateau_beta}
    return bell_kernel(side_px, family, (along, across), angle_rad, _random_beta(spans[family], generator))


def random_sinc(ranges: Round, generator: torch.Generator) -> Tensor:
    """Return a low-pass [k, k], float32, sum 1, as the last filter of the recipe.

    Args:
        ranges: what the side is drawn from.
        generator: source of every draw; its state advances.
    """
    return sinc_kernel(_random_side(ranges, generator), uniform(SINC_CUTOFF_RAD, generator))


def _grid(side_px: int) -> tuple[Tensor, Tensor]:
    offsets = torch.arange(side_px, dtype=torch.float64) - side_px // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    return x, y


def _random_side(ranges: Round, generator: torch.Generator) -> int:
    least, most = ranges.kernel_px
    return least + 2 * int(torch.randint((most - least) // 2 + 1, (), generator=generator))


def _random_beta(span: Range, generator: torch.Generator) -> float:
    low, high = span
    return uniform((low, 1.0) if chance(0.5, generator) else (1.0, high), generator)
