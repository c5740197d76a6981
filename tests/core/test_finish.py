"""Detail, masks and colour references against their equations, as parts and in whole restorations."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tiny_unet
from torch import Tensor

from gendr_core import tensors
from gendr_core.color import low_pass
from gendr_core.config import COLOR_METHODS, ColorMethod, RestoreOptions
from gendr_core.errors import ImageError, OptionError
from gendr_core.finish import Guides, blend_mask, feather, resize_mask, scale_detail
from gendr_core.geometry import Extent
from gendr_core.host import Host
from gendr_core.pipeline import restore
from gendr_core.prepare import prepare, restore_layout

SIZES = st.integers(1, 40)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pixels_of(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed) * 2.0 - 1.0


def restored(image: Tensor, guides: Guides | None = None, **options: object) -> Tensor:
    unet = tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8", c_skip=1.0, c_out=0.3)
    return restore(image, unet, options=RestoreOptions(scale=2.0, **options), guides=guides)  # type: ignore[arg-type]


def upscaled(image: Tensor, factor: int = 2) -> Tensor:
    prepared = prepare(image, Extent(image.shape[1] * factor, image.shape[2] * factor))
    return restore_layout(prepared.reference, prepared)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), SIZES, st.floats(0.0, 1.5), st.integers(1, 4000), st.booleans())
def test_detail_weighs_the_high_frequencies_of_the_change(
    height: int, width: int, detail: float, band_bytes: int, in_place: bool
) -> None:
    pixels, before = pixels_of(1, 3, height, width, seed=1), pixels_of(1, 3, height, width, seed=2)
    change = pixels - before
    expected = pixels + (detail - 1.0) * (change - low_pass(change))
    given = pixels.clone()
    out = given if in_place else torch.empty(1, height, width, 4)[..., :3].permute(0, 3, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "BAND_BYTES", band_bytes)
        torch.testing.assert_close(scale_detail(given, before, detail, out=out), expected, rtol=0, atol=2e-6)
        assert torch.equal(scale_detail(pixels, before, 1.0, out=torch.empty_like(pixels)), pixels)


def test_without_detail_the_fine_structure_is_the_inputs_and_the_coarse_one_the_models() -> None:
    checker = ((torch.arange(96)[:, None] + torch.arange(96)[None]) % 2).float().expand(1, 3, 96, 96) * 0.4
    flat = torch.full((1, 3, 96, 96), 0.1)
    # The model finds texture on a flat input: nothing of it stays but its mean.
    bare = scale_detail(checker, flat, 0.0, out=torch.empty_like(flat))
    torch.testing.assert_close(bare, torch.full_like(flat, 0.2), rtol=0, atol=0.01)
    # The model takes texture away: it comes back, on the model's mean.
    kept = scale_detail(flat, checker, 0.0, out=torch.empty_like(flat))
    torch.testing.assert_close(kept, checker - 0.1, rtol=0, atol=0.01)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.integers(1, 90), st.integers(1, 90), st.integers(0, 40))
def test_full_and_empty_masks_stay_exact(height: int, width: int, rows: int, columns: int, reach: int) -> None:
    for value in (0.0, 1.0):
        plane = resize_mask(torch.full((2, height, width), value), Extent(rows, columns))
        assert plane.shape == (2, 1, rows, columns)
        assert (plane == value).all()
        assert (feather(plane, reach) == value).all()


def test_a_resized_mask_stays_in_range_and_leaves_the_given_one_alone() -> None:
    given = noise(1, 9, 7) * 3.0 - 1.0
    before = given.clone()
    for extent in (Extent(9, 7), Extent(31, 20), Extent(2, 3)):
        plane = resize_mask(given, extent)
        assert plane.min() >= 0.0
        assert plane.max() <= 1.0
    assert torch.equal(given, before)


def test_feather_is_a_triangle_that_ends_where_it_says() -> None:
    impulse = torch.zeros(1, 1, 21, 21)
    impulse[0, 0, 10, 10] = 1.0
    triangle = (5 - (torch.arange(21) - 10).abs()).clamp(min=0) / 25.0
    torch.testing.assert_close(feather(impulse, 4)[0, 0], triangle[:, None] * triangle[None])
    step = (torch.arange(40) >= 20).float().expand(1, 1, 30, 40)
    ramp = feather(step, 8)[0, 0, 15]
    assert (ramp[:12] == 0.0).all()
    assert (ramp[28:] == 1.0).all()
    assert (ramp[11:29].diff() > 0.0).all()
    assert ramp[19] + ramp[20] == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), SIZES, st.integers(0, 12), st.integers(1, 4000), st.floats(0.0, 1.0))
def test_blending_is_linear_in_the_mask_and_bands_change_nothing(
    height: int, width: int, reach: int, band_bytes: int, share: float
) -> None:
    pixels, before = 1.2 * pixels_of(1, 3, height, width, seed=1), pixels_of(1, 3, height, width, seed=2)
    first, second = noise(1, 1, height, width, seed=3), noise(1, 1, height, width, seed=4)
    whole = [
        blend_mask(pixels, before, mask, reach, out=torch.empty_like(pixels))
        for mask in (first, second, share * first + (1.0 - share) * second)
    ]
    expected = before + feather(first, reach) * (pixels - before)
    torch.testing.assert_close(whole[0], expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(whole[2], share * whole[0] + (1.0 - share) * whole[1], rtol=0, atol=2e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "BAND_BYTES", band_bytes)
        assert torch.equal(blend_mask(pixels, before, first, reach, out=pixels), whole[0])


@pytest.mark.parametrize("color", COLOR_METHODS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_masks_at_the_ends_and_in_between(color: ColorMethod, channels: int) -> None:
    image = noise(1, 20, 24, channels, seed=channels)
    plain = restored(image, color=color)
    full, empty = (Guides(mask=torch.full((1, 7, 5), value)) for value in (1.0, 0.0))
    assert not torch.equal(plain, upscaled(image))
    assert torch.equal(restored(image, full, color=color), plain)
    assert torch.equal(restored(image, empty, color=color), upscaled(image))
    half = torch.zeros(1, 40, 48)
    half[:, :, 24:] = 1.0
    weights = feather(half[:, None], 3)[:, 0, :, :, None]
    mixed = restored(image, Guides(mask=half), color=color, feather_px=3)
    expected = upscaled(image) * (1.0 - weights) + plain * weights
    # What is cut off at 0 and 1 is cut off last.
    inside = (plain > 0.0) & (plain < 1.0)
    torch.testing.assert_close(mixed[inside], expected[inside], rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("color", ["none", "wavelet", "adain"])
def test_detail_of_a_whole_restoration(color: ColorMethod, channels: int) -> None:
    image = noise(1, 20, 24, channels, seed=3)
    plain, none, more = (restored(image, color=color, detail=detail) for detail in (1.0, 0.0, 1.5))
    assert torch.equal(plain, restored(image, color=color))
    change = [(result - upscaled(image)).permute(0, 3, 1, 2) for result in (none, plain, more)]
    fine = [float((part - low_pass(part.clone())).std()) for part in change]
    assert fine[0] < 0.5 * fine[1]
    assert fine[2] > 1.1 * fine[1]


def test_where_the_mask_is_empty_no_network_runs(caplog: pytest.LogCaptureFixture) -> None:
    images, masks = noise(2, 6, 7, 4), torch.zeros(2, 3, 3)
    unet, progress = tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8"), Shares()
    # A network without weights: it can be planned for and cannot run.
    unet.network.to("meta")
    options, host = RestoreOptions(scale=2.0), Host(progress=progress)
    assert torch.equal(restore(images, unet, options=options, host=host, guides=Guides(mask=masks)), upscaled(images))
    assert progress.seen == [0.5, 1.0]
    assert [record.getMessage() for record in caplog.records] == [
        "the mask is empty: what comes out is the resized input"
    ]
    masks[1, 0, 0] = 1e-3
    with pytest.raises(NotImplementedError, match="meta tensor"):
        restore(images, unet, options=options, host=host, guides=Guides(mask=masks))


class Shares:
    """Remembers the progress."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def update(self, done: int, total: int) -> None:
        """Note how much is done."""
        self.seen.append(done / total)


def test_guides_go_with_their_frames() -> None:
    images, masks, colors = noise(3, 8, 12, 3), noise(3, 5, 5, seed=1), noise(3, 9, 4, 4, seed=2)
    together = restored(images, Guides(mask=masks, color_reference=colors), detail=0.5)
    for index in range(3):
        alone = Guides(mask=masks[index][None], color_reference=colors[index][None])
        assert torch.equal(restored(images[index][None], alone, detail=0.5)[0], together[index])
    one = restored(images, Guides(mask=masks[:1]))
    assert torch.equal(one[2], restored(images[2:], Guides(mask=masks[:1]))[0])


def test_a_colour_reference_takes_the_place_of_the_input() -> None:
    image = noise(1, 16, 16, 3)
    assert torch.equal(restored(image, Guides(color_reference=image)), restored(image))
    blue = torch.tensor([0.1, 0.2, 0.7]).expand(1, 5, 3, 3)
    matched = restored(image, Guides(color_reference=blue), color="adain")
    torch.testing.assert_close(matched, blue[:, :1, :1].expand_as(matched), rtol=0, atol=0.02)
    assert torch.equal(restored(image, Guides(color_reference=blue), color="none"), restored(image, color="none"))


def test_guides_that_do_not_fit_are_named() -> None:
    image = noise(3, 8, 8, 3)
    for guides, words in (
        (Guides(mask=noise(2, 8, 8)), "1 mask, or one for each of 3 images, got 2"),
        (Guides(mask=noise(8, 8)), r"3 dimensions .* got shape \(8, 8\)"),
        (Guides(mask=torch.zeros(1, 8, 8, dtype=torch.uint8)), "floating point"),
        (Guides(color_reference=noise(2, 8, 8, 3)), "1 colour reference, or one for each of 3 images, got 2"),
        (Guides(color_reference=noise(1, 8, 8, 2)), "1, 3 or 4 channels"),
    ):
        with pytest.raises(ImageError, match=words):
            restored(image, guides)


def test_options_are_checked() -> None:
    for wrong in ({"detail": -0.1}, {"detail": 1.6}, {"detail": float("nan")}, {"feather_px": -1}, {"feather_px": 257}):
        with pytest.raises(OptionError, match="expected"):
            replace(RestoreOptions(), **wrong)  # type: ignore[arg-type]
