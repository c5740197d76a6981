import torch
from torch import nn

from gendr_train.whitening import EIGENVALUE_FLOOR, whiten_input


def correlated_inputs(channels: int) -> torch.Tensor:
    """Inputs whose variances span eight orders of magnitude, around a mean that is not zero."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    scales = torch.logspace(1, -3, channels, dtype=torch.float64)
    sources = torch.randn(4, channels, 24, 24, generator=generator, dtype=torch.float64)
    return torch.einsum("ij,j,bjhw->bihw", torch.linalg.qr(mixing)[0], scales, sources) + 0.7


def centre_features(conv: nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    """What the centre tap alone makes of the inputs, [features, positions]."""
    weight, bias = conv.weight[:, :, 1, 1].double(), conv.bias.double()  # type: ignore[union-attr]
    return weight @ inputs.transpose(0, 1).flatten(1) + bias[:, None]


def whitened(channels: int, features: int) -> tuple[nn.Conv2d, torch.Tensor]:
    conv, inputs = nn.Conv2d(channels, features, 3, padding=1), correlated_inputs(channels)
    nn.init.zeros_(conv.weight)
    whiten_input(conv, inputs)
    return conv, inputs


def test_features_are_uncorrelated_with_unit_variance_above_the_floor() -> None:
    conv, inputs = whitened(12, 8)
    covariance = torch.cov(centre_features(conv, inputs), correction=0)
    variances = torch.linalg.eigvalsh(torch.cov(inputs.transpose(0, 1).flatten(1), correction=0)).flip(0)[:8]
    expected = torch.diag(variances / (variances + EIGENVALUE_FLOOR))
    torch.testing.assert_close(covariance, expected, rtol=1e-3, atol=1e-4)


def test_features_have_zero_mean() -> None:
    conv, inputs = whitened(12, 8)
    assert centre_features(conv, inputs).mean(1).abs().max() < 1e-3


def test_wide_layers_get_mixtures_of_about_unit_variance() -> None:
    conv, inputs = whitened(6, 40)
    variances = centre_features(conv, inputs).var(1)
    assert 0.3 < variances[6:].mean() < 3.0
    assert variances.min() > 0.0


def test_random_weights_remain_around_the_centre() -> None:
    conv, inputs = nn.Conv2d(6, 6, 3, padding=1), correlated_inputs(6)
    before = conv.weight.detach().clone()
    whiten_input(conv, inputs)
    torch.testing.assert_close(conv.weight[:, :, 0, 2].detach(), 0.1 * before[:, :, 0, 2])
