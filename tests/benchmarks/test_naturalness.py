"""Fits on samples of known distributions, features against other implementations, models on hand-made numbers."""

import math
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import naturalness
import numpy as np
import pytest
import quality
import torch
from torch import Tensor

from gendr_core.errors import ImageError, OptionError

# Features of ``picture()`` at full size by independent implementations: NIQE's of the block at (96, 96) by BasicSR
# 1.4.2, whose scores agree with Matlab's, and BRISQUE's by pybrisque 1.0.
NIQE_BY_BASICSR = [
    *(2.618, 1.147590111),
    *(0.903, -0.076166227, 0.325741472, 0.260711159),
    *(0.886, -0.086493766, 0.319760959, 0.248271762),
    *(0.859, -0.043500167, 0.290979673, 0.256951089),
    *(0.878, -0.043272693, 0.299370175, 0.26416657),
]
BRISQUE_BY_PYBRISQUE = [
    *(2.591, 0.512287092),
    *(0.896, -0.078347639, 0.294398222, 0.183619284),
    *(0.891, -0.079359385, 0.295988633, 0.183454705),
    *(0.865, -0.05644191, 0.288008535, 0.205797926),
    *(0.874, -0.054258176, 0.283513577, 0.205115323),
]


def picture() -> Tensor:
    """Waves under noise, whole levels [192, 288], the same with every version of numpy."""
    rows, columns = np.arange(192)[:, None], np.arange(288)[None]
    noise = np.random.RandomState(0).standard_normal((192, 288))
    levels = 128.0 + 60.0 * np.sin(rows / 9.0) + 40.0 * np.cos(columns / 7.0) + 12.0 * noise
    return torch.from_numpy(levels.round().clip(0.0, 255.0))


def installed(package: str, name: str) -> Path:
    try:
        distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"needs the parameters of {package}")
    return quality.package_file(package, name)


def own_model(gray: Tensor, offset: float) -> naturalness.NiqeModel:
    """A model whose mean lies ``offset`` in every feature from that of ``gray``, and whose covariance is the same."""
    x = naturalness.normalised(gray, replicate=True)
    half = naturalness.normalised(naturalness.halved(gray), replicate=True)
    places = [(row, column) for row in range(2) for column in range(3)]
    blocks = torch.stack([x[96 * r : 96 * (r + 1), 96 * c : 96 * (c + 1)] for r, c in places])
    halves = torch.stack([half[48 * r : 48 * (r + 1), 48 * c : 48 * (c + 1)] for r, c in places])
    features = torch.cat([naturalness.niqe_features(blocks), naturalness.niqe_features(halves)], dim=1)
    return naturalness.NiqeModel(mean=features.mean(dim=0) + offset, covariance=features.T.cov())


def test_levels_are_whole_and_of_their_range() -> None:
    ends = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert naturalness.niqe_levels(ends).tolist() == [[16.0, 235.0]]
    assert naturalness.brisque_levels(ends).tolist() == [[0.0, 255.0]]
    image = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    levels = naturalness.niqe_levels(image)
    assert torch.equal(levels, levels.round())
    stored = (image * 255.0).round() / 255.0
    assert torch.equal(levels, naturalness.niqe_levels(stored))


@pytest.mark.parametrize("level", [0.0, 77.0, 255.0])
def test_flat_areas_have_no_contrast_at_all(level: float) -> None:
    assert not naturalness.normalised(torch.full((20, 30), level, dtype=torch.float64), replicate=True).any()


def test_normalised_on_numbers() -> None:
    """One bright pixel: mean w 100 and variance w (1 - w) 100^2 at its place, w being the window's middle."""
    gray = torch.zeros(15, 15, dtype=torch.float64)
    gray[7, 7] = 100.0
    weights = [math.exp(-(place**2) / (2.0 * (7.0 / 6.0) ** 2)) for place in range(-3, 4)]
    middle = (weights[3] / sum(weights)) ** 2
    expected = 100.0 * (1.0 - middle) / (100.0 * math.sqrt(middle * (1.0 - middle)) + 1.0)
    assert float(naturalness.normalised(gray, replicate=False)[7, 7]) == pytest.approx(expected)


def test_halved_is_matlab_bicubic() -> None:
    """The antialiased kernel at distances 0.5, 1.5, 2.5 and 3.5 pixels, (111, 29, -9, -3) / 256 on each side."""
    columns = torch.zeros(12, 16, dtype=torch.float64)
    columns[:, 8] = 256.0
    assert naturalness.halved(columns)[3].tolist() == pytest.approx([0, 0, -3, 29, 111, -9, 0, 0], abs=1e-4)
    edge = torch.zeros(12, 16, dtype=torch.float64)
    edge[:, 0] = 256.0  # mirrored with its edge: seen at -0.5 and at 0.5
    assert naturalness.halved(edge)[3, :3].tolist() == pytest.approx([111 + 29, -9 - 3, 0], abs=1e-4)


@pytest.mark.parametrize(("shape", "sampler"), [(1.0, "laplace"), (2.0, "normal")])
def test_fits_find_the_distribution(shape: float, sampler: str) -> None:
    random = np.random.RandomState(1)
    x = torch.from_numpy(getattr(random, sampler)(size=(1, 400_000)))
    symmetric, variance = naturalness.fit_symmetric(x)
    assert float(symmetric) == pytest.approx(shape, rel=0.02)
    assert float(variance) == pytest.approx(float(x.square().mean()))
    skewed = torch.where(x < 0.0, 2.0 * x, x)  # twice as wide to the left, with as many values
    keep = torch.from_numpy(random.random(skewed.shape[1])) < torch.where(skewed[0] < 0.0, 1.0, 0.5)
    fitted, left, right = naturalness.fit_asymmetric(skewed[:, keep])
    assert float(fitted) == pytest.approx(shape, rel=0.03)
    assert float(left / right) == pytest.approx(2.0, rel=0.02)


def test_niqe_features_are_those_of_basicsr() -> None:
    block = naturalness.normalised(picture(), replicate=True)[None, 96:192, 96:192]
    assert naturalness.niqe_features(block)[0].tolist() == pytest.approx(NIQE_BY_BASICSR, abs=2e-9)


def test_brisque_features_are_those_of_pybrisque() -> None:
    # At full size only: pybrisque halves by leaving out pixels.
    assert naturalness.brisque_features(picture())[:18].tolist() == pytest.approx(BRISQUE_BY_PYBRISQUE, abs=2e-9)


def test_niqe_is_the_distance_of_two_gaussians() -> None:
    gray = picture()
    assert own_model(gray, 0.0).score(gray) == pytest.approx(0.0, abs=1e-6)
    model = own_model(gray, 0.1)
    inverse = np.linalg.pinv(model.covariance.numpy())
    expected = math.sqrt(0.01 * inverse.sum())
    assert model.score(gray) == pytest.approx(expected, rel=1e-6)
    # What does not fill a block has no say.
    assert model.score(torch.cat([gray, torch.zeros(40, 288, dtype=torch.float64)])) == model.score(gray)


def test_niqe_needs_blocks_and_contrast() -> None:
    model = own_model(picture(), 0.0)
    with pytest.raises(ImageError, match=r"at least 96 .* got 200x95"):
        model.score(torch.zeros(95, 200, dtype=torch.float64))
    assert math.isnan(model.score(torch.full((192, 192), 9.0, dtype=torch.float64)))


def test_brisque_is_the_regression_of_its_file(tmp_path: Path) -> None:
    """Two vectors: one at the features themselves, where the kernel is 1, and one that has only its 36th entry."""
    gray = picture()
    low, high = np.array(naturalness.BRISQUE_RANGES).T
    scaled = 2.0 * (naturalness.brisque_features(gray).numpy() - low) / (high - low) - 1.0
    itself = " ".join(f"{place}:{value!r}" for place, value in enumerate(scaled.tolist(), start=1))
    path = tmp_path / "model"
    head = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 2\nrho -7.5\nSV\n"
    path.write_text(f"{head}3 {itself} \n-2 36:0.25 \n", encoding="ascii")
    far = np.zeros(36)
    far[35] = 0.25
    expected = 3.0 - 2.0 * math.exp(-0.05 * ((scaled - far) ** 2).sum()) + 7.5
    assert naturalness.BrisqueModel.load(path).score(gray) == pytest.approx(expected)
    path.write_text(head.replace("rbf", "linear"), encoding="ascii")
    with pytest.raises(OptionError, match="rbf kernel"):
        naturalness.BrisqueModel.load(path)


def test_scores_with_the_authors_parameters() -> None:
    """BasicSR's score, which rounds to float32 on the way, and that of libsvm 3.37 on the same features."""
    niqe = naturalness.NiqeModel.load(installed("basicsr", "niqe_pris_params.npz"))
    assert niqe.score(picture()) == pytest.approx(20.03936, abs=1e-4)
    brisque = naturalness.BrisqueModel.load(installed("pybrisque", "allmodel"))
    assert brisque.score(picture()) == pytest.approx(43.93571840, abs=1e-6)
