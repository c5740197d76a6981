"""JPEG in torch against JPEG files by Pillow."""

import pytest
import torch
from torch.nn import functional

from gendr_core.degrade import jpeg
from gendr_train.data.jpeg import LUMA_TABLE, jpeg_on_device, quantisation_table


def _photo(height: int, width: int, seed: int = 3) -> torch.Tensor:
    """Return soft shapes in colour, some texture and an edge."""
    generator = torch.Generator().manual_seed(seed)
    soft = functional.interpolate(torch.rand((1, 3, 6, 7), generator=generator), size=(height, width), mode="bicubic")
    soft[:, :, :, width // 2 :] *= 0.6
    return (soft + 0.04 * torch.randn(soft.shape, generator=generator)).clamp(0.0, 1.0)


@pytest.mark.parametrize("quality", [30, 49, 50, 75, 95])
@pytest.mark.parametrize("size", [(64, 96), (37, 51), (20, 22), (17, 15), (10, 10), (9, 9), (8, 8), (1, 1)])
def test_it_is_pillows_but_for_rounding(quality: int, size: tuple[int, int]) -> None:
    photos = [_photo(*size, seed) for seed in range(12)]
    # One coefficient that falls to the other side of a tie shows in a small image: the mean of several is what counts.
    difference = torch.cat([jpeg_on_device(photo, quality) - jpeg(photo, quality) for photo in photos]) * 255.0
    assert float(difference.abs().mean()) <= 1.0
    assert abs(float(difference.mean())) <= 0.5
    # The damage itself is larger by far, so agreement is no accident.
    if min(size) > 30 and quality <= 75:
        damage = torch.cat([jpeg_on_device(photo, quality) - photo for photo in photos]).abs().mean() * 255.0
        assert float(damage) > 3.0 * float(difference.abs().mean())


def test_values_are_whole_levels_and_flat_gray_stays() -> None:
    levels = jpeg_on_device(_photo(40, 24) * 1.4 - 0.2, 60) * 255.0
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert float(levels.min()) >= 0.0
    assert float(levels.max()) <= 255.0
    flat = torch.full((1, 3, 20, 20), 128 / 255)
    assert torch.equal(jpeg_on_device(flat, 30), flat)


def test_images_of_a_batch_do_not_touch() -> None:
    image = _photo(32, 32)
    both = jpeg_on_device(torch.cat([image, 1.0 - image]), 40)
    assert torch.equal(both[1:], jpeg_on_device(1.0 - image, 40))


def test_tables_scale_as_in_libjpeg() -> None:
    # First step 16: at 50 as it is; at 25 doubled; at 95 (16 * 10 + 50) // 100 = 2; never above 255.
    firsts = {quality: quantisation_table(LUMA_TABLE, quality)[0][0] for quality in (50, 25, 95)}
    assert firsts == {50: 16, 25: 32, 95: 2}
    assert quantisation_table(LUMA_TABLE, 1)[0][0] == 255
