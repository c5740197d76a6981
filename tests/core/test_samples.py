"""Stored samples to unit floats and back."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from gendr_core import samples as samples_module
from gendr_core.errors import ImageError
from gendr_core.samples import BitDepth, straight_alpha, to_stored, to_unit, upright


@pytest.mark.parametrize("orientation", range(10))
def test_upright_does_what_pillow_does(orientation: int) -> None:
    samples = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    picture = Image.fromarray(samples)
    picture.getexif()[274] = orientation
    assert np.array_equal(upright(samples, orientation), np.asarray(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize(("dtype", "bit_depth"), [(np.uint8, 8), (np.uint16, 16)])
def test_every_integer_survives(dtype: type[np.generic], bit_depth: int) -> None:
    samples = np.arange(2**bit_depth, dtype=dtype).reshape(16, -1, 1)
    values, read_depth = to_unit(samples, "x")
    assert read_depth == bit_depth
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (0.0, 1.0)
    assert np.array_equal(to_stored(values, read_depth), samples)


@settings(deadline=None)
@given(st.floats(-2.0, 3.0, width=32), st.sampled_from([8, 16]))
def test_storing_clamps_and_quantises(value: float, bit_depth: int) -> None:
    full = 2**bit_depth - 1
    stored = to_stored(np.full((1, 1, 1), value, np.float32), 8 if bit_depth == 8 else 16).item()
    exact = min(max(value, 0.0), 1.0) * full
    if bit_depth == 8:
        assert -1e-4 <= exact - stored < 1.0
    else:
        assert abs(stored - exact) <= 0.5 + 1e-2


@given(hnp.arrays(np.float32, (3, 5, 3), elements=st.floats(-0.5, 1.5, width=32)))
def test_8_bits_are_those_of_comfyui(values: np.ndarray) -> None:
    assert np.array_equal(to_stored(values, 8), np.clip(255.0 * values, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_bands_change_nothing(bit_depth: BitDepth, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((40, 7, 3), np.float32) * 1.5 - 0.2
    premultiplied = np.random.default_rng(1).integers(0, 256, (40, 7, 4)).astype(np.uint8)
    stored, straight = to_stored(values, bit_depth), straight_alpha(premultiplied)
    monkeypatch.setattr(samples_module, "_BAND_VALUES", 100)
    assert np.array_equal(to_stored(values, bit_depth), stored)
    assert np.array_equal(straight_alpha(premultiplied), straight)


def test_turned_samples_become_contiguous_values() -> None:
    for samples in (np.arange(24, dtype=np.uint8), np.linspace(0.0, 1.0, 24, dtype=np.float32)):
        turned = upright(samples.reshape(2, 4, 3), 6)
        values, _ = to_unit(turned, "x")
        assert values.flags.c_contiguous
        assert np.array_equal(values, turned.astype(np.float32) / (255.0 if samples.dtype == np.uint8 else 1.0))


def test_floats_are_clipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    samples = np.array([-0.5, 0.25, 1.5]).reshape(1, 1, 3)
    with caplog.at_level(logging.WARNING):
        values, bit_depth = to_unit(samples, "sun.tif")
    assert values.flatten().tolist() == [0.0, 0.25, 1.0]
    assert bit_depth == 32
    assert "sun.tif has values from -0.5 to 1.5" in caplog.text


def test_gray_with_alpha_becomes_rgba() -> None:
    values, _ = to_unit(np.array([51, 102], np.uint8).reshape(1, 1, 2), "x")
    assert values.flatten().tolist() == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_straight_alpha() -> None:
    premultiplied = np.array([[100, 50, 0, 128], [7, 7, 7, 0]], np.uint16).reshape(1, 2, 4)
    assert straight_alpha(premultiplied)[0, 0].tolist() == [51199, 25600, 0, 128]
    assert straight_alpha(premultiplied)[0, 1].tolist() == [0, 0, 0, 0]
    halves = straight_alpha(np.array([0.25, 0.5, 0.0, 0.5], np.float32).reshape(1, 1, 4))
    assert halves.flatten().tolist() == [0.5, 1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((1, 1, 3), np.int16), "got int16 in x"),
        (np.zeros((1, 1, 5), np.uint8), "got 5 in x"),
        (np.full((1, 1, 1), np.nan, np.float32), "NaN or infinity in x"),
    ],
)
def test_other_samples_are_refused(samples: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        to_unit(samples, "x")
