"""Colour matching against hand-computed cases and the definitions written out."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendr_core import tensors
from gendr_core.color import add_coarse, lab_to_rgb, low_pass, match_color, match_histogram, rgb_to_lab
from gendr_core.config import COLOR_METHODS, ColorMethod
from gendr_core.errors import ImageError
from gendr_core.tensors import luma


def pixels_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


STEPS = (1, 2, 4, 8, 16)


def a_trous(x: Tensor, dilation: int) -> Tensor:
    """One level as the original has it: a dilated 3x3 convolution on a replicated border."""
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
    kernel = (kernel[:, None] * kernel[None] / 16.0).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (dilation,) * 4, mode="replicate"), kernel, dilation=dilation, groups=x.shape[1])


@pytest.mark.parametrize("size", [(96, 80), (5, 40), (1, 1)])
def test_wavelet_equals_the_direct_decomposition(size: tuple[int, int]) -> None:
    """One low-pass of the difference against both images taken apart level by level."""
    restored, reference = pixels_of(1, 3, *size, seed=1).double(), pixels_of(1, 3, *size, seed=2).double()
    coarse = restored
    high = torch.zeros_like(restored)
    for dilation in STEPS:
        finer, coarse = coarse, a_trous(coarse, dilation)
        high = high + finer - coarse
    for dilation in STEPS:
        reference = a_trous(reference, dilation)
    direct = high + reference
    ours = match_color(restored, pixels_of(1, 3, *size, seed=2), "wavelet").double()
    assert torch.allclose(ours, direct, atol=2e-6)


def test_low_pass_kernel_is_the_triangle() -> None:
    impulse = torch.zeros(1, 1, 127, 127)
    impulse[0, 0, 63, 63] = 1.0
    distance = (torch.arange(127) - 63).abs()
    triangle = (32 - distance).clamp(min=0) / 1024.0
    assert torch.equal(low_pass(impulse)[0, 0], triangle[:, None] * triangle[None])


def test_a_halo_of_31_makes_the_low_pass_exact_in_tiles() -> None:
    x = pixels_of(1, 3, 20, 120)
    assert torch.equal(low_pass(x)[..., 40:60], low_pass(x[..., 9:91])[..., 31:51])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(1, 40), st.integers(1, 150), st.booleans())
def test_wavelet_in_bands_is_bit_for_bit_the_wavelet_of_the_frame(
    height: int, width: int, num_rows: int, overwrite: bool
) -> None:
    pixels, reference = pixels_of(1, 2, height, width, seed=1), pixels_of(1, 2, height, width, seed=2)
    whole = pixels + low_pass(reference - pixels)
    result = pixels if overwrite else torch.empty_like(pixels)
    add_coarse(pixels, reference, result, num_rows)
    assert torch.equal(result, whole)


METHODS_WHOLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wavelet": lambda sr, lq: sr + low_pass(lq - sr),
    "ycbcr": lambda sr, lq: lq + luma(sr - lq),
}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 30), st.integers(1, 2), st.integers(1, 40000), st.sampled_from(COLOR_METHODS))
def test_bands_change_nothing(height: int, width: int, batch: int, band_bytes: int, method: ColorMethod) -> None:
    """The same with one band and with many, into a new tensor and over the pixels, which may be a view."""
    frame, reference = pixels_of(batch, 3, height + 3, width + 2, seed=1), pixels_of(batch, 3, height, width, seed=2)
    pixels = frame[:, :, 1:-2, 2:]
    whole, before = match_color(pixels, reference, method), (pixels.clone(), reference.clone())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "BAND_BYTES", band_bytes)
        banded = match_color(pixels, reference, method)
        assert torch.equal(pixels, before[0])
        inside = torch.zeros(batch, height, width, 4)[..., :3].permute(0, 3, 1, 2)
        written = match_color(pixels, reference, method, out=inside)
        over = match_color(pixels, reference, method, out=pixels)
    assert over.data_ptr() == pixels.data_ptr()
    assert torch.equal(over, banded)
    assert torch.equal(written, banded)
    assert method == "none" or written.data_ptr() == inside.data_ptr()
    assert torch.equal(reference, before[1])
    if method in METHODS_WHOLE:
        assert torch.equal(banded, METHODS_WHOLE[method](before[0], reference))
        assert torch.equal(banded, whole)
    elif method == "adain":
        assert torch.allclose(banded, whole, atol=1e-6, rtol=0.0)
    else:
        # A last bit in CIELAB may swap two neighbours in rank.
        assert (banded - whole).abs().mean() < 1e-4


def test_adain_statistics_are_those_of_the_whole_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that differ in mean and spread: merging that forgot either would show."""
    rows = torch.linspace(0.2, 1.0, 50).view(1, 1, 50, 1)
    restored, reference = pixels_of(2, 3, 50, 9, seed=1) * rows - 1.0 + rows, pixels_of(2, 3, 50, 9, seed=2) * 0.3
    spread, mean = torch.var_mean(restored, dim=(2, 3), keepdim=True)
    wanted_spread, wanted_mean = torch.var_mean(reference, dim=(2, 3), keepdim=True)
    expected = (restored - mean) * ((wanted_spread + 4e-5) / (spread + 4e-5)).sqrt() + wanted_mean
    monkeypatch.setattr(tensors, "BAND_BYTES", 7 * 9 * 3 * 2 * 4)
    assert torch.allclose(match_color(restored, reference, "adain"), expected, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("method", COLOR_METHODS)
@pytest.mark.parametrize("in_place", [False, True])
def test_methods_run_without_memory(method: ColorMethod, in_place: bool) -> None:
    """A frame of terabytes on the meta device, where only shapes are computed."""
    frame = torch.empty(1, 3, 3, 100_000_000_000, device="meta")
    result = match_color(frame, torch.empty_like(frame), method, out=frame if in_place else None)
    assert result.is_meta
    assert result.shape == frame.shape


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(COLOR_METHODS))
def test_equal_images_stay_and_any_size_works(height: int, width: int, method: ColorMethod) -> None:
    pixels = pixels_of(2, 3, height, width, seed=height)
    result = match_color(pixels, pixels.clone(), method)
    assert result.dtype == torch.float32
    assert torch.allclose(result, pixels, atol=2e-5)


@pytest.mark.parametrize("method", ["wavelet", "adain", "lab"])
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (48, 64)])
def test_a_constant_colour_shift_is_removed(method: ColorMethod, size: tuple[int, int]) -> None:
    reference = pixels_of(2, 3, *size) * 0.5
    shift = torch.tensor([0.3, -0.1, 0.2]).view(1, 3, 1, 1)
    assert torch.allclose(match_color(reference + shift, reference, method), reference, atol=2e-5)


def test_none_returns_the_pixels() -> None:
    pixels = pixels_of(1, 3, 4, 4) * 3.0
    assert torch.equal(match_color(pixels, torch.zeros_like(pixels), "none"), pixels)


def test_wavelet_keeps_detail_and_takes_the_coarse_part() -> None:
    checker = ((torch.arange(80)[:, None] + torch.arange(80)[None]) % 2).float() * 0.4 - 0.2
    restored, reference = checker.expand(1, 3, 80, 80) + 0.1, torch.full((1, 3, 80, 80), -0.3)
    result = match_color(restored, reference, "wavelet")
    assert torch.allclose(result, restored - 0.4, atol=0.02)


def test_adain_on_numbers() -> None:
    """Two pixels: mean 0, unbiased variance 0.5 against mean 0.25, variance 0.125, each with 4e-5 added."""
    restored = torch.tensor([-0.5, 0.5]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    reference = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    gain = ((0.125 + 4e-5) / (0.5 + 4e-5)) ** 0.5
    expected = [0.25 - 0.5 * gain, 0.25 + 0.5 * gain]
    assert match_color(restored, reference, "adain")[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_adain_of_a_batch_is_image_by_image() -> None:
    restored, reference = pixels_of(2, 3, 9, 9, seed=1), pixels_of(2, 3, 9, 9, seed=2) * 0.3
    alone = [match_color(restored[i : i + 1], reference[i : i + 1], "adain") for i in (0, 1)]
    assert torch.allclose(match_color(restored, reference, "adain"), torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 1.0, 0.0), (87.74, -86.18, 83.18)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
        ((0.02, 0.02, 0.02), (1.40, 0.0, 0.0)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    pixels = torch.tensor(rgb).view(1, 3, 1, 1) * 2.0 - 1.0
    assert rgb_to_lab(pixels).flatten().tolist() == pytest.approx(lab, abs=0.02)


def test_lab_roundtrip() -> None:
    pixels = pixels_of(1, 3, 64, 64)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(pixels)), pixels, atol=2e-5)


def test_histogram_matching_is_by_rank() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 2.0]).view(1, 1, 2, 2)
    reference = torch.tensor([10.0, 40.0, 20.0, 30.0]).view(1, 1, 2, 2)
    assert match_histogram(values, reference).flatten().tolist() == [40.0, 10.0, 20.0, 30.0]


def test_lab_takes_the_hues_and_a_fifth_of_the_lightness() -> None:
    restored, reference = pixels_of(1, 3, 40, 40, seed=1) * 0.4, pixels_of(1, 3, 40, 40, seed=2) * 0.4
    result = rgb_to_lab(match_color(restored, reference, "lab"))
    before, wanted = rgb_to_lab(match_color(restored, reference, "wavelet")), rgb_to_lab(reference)
    lightness = 0.8 * before[:, 0] + 0.2 * match_histogram(before[:, 0], wanted[:, 0])
    inside = (lab_to_rgb(result).abs() < 0.999).all(dim=1)  # Where the result was not clamped.
    assert torch.allclose(result[:, 0][inside], lightness[inside], atol=1e-2)
    matched = match_histogram(before[:, 1], wanted[:, 1])
    assert torch.allclose(result[:, 1][inside], matched[inside], atol=1e-2)


def test_lab_result_is_clamped() -> None:
    assert match_color(pixels_of(1, 3, 8, 8) * 4.0, pixels_of(1, 3, 8, 8, seed=3), "lab").abs().max() <= 1.0


def test_ycbcr_takes_luma_from_one_and_chroma_from_the_other() -> None:
    restored, reference = pixels_of(1, 3, 6, 7, seed=1), pixels_of(1, 3, 6, 7, seed=2)
    result = match_color(restored, reference, "ycbcr")
    assert torch.allclose(luma(result), luma(restored), atol=1e-6)
    for channel in (0, 2):
        chroma = result[:, channel] - luma(result)[:, 0]
        assert torch.allclose(chroma, reference[:, channel] - luma(reference)[:, 0], atol=1e-6)


def test_different_sizes_are_refused() -> None:
    with pytest.raises(ImageError, match=r"\(1, 3, 4, 4\).*\(1, 3, 4, 5\)"):
        match_color(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5), "wavelet")


@pytest.mark.parametrize("method", [method for method in COLOR_METHODS if method != "none"])
def test_the_user_can_stop_between_any_two_bands(method: ColorMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "BAND_BYTES", 4 * 3 * 50 * 5)
    pixels, reference = pixels_of(1, 3, 200, 50), pixels_of(1, 3, 200, 50, seed=2)
    bands = 2 if method == "adain" else len(tensors.row_bands(pixels)) if method == "ycbcr" else 3 * 200 // 62
    stopping = Stopping(at=bands)
    with pytest.raises(InterruptedError):
        match_color(pixels, reference, method, interrupt=stopping)
    assert stopping.asked == bands


class Stopping:
    """Stops when asked for the nth time."""

    def __init__(self, at: int) -> None:
        self.asked, self._at = 0, at

    def check(self) -> None:
        """Raise when it is time."""
        self.asked += 1
        if self.asked == self._at:
            raise InterruptedError
