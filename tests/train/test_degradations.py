"""Ranges are checked when they are made."""

import pytest

from gendr_core.errors import OptionError
from gendr_train.degradations import PRESETS, Degradation, Round, SecondOrder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blur_probability": 1.5}, "blur_probability from 0 to 1, got 1.5"),
        ({"noise_sigma_8bit": (5.0, 1.0)}, r"noise_sigma_8bit as \[low, high\] within 0.0 to 255.0, got \[5.0, 1.0\]"),
        ({"resize": (1.1, 1.5)}, r"resize to hold 1, got \[1.1, 1.5\]"),
        ({"plateau_beta": (0.5, 0.9)}, "plateau_beta to hold 1"),
        ({"kernel_px": (7, 20)}, r"two odd sides, got \[7, 20\]"),
        ({"kernel_weights": (0.5, 0.0, 0.0, 0.0, 0.0, 0.0)}, "kernel_weights with sum 1"),
        ({"enlarge_probability": 0.5}, "of at most 1, got 0.5 \\+ 0.7"),
        ({"jpeg_quality": (30.0, 100.0)}, "jpeg_quality"),
    ],
)
def test_wrong_rounds_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Round(**changes)  # type: ignore[arg-type]


def test_wrong_recipes_are_refused() -> None:
    with pytest.raises(OptionError, match=r"degradation\.last_sinc_probability from 0 to 1, got -1"):
        SecondOrder(last_sinc_probability=-1)
    with pytest.raises(OptionError, match=r"degradation\.shot_photons as \[low, high\]"):
        Degradation(shot_photons=(0.0, 1.0))


def test_the_preset_is_the_table_of_the_papers() -> None:
    assert PRESETS["realesrgan"] == SecondOrder()
    first, second = SecondOrder().first, SecondOrder().second
    assert (first.blur_probability, first.blur_sigma_px, first.resize) == (1.0, (0.2, 3.0), (0.15, 1.5))
    assert (second.blur_probability, second.blur_sigma_px, second.resize) == (0.8, (0.2, 1.5), (0.3, 1.2))
    assert (first.noise_sigma_8bit, second.noise_sigma_8bit) == ((1.0, 30.0), (1.0, 25.0))
    assert (first.poisson_scale, second.poisson_scale) == ((0.05, 3.0), (0.05, 2.5))
    assert (first.enlarge_probability, first.shrink_probability) == (0.2, 0.7)
    assert (second.enlarge_probability, second.shrink_probability) == (0.3, 0.4)
