"""Files in and out: precision, orientation, profiles, alpha, damage, and writing whole or not at all."""

import logging
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from torch import Tensor

from gendr_core import image_io
from gendr_core.errors import ImageError
from gendr_core.image_io import BIT_DEPTHS, BitDepth, read_image, write_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def image_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("suffix", "bit_depth"),
    [(".png", 8), (".png", 16), (".tif", 8), (".tiff", 16), (".tif", 32), (".PNG", 8)],
)
def test_lossless_roundtrip(tmp_path: Path, suffix: str, bit_depth: BitDepth, channels: int) -> None:
    path = tmp_path / f"a{suffix}"
    image = image_of(1, 7, 13, channels)
    write_image(path, image, bit_depth)
    read = read_image(path)
    assert read.bit_depth == bit_depth
    assert read.image.shape == image.shape
    assert read.image.dtype == torch.float32
    error = {8: 1.0 / 255.0, 16: 0.5 / 65535.0, 32: 0.0}[bit_depth]
    assert (read.image - image).abs().max() <= error + 1e-6
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_roundtrip_is_close_and_keeps_chroma(tmp_path: Path, suffix: str) -> None:
    image = torch.zeros(1, 16, 16, 3)
    image[:, :, ::2, 0] = 1.0  # One-pixel red stripes: gone if chroma were subsampled.
    write_image(tmp_path / f"a{suffix}", image, quality=100)
    assert (read_image(tmp_path / f"a{suffix}").image - image).abs().max() < 0.03


def test_sixteen_bit_gray_and_colour_levels_are_exact(tmp_path: Path) -> None:
    levels = torch.arange(0, 65536, 37, dtype=torch.float64)[: 1770 // 3 * 3]
    for channels in (1, 3):
        image = (levels / 65535.0).float().view(1, 10, -1, channels)
        write_image(tmp_path / "a.png", image, 16)
        assert torch.equal(read_image(tmp_path / "a.png").image, image)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255  # A white top left corner in the stored picture.
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = orientation
    picture.save(tmp_path / name, exif=exif)
    image = read_image(tmp_path / name).image[0, ..., 0]
    height, width = image.shape
    assert (height, width) == ((16, 32) if orientation in (1, 3) else (32, 16))
    row, column = {1: (0, 0), 3: (-1, -1), 6: (0, -1), 8: (-1, 0)}[orientation]
    assert image[row, column] > 0.9
    assert image.round().sum() == 64


def test_orientation_of_sixteen_bit_tiff(tmp_path: Path) -> None:
    samples = np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000
    tifffile.imwrite(tmp_path / "a.tif", samples, extratags=[(274, 3, 1, 6, True)])
    expected = torch.from_numpy(np.rot90(samples, -1).astype(np.float32) / 65535.0)
    assert torch.equal(read_image(tmp_path / "a.tif").image[0, ..., 0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pillow_modes(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (4, 2), (255, 0, 0)).convert(mode)
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png").image
    assert image.shape[3] == {"1": 1, "L": 1, "LA": 4, "P": 3, "RGB": 3, "RGBA": 4}[mode]
    expected = torch.tensor(np.asarray(picture.convert("RGBA"))).float() / 255.0
    assert torch.allclose(image[0], expected[..., : image.shape[3]], atol=1e-6)


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=1)
    image = read_image(tmp_path / "a.png").image
    assert (image * 255.0).round().view(2, 4).tolist() == [[10, 20, 30, 255], [40, 50, 60, 0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    for name in ("a.jpg", "a.tif"):
        assert read_image(tmp_path / name).image[0, 4, 4].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.02)


def test_bilevel_and_palette_tiff(tmp_path: Path) -> None:
    Image.new("1", (3, 2), 1).save(tmp_path / "bits.tif")
    assert read_image(tmp_path / "bits.tif").image.unique().tolist() == [1.0]
    picture = Image.new("P", (3, 2))
    picture.putpalette([51, 102, 255])
    picture.save(tmp_path / "palette.tif")
    assert read_image(tmp_path / "palette.tif").image[0, 0, 0].tolist() == pytest.approx([0.2, 0.4, 1.0])


def test_planar_and_premultiplied_tiff(tmp_path: Path) -> None:
    samples = (image_of(5, 6, 3).numpy() * 65535).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", samples.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_image(tmp_path / "a.tif").image[0].numpy(), samples.astype(np.float32) / 65535.0)
    half = np.tile(np.array([0.5, 0.25, 0.0, 0.5], np.float32), (5, 6, 1))
    tifffile.imwrite(tmp_path / "b.tif", half, photometric="rgb", extrasamples=["assocalpha"])
    assert read_image(tmp_path / "b.tif").image[0, 0, 0].tolist() == [1.0, 0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("name", "bit_depth"), [("a.png", 8), ("a.png", 16), ("a.jpg", 8), ("a.webp", 8), ("a.tif", 8), ("a.tif", 16)]
)
def test_colour_profile_is_kept(tmp_path: Path, name: str, bit_depth: BitDepth) -> None:
    write_image(tmp_path / name, image_of(1, 8, 8, 3), bit_depth, icc=SRGB)
    assert read_image(tmp_path / name).icc == SRGB
    with Image.open(tmp_path / name) as opened:
        opened.load()
        assert opened.info["icc_profile"] == SRGB


def test_profile_of_other_channels_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        write_image(tmp_path / "a.png", image_of(1, 8, 8, 1), icc=SRGB)
    assert "not for 1 channels" in caplog.text
    assert read_image(tmp_path / "a.png").icc is None


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_animations_are_refused(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="got 3 frames or pages"):
        read_image(tmp_path / name)


def test_pages_are_refused_but_previews_are_not(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((2, 8, 8, 3), np.uint16), photometric="rgb")
    with pytest.raises(ImageError, match="got 2 frames or pages"):
        read_image(tmp_path / "pages.tif")
    with tifffile.TiffWriter(tmp_path / "preview.tif") as tiff:
        tiff.write(np.full((8, 8, 3), 65535, np.uint16), photometric="rgb")
        tiff.write(np.zeros((2, 2, 3), np.uint8), photometric="rgb", subfiletype=1)
    assert read_image(tmp_path / "preview.tif").image.unique().tolist() == [1.0]


def test_phone_pictures_with_a_second_frame_are_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("white", "black")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.jpg").image.min() > 0.99


@pytest.mark.parametrize(
    ("name", "bit_depth"),
    [("a.png", 8), ("a.png", 16), ("a.jpg", 8), ("a.webp", 8), ("a.bmp", 8), ("a.tif", 8), ("a.tif", 16)],
)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, name: str, bit_depth: BitDepth, share: float) -> None:
    path = tmp_path / name
    write_image(path, image_of(1, 40, 40, 3), bit_depth)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match="cannot read"):
        read_image(path)


def test_files_that_are_not_there_or_not_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="found none at"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match=r"ending in one of \.png.*got a\.gif"):
        read_image(tmp_path / "a.gif")
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(ImageError, match="cannot read"):
        read_image(tmp_path / "a.png")


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    """Small files that claim 30000x20000 pixels, more than 2^29."""
    write_image(tmp_path / "a.png", image_of(1, 8, 8, 3))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 30000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="expected 1 to 536870912 pixels, got 30000x20000"):
        read_image(tmp_path / "a.png")
    write_image(tmp_path / "a.tif", image_of(1, 8, 8, 3), 16)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        for name, value in (("ImageWidth", 30000), ("ImageLength", 20000)):
            tiff.pages.first.tags[name].overwrite(value)
    with pytest.raises(ImageError, match="got 30000x20000"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_what_pillow_holds_for_a_bomb_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pillow's own limit, lowered here in place of a larger image, neither matters nor is changed."""
    write_image(tmp_path / name, image_of(1, 20, 30, 3), quality=100)
    expected = read_image(tmp_path / name).image
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(image_io, "_PILLOW_MAX_PIXELS", 200)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / name)
    assert torch.equal(read_image(tmp_path / name).image, expected)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_8_bit_tiff_beyond_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    write_image(tmp_path / "a.tif", image_of(1, 9, 7, channels))
    expected = read_image(tmp_path / "a.tif")
    monkeypatch.setattr(image_io, "_PILLOW_MAX_PIXELS", 10)
    read = read_image(tmp_path / "a.tif")
    assert torch.equal(read.image, expected.image)
    assert read.bit_depth == 8


def test_odd_tiffs_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8, 4), np.uint16), photometric="separated")
    with pytest.raises(ImageError, match="16 bits in colour space SEPARATED"):
        read_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((8, 8), np.uint32))
    with pytest.raises(ImageError, match="got uint32"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize(("name", "missing"), [("a.png", "imagecodecs"), ("a.tif", "tifffile")])
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str) -> None:
    write_image(tmp_path / name, image_of(1, 4, 4, 3), 16)
    monkeypatch.setitem(sys.modules, missing, None)
    for attempt in (
        lambda: read_image(tmp_path / name),
        lambda: write_image(tmp_path / name, image_of(1, 4, 4, 3), 16),
    ):
        with pytest.raises(ImageError, match=rf'{missing}.*pip install "gendr\[files\]"'):
            attempt()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(ImageError, match="No space left"):
        write_image(path, image_of(1, 4, 4, 3))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot write"):
        write_image(tmp_path / "none" / "a.png", image_of(1, 4, 4, 3))


@pytest.mark.parametrize(
    ("name", "shape", "bit_depth", "message"),
    [
        ("a.jpg", (1, 4, 4, 4), 8, "expected a format with alpha.*write PNG"),
        ("a.bmp", (1, 4, 4, 4), 8, "expected a format with alpha"),
        ("a.jpg", (1, 4, 4, 3), 16, r"expected one of \.png, \.tif, \.tiff for 16 bits"),
        ("a.png", (1, 4, 4, 3), 32, r"expected one of \.tif, \.tiff for 32 bits"),
        ("a.png", (2, 4, 4, 3), 8, "batch of one image to write, got 2"),
        ("a.png", (1, 4, 4, 2), 8, "1, 3 or 4 channels"),
        ("a.exr", (1, 4, 4, 3), 8, "got a.exr"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, name: str, shape: tuple[int, ...], bit_depth: BitDepth, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        write_image(tmp_path / name, torch.rand(shape), bit_depth)
    assert list(tmp_path.iterdir()) == []


def test_webp_beyond_its_size_limit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot write"):
        write_image(tmp_path / "a.webp", torch.zeros(1, 1, 16384, 3))


def test_every_written_format_can_be_read(tmp_path: Path) -> None:
    for suffix, depths in BIT_DEPTHS.items():
        for bit_depth in depths:
            write_image(tmp_path / f"a{suffix}", torch.full((1, 3, 2, 3), 0.4), bit_depth)
            read = read_image(tmp_path / f"a{suffix}")
            assert read.bit_depth == bit_depth
            assert torch.allclose(read.image, torch.tensor(0.4), atol=0.01)
