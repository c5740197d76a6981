"""Layout, range, borders."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_core.errors import ImageError
from gendr_core.geometry import Extent, Padding
from gendr_core.tensors import check_image, crop, luma, reflect_pad, to_image, to_pixels

sides = st.integers(0, 70)
paddings = st.builds(Padding, left=sides, right=sides, top=sides, bottom=sides)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_images_pass(channels: int, dtype: torch.dtype) -> None:
    check_image(torch.rand(2, 1, 1, channels).to(dtype))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(4, 4, 3), r"4 dimensions.*got 3 with shape \(4, 4, 3\)"),
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


def test_pixels_and_back() -> None:
    image = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3)
    pixels = to_pixels(image)
    assert pixels.flatten().tolist() == [-1.0, -0.5, 1.0]
    assert torch.equal(to_image(pixels), image)
    assert to_image(pixels * 3.0).flatten().tolist() == [0.0, 0.0, 1.0]


def test_gray_is_repeated_and_alpha_left_out() -> None:
    gray = torch.rand(2, 3, 5, 1)
    assert torch.equal(to_pixels(gray), to_pixels(gray.expand(-1, -1, -1, 3)))
    rgba = torch.rand(2, 3, 5, 4)
    assert torch.equal(to_pixels(rgba), to_pixels(rgba[..., :3]))


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
