"""Resizing, padding, alpha and the way back to the caller's layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendr_core import tensors
from gendr_core.geometry import Extent
from gendr_core.prepare import Prepared, prepare, restore_layout
from gendr_core.tensors import crop


def image_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def finished(prepared: Prepared) -> Tensor:
    """The image that comes out when the networks and the colour match change nothing."""
    return restore_layout(crop(prepared.pixels, prepared.padding, prepared.extent), prepared)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3, 4]))
def test_any_size_to_any_size(height: int, width: int, new_height: int, new_width: int, channels: int) -> None:
    extent = Extent(new_height, new_width)
    prepared = prepare(image_of(1, height, width, channels), extent)
    assert prepared.reference.shape == (1, 3, new_height, new_width)
    assert prepared.pixels.shape[2] % 64 == prepared.pixels.shape[3] % 64 == 0
    assert torch.isfinite(prepared.pixels).all()
    assert prepared.pixels.abs().max() <= 1.0
    result = finished(prepared)
    assert result.shape == (1, new_height, new_width, channels)
    assert 0.0 <= result.min() <= result.max() <= 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_same_size_changes_nothing(channels: int) -> None:
    image = image_of(2, 7, 13, channels)
    assert torch.allclose(finished(prepare(image, Extent(7, 13))), image, atol=1e-6)


def test_values_outside_the_range_are_clamped() -> None:
    image = torch.tensor([-0.5, 0.5, 1.5]).view(1, 1, 1, 3)
    assert prepare(image, Extent(1, 1)).reference.flatten().tolist() == [-1.0, 0.0, 1.0]


def test_overshoot_at_a_step_is_clamped() -> None:
    step = torch.zeros(1, 8, 8, 3)
    step[:, :, 4:] = 1.0
    reference = prepare(step, Extent(32, 32)).reference
    assert reference.min() == -1.0
    assert reference.max() == 1.0


def test_strong_downscale_is_the_mean() -> None:
    stripes = torch.zeros(1, 64, 64, 3)
    stripes[:, :, ::2] = 1.0
    assert torch.allclose(prepare(stripes, Extent(4, 4)).reference, torch.zeros(1, 3, 4, 4), atol=0.02)


def test_enlarging_keeps_positions() -> None:
    ramp = torch.linspace(0.2, 0.8, 16).view(1, 1, 16, 1).expand(1, 16, 16, 3)
    columns = torch.arange(64)
    expected = 0.2 + 0.6 * ((columns + 0.5) / 4.0 - 0.5) / 15.0  # Centres stay centres: no half-pixel shift.
    reference = (prepare(ramp, Extent(64, 64)).reference[0, 0, 32] + 1.0) / 2.0
    assert torch.allclose(reference[16:48], expected[16:48], atol=1e-5)


def test_gray_is_the_rgb_path_and_comes_back_as_luma() -> None:
    gray = image_of(1, 9, 6, 1)
    prepared = prepare(gray, Extent(18, 12))
    assert torch.equal(prepared.reference, prepare(gray.expand(-1, -1, -1, 3), Extent(18, 12)).reference)
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 18, 12)
    assert torch.allclose(restore_layout(red, prepared), torch.full((1, 18, 12, 1), 0.299), atol=1e-6)


@pytest.mark.parametrize("extent", [Extent(9, 6), Extent(36, 24), Extent(3, 2)])
def test_opaque_rgba_is_bit_identical_to_rgb(extent: Extent) -> None:
    rgb = image_of(2, 9, 6, 3)
    rgba = torch.cat([rgb, torch.ones(2, 9, 6, 1)], dim=3)
    rgba[1, 0, 0, 3] = 0.5  # A translucent frame in the batch leaves the opaque one alone.
    with_alpha, plain = prepare(rgba, extent), prepare(rgb, extent)
    assert torch.equal(with_alpha.pixels[0], plain.pixels[0])
    assert with_alpha.alpha is not None
    assert torch.equal(with_alpha.alpha[0], torch.ones(1, extent.height, extent.width))


@pytest.mark.parametrize("extent", [Extent(16, 16), Extent(64, 64), Extent(5, 7)])
def test_colour_under_alpha_0_has_no_influence_at_all(extent: Extent) -> None:
    visible = image_of(1, 16, 16, 4)
    visible[:, :, 8:, 3] = 0.0
    other = visible.clone()
    other[:, :, 8:, :3] = torch.tensor([1.0, 0.0, 1.0])
    first, second = prepare(visible, extent), prepare(other, extent)
    assert torch.equal(first.pixels, second.pixels)
    assert first.alpha is not None
    assert second.alpha is not None
    assert torch.equal(first.alpha, second.alpha)


@pytest.mark.parametrize("extent", [Extent(20, 20), Extent(80, 80), Extent(7, 9)])
def test_transparent_regions_continue_the_object(extent: Extent) -> None:
    """A green disc on magenta of alpha 0: everything that the networks see is the disc's green."""
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    inside = ((rows - 9.5) ** 2 + (columns - 9.5) ** 2 < 40.0).to(torch.float32)[None, ..., None]
    green, magenta = torch.tensor([0.1, 0.8, 0.2]), torch.tensor([1.0, 0.0, 1.0])
    image = torch.cat([inside * green + (1.0 - inside) * magenta, inside], dim=3)
    reference = prepare(image, extent).reference
    expected = (green.view(1, 3, 1, 1) * 2.0 - 1.0).expand_as(reference)
    assert torch.allclose(reference, expected, atol=2e-3)


@pytest.mark.parametrize("extent", [Extent(80, 80), Extent(47, 31), Extent(7, 9)])
def test_no_wild_colours_past_the_edge_of_a_textured_object(extent: Extent) -> None:
    """Where bicubic weights cancel, colour over alpha would leave the range of all visible colours."""
    image = image_of(1, 20, 20, 4) * 0.3 + 0.35
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    image[..., 3] = (((rows - 9.5) ** 2 + (columns - 9.5) ** 2) < 60.0).to(torch.float32)
    result = finished(prepare(image, extent))[..., :3]
    assert result.min() > 0.25
    assert result.max() < 0.75


def test_premultiplied_colour_is_what_is_resized() -> None:
    """Half red at alpha 1, half blue at alpha 0.2, averaged to one pixel: red weighs five times as much."""
    image = torch.zeros(1, 8, 8, 4)
    image[:, :, :4] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    image[:, :, 4:] = torch.tensor([0.0, 0.0, 1.0, 0.2])
    result = finished(prepare(image, Extent(1, 1))).flatten()
    assert result.tolist() == pytest.approx([1.0 / 1.2, 0.0, 0.2 / 1.2, 0.6], abs=1e-5)


def test_alpha_is_resized_by_itself_and_kept_at_the_same_size() -> None:
    image = image_of(1, 11, 5, 4)
    assert torch.equal(finished(prepare(image, Extent(11, 5)))[..., 3], image[..., 3])
    as_gray = prepare(image[..., 3:], Extent(22, 10))
    assert torch.allclose(finished(prepare(image, Extent(22, 10)))[..., 3:], finished(as_gray), atol=1e-6)


def test_fully_transparent_images_are_black_and_finite() -> None:
    image = image_of(1, 6, 5, 4)
    image[..., 3] = 0.0
    result = finished(prepare(image, Extent(24, 20)))
    assert torch.equal(result, torch.zeros(1, 24, 20, 4))


def test_half_precision_input_is_computed_in_float32() -> None:
    image = image_of(1, 8, 8, 3).to(torch.float16)
    assert torch.equal(prepare(image, Extent(16, 16)).pixels, prepare(image.float(), Extent(16, 16)).pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("extent", [Extent(16, 12), Extent(64, 64)])
def test_the_image_is_left_alone_and_shares_no_memory(channels: int, extent: Extent) -> None:
    image = image_of(1, 16, 12, channels)
    before = image.clone()
    prepared = prepare(image, extent)
    prepared.reference.zero_()
    prepared.pixels.zero_()
    if prepared.alpha is not None:
        prepared.alpha.zero_()
    assert torch.equal(image, before)


def test_without_padding_pixels_and_reference_are_one() -> None:
    prepared = prepare(image_of(1, 16, 16, 3), Extent(64, 128))
    assert prepared.pixels is prepared.reference


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_restoring_the_layout_in_bands_and_into_a_batch(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(image_of(1, 30, 20, channels), Extent(60, 40))
    pixels = crop(prepared.pixels, prepared.padding, prepared.extent) * 1.5
    whole = restore_layout(pixels, prepared)
    batch = torch.full((3, 60, 40, channels), -1.0)
    monkeypatch.setattr(tensors, "BAND_BYTES", 7 * 40 * 3 * 4)
    assert restore_layout(pixels, prepared, out=batch[1:2]).data_ptr() == batch[1].data_ptr()
    assert torch.equal(batch[1:2], whole)
    assert batch[0].eq(-1.0).all()
    assert batch[2].eq(-1.0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_preparing_runs_without_memory(channels: int) -> None:
    """An image and a frame of terabytes on the meta device, in which only shapes are computed."""
    prepared = prepare(torch.empty(1, 200_000, 200_000, channels, device="meta"), Extent(800_000, 800_001))
    assert prepared.pixels.is_meta
    assert prepared.reference.shape == (1, 3, 800_000, 800_001)
    assert prepared.pixels.shape == (1, 3, 800_000, 800_064)
