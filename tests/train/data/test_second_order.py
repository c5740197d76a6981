"""Second-order damage: a pure function of the generator's state, within its ranges."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_train.data.jpeg import jpeg_on_device
from gendr_train.data.second_order import Strengths, degrade_second_order, draw_strengths
from gendr_train.degradations import Round, SecondOrder

CALM = Round(
    blur_probability=0.0,
    enlarge_probability=0.0,
    shrink_probability=0.0,
    gaussian_probability=1.0,
    noise_sigma_8bit=(0.0, 0.0),
    jpeg_quality=(95.0, 95.0),
)


def _image(side: int = 64) -> torch.Tensor:
    return torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_same_state_same_damage_and_nothing_else_changes() -> None:
    image = _image()
    before, state = image.clone(), torch.get_rng_state()
    first, second = (degrade_second_order(image, SecondOrder(), _seeded(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, degrade_second_order(image, SecondOrder(), _seeded(5)))
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 20), st.integers(1, 20))
def test_every_draw_gives_levels_of_the_right_size(seed: int, rows: int, columns: int) -> None:
    damaged = degrade_second_order(_image(80)[:, :, : 4 * rows, : 4 * columns], SecondOrder(), _seeded(seed))
    assert damaged.shape == (1, 3, rows, columns)
    assert torch.allclose(damaged * 255.0, (damaged * 255.0).round(), atol=1e-4)
    assert float(damaged.min()) >= 0.0
    assert float(damaged.max()) <= 1.0


def test_strengths_keep_to_their_ranges_and_frequencies() -> None:
    generator = _seeded(1)
    drawn: list[Strengths] = [draw_strengths(SecondOrder(), generator) for _ in range(400)]
    for ranges, rounds in (
        (SecondOrder().first, [strengths.first for strengths in drawn]),
        (SecondOrder().second, [strengths.second for strengths in drawn]),
    ):
        for one in rounds:
            low, high = ranges.noise_sigma_8bit if one.gaussian else ranges.poisson_scale
            unit = 255.0 if one.gaussian else 1.0
            assert low <= one.noise * unit * (1 + 1e-9)
            assert one.noise * unit <= high * (1 + 1e-9)
            assert ranges.resize[0] <= one.factor <= ranges.resize[1]
            assert ranges.jpeg_quality[0] <= one.quality <= ranges.jpeg_quality[1]
        shares = {
            "blur": (sum(one.kernel is not None for one in rounds), ranges.blur_probability),
            "up": (sum(one.factor > 1.0 for one in rounds), ranges.enlarge_probability),
            "down": (sum(one.factor < 1.0 for one in rounds), ranges.shrink_probability),
            "gaussian": (sum(one.gaussian for one in rounds), ranges.gaussian_probability),
            "gray": (sum(one.gray for one in rounds), ranges.gray_probability),
            "area": (sum(one.method == "area" for one in rounds), 1 / 3),
        }
        # Four standard deviations of a share of 400 are at most 0.1.
        assert {name: count / 400 for name, (count, _) in shares.items()} == pytest.approx(
            {name: probability for name, (_, probability) in shares.items()}, abs=0.1
        )
    assert sum(one.last_kernel is not None for one in drawn) / 400 == pytest.approx(0.8, abs=0.1)
    assert sum(one.jpeg_last for one in drawn) / 400 == pytest.approx(0.5, abs=0.1)


def test_with_everything_off_only_the_size_changes() -> None:
    calm = SecondOrder(first=CALM, second=CALM, last_sinc_probability=0.0)
    flat = torch.full((1, 3, 64, 64), 100 / 255)
    damaged = degrade_second_order(flat, calm, _seeded(0))
    assert torch.allclose(damaged, torch.full((1, 3, 16, 16), 100 / 255))


@pytest.mark.parametrize("gaussian", [0.0, 1.0])
def test_noise_has_the_spread_that_was_asked_for(gaussian: float) -> None:
    # The last round keeps the size of the damaged image and its JPEG is fine: its noise is what is left.
    noisy = replace(
        CALM,
        gaussian_probability=gaussian,
        noise_sigma_8bit=(10.0, 10.0),
        poisson_scale=(2.0, 2.0),
        gray_probability=1.0,
    )
    ranges = SecondOrder(first=CALM, second=noisy, last_sinc_probability=0.0)
    damaged = degrade_second_order(
        torch.full((1, 3, 512, 512), 0.5), ranges, _seeded(2), compress=lambda image, _: image
    )
    # Poisson: 2 * sqrt(0.5 / 256) = 0.0884.
    assert float(damaged.std()) == pytest.approx(10.0 / 255.0 if gaussian else 0.0884, rel=0.03)
    assert torch.equal(damaged[:, 0], damaged[:, 1])


def test_torchs_jpeg_changes_little() -> None:
    image = torch.nn.functional.interpolate(_image(8), size=(128, 128), mode="bicubic").clamp(0.0, 1.0)
    for seed in range(6):
        files, device = (
            degrade_second_order(image, SecondOrder(), _seeded(seed), **options)
            for options in ({}, {"compress": jpeg_on_device})
        )
        assert float((files - device).abs().mean()) * 255.0 < 3.0
