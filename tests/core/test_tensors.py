"""Layout, range, borders."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_core import tensors
from gendr_core.errors import ImageError, ShapeError
from gendr_core.geometry import Extent, Padding
from gendr_core.tensors import (
    check_image,
    check_latent,
    crop,
    luma,
    reflect_pad,
    row_bands,
    to_image,
    to_pixels,
    to_planes,
)

sides = st.integers(0, 70)
paddings = st.builds(Padding, left=sides, right=sides, top=sides, bottom=sides)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_images_pass(channels: int, dtype: torch.dtype) -> None:
    check_image(torch.rand(2, 1, 1, channels).to(dtype))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(4, 4, 3), r"4 dimensions.*got 3 with shape \(4, 4, 3\): add a batch dimension"),
        (torch.rand(1, 2, 4, 4, 3), r"got 5 with shape \(1, 2, 4, 4, 3\): give the frames of a video as one batch"),
        (torch.rand(1, 3, 4, 5), r"1, 3 or 4 channels.*got 5"),
        (torch.rand(1, 4, 4, 2), r"1, 3 or 4 channels.*got 2"),
        (torch.rand(0, 4, 4, 3), r"at least one image.*\(0, 4, 4, 3\)"),
        (torch.rand(1, 4, 0, 3), r"at least one image.*\(1, 4, 0, 3\)"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), r"floating point.*torch.uint8"),
        (torch.tensor([0.0, float("nan"), float("inf")]).view(1, 1, 1, 3), r"finite.*got 2 of 3"),
    ],
)
def test_other_tensors_are_refused_with_numbers(image: torch.Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_image(image)


def test_latents_are_batches_of_single_frames() -> None:
    for dtype in (torch.float16, torch.float32):
        check_latent(torch.zeros(2, 16, 1, 3, dtype=dtype))
    for latent, message in (
        (torch.zeros(1, 16, 5, 8, 8), r"got 5 with shape \(1, 16, 5, 8, 8\): take single frames"),
        (torch.zeros(16, 8, 8), r"got 3 with shape \(16, 8, 8\): add what is missing"),
        (torch.zeros(0, 16, 8, 8), r"at least one cell, got torch.float32 of shape \(0, 16, 8, 8\)"),
        (torch.zeros(1, 16, 8, 8, dtype=torch.int64), "floating point latents.*got torch.int64"),
    ):
        with pytest.raises(ShapeError, match=message):
            check_latent(latent)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bad_values_are_counted_over_all_bands(
    value: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(2, 40, 9, 3).to(dtype)
    image[0, 0, 0, 0] = image[1, 39, 8, 2] = image[1, 20, 4, 1] = value
    monkeypatch.setattr(tensors, "BAND_BYTES", 3000)
    with pytest.raises(ImageError, match="got 3 of 2160"):
        check_image(image)


def test_shapes_without_values_pass() -> None:
    check_image(torch.empty(1, 9, 9, 3, device="meta"))
    with pytest.raises(ImageError, match="1, 3 or 4 channels"):
        check_image(torch.empty(1, 9, 9, 2, device="meta"))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 200), st.integers(1, 50), st.integers(1, 20000))
def test_bands_cover_every_row_once_within_their_bytes(batch: int, rows: int, width: int, band_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "BAND_BYTES", band_bytes)
        bands = row_bands(torch.empty(batch, 3, rows, width))
    assert [row for band in bands for row in range(band.start, band.stop)] == list(range(rows))
    assert all(len(band) == 1 or len(band) * batch * 3 * width * 4 <= band_bytes for band in bands)


def test_pixels_and_back() -> None:
    image = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3)
    pixels = to_pixels(to_planes(image))
    assert pixels.flatten().tolist() == [-1.0, -0.5, 1.0]
    assert torch.equal(to_image(pixels), image)
    assert to_image(pixels * 3.0).flatten().tolist() == [0.0, 0.0, 1.0]


def test_planes_are_a_clamped_copy_and_gray_is_repeated() -> None:
    image = torch.rand(2, 3, 5, 1) * 3.0 - 1.0
    before = image.clone()
    planes = to_planes(image)
    assert planes.is_contiguous()
    assert torch.equal(planes, before.clamp(0.0, 1.0).permute(0, 3, 1, 2))
    assert torch.equal(to_pixels(planes), to_pixels(to_planes(before.expand(-1, -1, -1, 3))))
    assert torch.equal(image, before)


def test_luma_of_primaries_and_gray() -> None:
    primaries = torch.eye(3).view(3, 3, 1, 1)
    assert luma(primaries).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    assert luma(torch.full((1, 3, 2, 2), 0.4)).flatten().tolist() == pytest.approx([0.4] * 4)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), paddings)
def test_crop_undoes_any_reflect_pad(height: int, width: int, padding: Padding) -> None:
    x = torch.arange(2.0 * height * width).view(1, 2, height, width)
    padded = reflect_pad(x, padding)
    extent = Extent(height, width)
    around = padding.around(extent)
    assert padded.shape == (1, 2, around.height, around.width)
    assert torch.equal(crop(padded, padding, extent), x)


def test_reflect_pad_equals_torch_where_torch_can() -> None:
    x = torch.rand(2, 3, 6, 9)
    padding = Padding(left=8, right=3, top=0, bottom=5)
    assert torch.equal(reflect_pad(x, padding), F.pad(x, (8, 3, 0, 5), mode="reflect"))


def test_reflect_pad_keeps_reflecting() -> None:
    x = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3)
    padded = reflect_pad(x, Padding(left=5, right=4, top=1, bottom=0))
    assert padded[0, 0].tolist() == [[1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]] * 2
    assert reflect_pad(x[..., :1] + 7.0, Padding(left=31, right=32, top=31, bottom=32)).unique().tolist() == [7.0]


def test_no_padding_is_no_copy() -> None:
    x = torch.rand(1, 3, 2, 2)
    assert reflect_pad(x, Padding(left=0, right=0, top=0, bottom=0)) is x
