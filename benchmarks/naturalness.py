"""NIQE and BRISQUE: how far the statistics of a picture are from those of undamaged photos, without an original.

Role: used by ``quality``. Both papers describe local contrast-normalised values and products of neighbours by fitted
distributions; NIQE measures a distance to photos, BRISQUE asks a regression trained on people's opinions. What the
authors fitted is read from files (``NiqeModel.load``, ``BrisqueModel.load``), nothing of it is in this repository.
Everything is float64, on gray pictures [H, W] in 8-bit levels, 0 to 255.

Sources: Mittal, Soundararajan, Bovik 2013, Making a "completely blind" image quality analyzer (NIQE); Mittal, Moorthy,
Bovik 2012, No-reference image quality assessment in the spatial domain (BRISQUE), with their releases for Matlab.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gendr_core.errors import ImageError, OptionError
from gendr_core.metrics import STUDIO_OFFSET, luma_studio

WINDOW_PX = 7
WINDOW_SIGMA_PX = 7.0 / 6.0
"""Of the local mean and deviation: NIQE, section II-A; BRISQUE, section III-A."""
CONTRAST_FLOOR = 1.0
"""C of (I - mean) / (deviation + C), in 8-bit levels."""
ROUNDING = 1e-9
"""Differences from the local mean below this, in 8-bit levels, are the arithmetic's."""
BLOCK_PX = 96
"""Edge of the blocks whose statistics NIQE collects at full size; 48 at half size."""
NUM_SCALES = 2
FEATURES_PER_SCALE = 18
SHAPES = (0.2, 10.0, 0.001)
"""First, last and step of the shape parameters that a fit chooses from."""

# The features' lowest and highest values in the training of the authors' model ("allrange" of the BRISQUE release,
# Copyright (c) 2011 The University of Texas at Austin): one pair per feature, in the order of ``brisque_features``.
BRISQUE_RANGES = (
    *((0.338, 10.0), (0.017204, 0.806612)),
    *((0.236, 1.642), (-0.123884, 0.20293), (0.000155, 0.712298), (0.001122, 0.470257)),
    *((0.244, 1.641), (-0.123586, 0.179083), (0.000152, 0.710456), (0.000975, 0.470984)),
    *((0.249, 1.555), (-0.135687, 0.100858), (0.000174, 0.684173), (0.000913, 0.534174)),
    *((0.258, 1.561), (-0.143408, 0.100486), (0.000179, 0.685696), (0.000888, 0.536508)),
    *((0.471, 3.264), (0.012809, 0.703171)),
    *((0.218, 1.046), (-0.094876, 0.187459), (1.5e-5, 0.442057), (0.001272, 0.40803)),
    *((0.222, 1.042), (-0.115772, 0.162604), (1.6e-5, 0.444362), (0.001374, 0.40243)),
    *((0.227, 0.996), (-0.117188, 0.098323), (3.0e-5, 0.531903), (0.001122, 0.369589)),
    *((0.228, 0.99), (-0.12243, 0.098658), (2.8e-5, 0.530092), (0.001118, 0.370399)),
)


def niqe_levels(image: Tensor) -> Tensor:
    """Return the luma that papers on restoration give to NIQE, whole numbers 16 to 235, [H, W].

    Args:
        image: [1, H, W, 3] in 0 to 1; taken as the 8-bit file that it would be saved as.
    """
    return (luma_studio(_saved(image))[0, 0] * 255.0).round()


def brisque_levels(image: Tensor) -> Tensor:
    """Return the gray picture that BRISQUE's authors give to it, whole numbers 0 to 255, [H, W].

    Args:
        image: [1, H, W, 3] in 0 to 1; taken as the 8-bit file that it would be saved as.
    """
    return ((luma_studio(_saved(image))[0, 0] - STUDIO_OFFSET) * (255.0 * 255.0 / 219.0)).round()


def _saved(image: Tensor) -> Tensor:
    return (image.to(torch.float64).clamp(0.0, 1.0) * 255.0).round() / 255.0


def normalised(gray: Tensor, *, replicate: bool) -> Tensor:
    """Return (I - mean) / (deviation + 1) with gaussian local mean and deviation, [H, W].

    Args:
        gray: [H, W] levels.
        replicate: whether the window sees edges repeated (NIQE's release) or zeros (BRISQUE's) outside.
    """
    place = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    weights = torch.exp(-place.square() / (2.0 * WINDOW_SIGMA_PX**2))
    weights = weights / weights.sum()
    padding = (WINDOW_PX // 2,) * 4

    def local_mean(x: Tensor) -> Tensor:
        x = x[None, None]
        x = F.pad(x, padding, mode="replicate") if replicate else F.pad(x, padding)
        return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))[0, 0]

    mean = local_mean(gray)
    contrast = gray - mean
    # Rounding noise must not have a sign: fits count the values on each side of 0, and flat areas have none.
    contrast = torch.where(contrast.abs() < ROUNDING, 0.0, contrast)
    deviation = (local_mean(gray.square()) - mean.square()).abs().sqrt()
    return contrast / (deviation + CONTRAST_FLOOR)


def halved(gray: Tensor) -> Tensor:
    """Return the picture at half its size, [H/2, W/2]: bicubic (a = -0.5), antialiased, edges mirrored.

    Args:
        gray: [H, W], both even.
    """
    margin = 4  # The filter's reach: 2 pixels of the result.
    x = torch.cat([gray[:margin].flip(0), gray, gray[-margin:].flip(0)])
    x = torch.cat([x[:, :margin].flip(1), x, x[:, -margin:].flip(1)], dim=1)[None, None]
    half = F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True, recompute_scale_factor=True)[0, 0]
    return half[margin // 2 : -margin // 2, margin // 2 : -margin // 2]


@cache
def _shapes() -> tuple[Tensor, Tensor]:
    """Return the shapes a, and G(2/a)^2 / (G(1/a) G(3/a)), which is E|x|^2 / E x^2 of their distribution."""
    first, last, step = SHAPES
    shapes = first + step * torch.arange(round((last - first) / step) + 1, dtype=torch.float64)
    ratio = (2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)).exp()
    return shapes, ratio


def fit_symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return shape and variance of generalised gaussians, each [N]   (BRISQUE, eq. 4 to 6).

    Args:
        x: [N, K], one distribution's values per row.
    """
    shapes, ratio = _shapes()
    variance = x.square().mean(dim=1)
    wanted = variance / x.abs().mean(dim=1).square()
    return shapes[(1.0 / ratio - wanted[:, None]).abs().argmin(dim=1)], variance


def fit_asymmetric(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return shape, left and right deviation of asymmetric generalised gaussians, each [N]   (NIQE, eq. 5 to 7).

    Deviations are NaN where a row has no value on that side.

    Args:
        x: [N, K], one distribution's values per row.
    """
    shapes, ratio = _shapes()
    squares = x.square()
    left, right = ((torch.where(side, squares, 0.0).sum(dim=1) / side.sum(dim=1)).sqrt() for side in (x < 0.0, x > 0.0))
    skew = left / right
    wanted = x.abs().mean(dim=1).square() / squares.mean(dim=1)
    wanted = wanted * (skew**3 + 1.0) * (skew + 1.0) / (skew.square() + 1.0).square()
    return shapes[(ratio - wanted[:, None]).abs().argmin(dim=1)], left, right


def _width(shape: Tensor) -> Tensor:
    """Return scale over deviation, sqrt(G(1/a) / G(3/a))."""
    return ((torch.lgamma(1.0 / shape) - torch.lgamma(3.0 / shape)) / 2.0).exp()


def _mean(shape: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return the mean of an asymmetric distribution, (right - left) width G(2/a) / G(1/a)   (NIQE, eq. 8)."""
    return (right - left) * _width(shape) * (torch.lgamma(2.0 / shape) - torch.lgamma(1.0 / shape)).exp()


def niqe_features(blocks: Tensor) -> Tensor:
    """Return the 18 features of every block at one scale, [N, 18]; NaN where a block is flat.

    Args:
        blocks: [N, h, w], parts of a normalised picture.
    """
    shape, left, right = fit_asymmetric(blocks.flatten(1))
    features = [shape, (left + right) / 2.0 * _width(shape)]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = fit_asymmetric((blocks * blocks.roll(shift, dims=(1, 2))).flatten(1))
        features += [shape, _mean(shape, left, right), left * _width(shape), right * _width(shape)]
    return torch.stack(features, dim=1)


def brisque_features(gray: Tensor) -> Tensor:
    """Return the 36 features of a picture, [36].

    Args:
        gray: [H, W] levels, both even.
    """
    features: list[Tensor] = []
    for scale in range(NUM_SCALES):
        x = normalised(gray, replicate=False)[None]
        features += fit_symmetric(x.flatten(1))
        for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            shape, left, right = fit_asymmetric((x * x.roll(shift, dims=(1, 2))).flatten(1))
            features += [shape, _mean(shape, left, right), left.square(), right.square()]
        if scale + 1 < NUM_SCALES:
            gray = halved(gray)
    return torch.cat(features)


@dataclass(frozen=True, kw_only=True, slots=True)
class NiqeModel:
    """A gaussian of the features of undamaged photos."""

    mean: Tensor
    """[36] float64."""
    covariance: Tensor
    """[36, 36] float64."""

    @classmethod
    def load(cls, path: Path) -> "NiqeModel":
        """Return the model in ``niqe_pris_params.npz``, the authors' parameters as the package basicsr has them."""
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[name]) for name in ("mu_pris_param", "cov_pris_param"))
        return cls(mean=mean.flatten(), covariance=covariance)

    def score(self, gray: Tensor) -> float:
        """Return NIQE: lower is better, 2 to 5 for good photos; NaN where fewer than two blocks have contrast.

        D = sqrt((m - m')^T ((S + S') / 2)^-1 (m - m'))   (NIQE, eq. 10)

        Args:
            gray: [H, W] levels; what is left over from whole blocks of 96 at the right and the bottom does not count.

        Raises:
            ImageError: an edge is shorter than a block.
        """
        rows, columns = gray.shape[0] // BLOCK_PX, gray.shape[1] // BLOCK_PX
        if not rows or not columns:
            raise ImageError(
                f"expected edges of at least {BLOCK_PX} pixels for NIQE, got {gray.shape[1]}x{gray.shape[0]}:"
                " use a larger image"
            )
        gray = gray[: rows * BLOCK_PX, : columns * BLOCK_PX]
        scales: list[Tensor] = []
        for scale in range(NUM_SCALES):
            x, edge = normalised(gray, replicate=True), BLOCK_PX >> scale
            blocks = x.view(rows, edge, columns, edge).transpose(1, 2).reshape(-1, edge, edge)
            scales.append(niqe_features(blocks))
            if scale + 1 < NUM_SCALES:
                gray = halved(gray)
        features = torch.cat(scales, dim=1)
        usable = features[~features.isnan().any(dim=1)]
        if usable.shape[0] < 2:
            return float("nan")
        offset = features.nanmean(dim=0) - self.mean
        inverse = torch.linalg.pinv((self.covariance + usable.T.cov()) / 2.0)
        return float((offset @ inverse @ offset).sqrt())


@dataclass(frozen=True, kw_only=True, slots=True)
class BrisqueModel:
    """A support vector regression with the kernel exp(-gamma |x - y|^2), trained on people's opinions of photos."""

    vectors: Tensor
    """[N, 36] float64, features scaled to -1 to 1."""
    coefficients: Tensor
    """[N] float64."""
    gamma: float
    offset: float

    @classmethod
    def load(cls, path: Path) -> "BrisqueModel":
        """Return the model in a text file of libsvm, such as ``allmodel`` of the authors' release.

        Raises:
            OptionError: the file is not a regression with that kernel.
        """
        head, _, body = path.read_text(encoding="ascii").partition("\nSV\n")
        facts = dict(line.split(maxsplit=1) for line in head.splitlines())
        if (facts.get("svm_type"), facts.get("kernel_type")) != ("epsilon_svr", "rbf"):
            raise OptionError(
                f"expected libsvm's epsilon_svr with an rbf kernel in {path}, got {facts}: check the file"
            )
        rows = [line.split() for line in body.splitlines()]
        vectors = torch.zeros(len(rows), NUM_SCALES * FEATURES_PER_SCALE, dtype=torch.float64)
        for vector, (_, *entries) in zip(vectors, rows, strict=True):
            for place, value in (entry.split(":") for entry in entries):
                vector[int(place) - 1] = float(value)
        coefficients = torch.tensor([float(row[0]) for row in rows], dtype=torch.float64)
        return cls(vectors=vectors, coefficients=coefficients, gamma=float(facts["gamma"]), offset=float(facts["rho"]))

    def score(self, gray: Tensor) -> float:
        """Return BRISQUE: lower is better, about 0 to 100; NaN for a flat picture.

        Args:
            gray: [H, W] levels, both even.
        """
        low, high = torch.tensor(BRISQUE_RANGES, dtype=torch.float64).T
        features = 2.0 * (brisque_features(gray) - low) / (high - low) - 1.0
        kernel = (-self.gamma * (self.vectors - features).square().sum(dim=1)).exp()
        return float(self.coefficients @ kernel) - self.offset
