"""Image files to tensors and back, with nothing lost that the format can hold.

Role: the command line and the training data read and write through here; nodes do not (the host has its own).
8-bit formats go through Pillow; 16-bit PNG and TIFF need imagecodecs and tifffile, imported where used.
"""

import secrets
import struct
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from logging import getLogger
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from .errors import ImageError
from .samples import BitDepth, Samples, straight_alpha, to_stored, to_unit, upright
from .tensors import check_image

BIT_DEPTHS: dict[str, tuple[BitDepth, ...]] = {
    ".png": (8, 16),
    ".tif": (8, 16, 32),
    ".tiff": (8, 16, 32),
    ".jpg": (8,),
    ".jpeg": (8,),
    ".webp": (8,),
    ".bmp": (8,),
}
"""The suffixes that are read and written, and the bits per channel each can be written with; 32 is float."""
WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp")
MAX_PIXELS = 2**29
"""Largest image that is decoded: twice 16384x16384. Larger ones are refused as decompression bombs."""

_PILLOW_MAX_PIXELS = 178_956_970  # Above it Pillow's TIFF and WebP decoders refuse by themselves.
_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_ORIENTATION_TAG = 274
_PNG_BIT_DEPTH_AT, _PNG_IHDR_END = 24, 33
_PROFILE_SPACE = slice(16, 20)  # The data colour space in an ICC header (ICC.1:2022, table 17).
# All that decoders raise on damaged bytes; imagecodecs' errors are RuntimeErrors, tifffile's ValueErrors.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, LookupError, TypeError, struct.error, zlib.error)

_log = getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """One image read from a file, upright."""

    image: Tensor
    """[1, H, W, C] float32 in 0 to 1, CPU; C is 1, 3 or 4 (straight alpha)."""
    bit_depth: BitDepth
    """Bits per channel in the file; 32 is floating point."""
    icc: bytes | None
    """Colour profile that the values are in; None for sRGB or unknown."""


def _missing_extra(path: Path, error: ImportError) -> ImageError:
    return ImageError(
        f'expected the package {error.name} for {path}, but it is not installed: run pip install "gendr[files]",'
        " or use an 8-bit PNG, JPEG or WebP"
    )


def _check_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in BIT_DEPTHS:
        raise ImageError(f"expected a file name ending in one of {', '.join(BIT_DEPTHS)}, got {path.name}: rename it")
    return suffix


def _check_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(
            f"expected 1 to {MAX_PIXELS} pixels, got {width}x{height} in {path}: split it or scale it down"
        )


def _check_single(path: Path, num_images: int) -> None:
    if num_images != 1:
        raise ImageError(f"expected a single image, got {num_images} frames or pages in {path}: split the file first")


def _fitting_profile(icc: bytes | None, channels: int) -> bytes | None:
    """Return ``icc`` where it describes images of ``channels`` channels, else None."""
    space = b"GRAY" if channels == 1 else b"RGB "
    if icc is None or icc[_PROFILE_SPACE] == space:
        return icc
    _log.warning("the colour profile is for %s images, not for %d channels: left out", icc[_PROFILE_SPACE], channels)
    return None


def _open_pillow(file: IO[bytes], path: Path) -> Image.Image:
    """Return the image in ``file``, its size checked and its pixels not yet decoded.

    ``Image.open`` has a lower limit, a variable of the whole process that other packs and threads rely on. The registry
    of decoders that it goes by has none: so nothing global is changed, not even for a moment.
    """
    prefix = file.read(16)  # By which Pillow tells formats apart.
    file.seek(0)
    for name in _PILLOW_FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(prefix) is True:  # Where this Pillow lacks the decoder it is a text.
            opened: Image.Image = factory(file, str(path))
            _check_size(path, *opened.size)
            return opened
    raise UnidentifiedImageError("it begins like none of the formats")


def _pillow_samples(opened: Image.Image) -> tuple[Samples, bytes | None]:
    """Return 8-bit samples, [H, W] or of 3 or 4 channels, and the profile they are in."""
    icc: bytes | None = opened.info.get("icc_profile")
    if opened.mode == "CMYK" and icc is not None:
        srgb = ImageCms.ImageCmsProfile(
            ImageCms.createProfile("sRGB")  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        )
        converted = ImageCms.profileToProfile(opened, ImageCms.ImageCmsProfile(BytesIO(icc)), srgb, outputMode="RGB")
        return np.asarray(converted), None
    mode = "RGBA" if opened.has_transparency_data else "L" if opened.mode in ("1", "L") else "RGB"
    return np.asarray(opened if opened.mode == mode else opened.convert(mode)), icc  # To the same mode it would copy.


def _read_pillow(path: Path) -> tuple[Samples, bytes | None]:
    with path.open("rb") as file, _open_pillow(file, path) as opened:
        # Phones store previews and depth maps as further frames of a JPEG (MPO): the first is the photo.
        if opened.format != "MPO":
            _check_single(path, getattr(opened, "n_frames", 1))
        opened.load()
        # After load: Pillow turns TIFF upright by itself and then says so here.
        orientation = opened.getexif().get(_ORIENTATION_TAG, 1)
        file.seek(_PNG_BIT_DEPTH_AT)
        if opened.format == "PNG" and file.read(1) == b"\x10":
            import imagecodecs  # Optional dependency

            samples, icc = np.asarray(imagecodecs.png_decode(path.read_bytes())), opened.info.get("icc_profile")
        else:
            samples, icc = _pillow_samples(opened)
    return upright(np.atleast_3d(samples), orientation), icc


def _read_tiff(path: Path) -> tuple[Samples, bytes | None]:
    import tifffile  # Optional dependency

    with tifffile.TiffFile(path) as tiff:
        # Editors add a small preview as a further, reduced page.
        pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and not page.is_reduced]
        _check_single(path, len(pages))
        page = pages[0]
        _check_size(path, page.imagewidth, page.imagelength)
        known_color = page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        needs_pillow = page.bitspersample < 8 or not known_color  # Which knows palettes, CMYK and bilevel.
        if page.bitspersample <= 8 and (needs_pillow or page.imagewidth * page.imagelength <= _PILLOW_MAX_PIXELS):
            return _read_pillow(path)
        if not known_color or page.bitspersample not in (8, 16, 32, 64):
            raise ImageError(
                f"expected a gray or RGB TIFF of 8, 16 or 32 bits, got {page.bitspersample} bits in colour space"
                f" {tifffile.PHOTOMETRIC(page.photometric).name} in {path}: convert it"
            )
        samples = np.asarray(page.asarray())
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and samples.ndim == 3:
            samples = np.moveaxis(samples, 0, -1)
        samples = np.atleast_3d(samples)
        if tifffile.EXTRASAMPLE.ASSOCALPHA in page.extrasamples:
            samples = straight_alpha(samples)
        tag = page.tags.get(_ORIENTATION_TAG)
        return upright(samples, 1 if tag is None else int(tag.value)), page.iccprofile


def read_image(path: str | Path) -> ImageFile:
    """Return the image in a PNG, TIFF, JPEG, WebP or BMP file, turned upright.

    8 and 16-bit values are divided by 255 and 65535; float TIFF is clipped to 0 to 1. Palettes become RGB or RGBA,
    gray with alpha RGBA, CMYK sRGB (by its profile where it has one).

    Raises:
        ImageError: no such file, an unknown suffix, a damaged or too large file, several frames or pages, samples
            that ``samples.to_unit`` refuses, or a missing optional package.
    """
    path = Path(path)
    suffix = _check_suffix(path)
    if not path.is_file():
        raise ImageError(f"expected an image file, found none at {path}: check the path")
    try:
        samples, icc = _read_tiff(path) if suffix in (".tif", ".tiff") else _read_pillow(path)
    except Image.DecompressionBombError as error:
        raise ImageError(f"expected at most {_PILLOW_MAX_PIXELS} pixels for this format in {path}: {error}") from error
    except ImportError as error:
        raise _missing_extra(path, error) from error
    except ImageError:
        raise
    except (ImageCms.PyCMSError, *_DAMAGE) as error:
        raise ImageError(f"expected a whole image file, cannot read {path}: {error}: export it again") from error
    values, bit_depth = to_unit(samples, str(path))
    icc = _fitting_profile(icc, values.shape[2])
    return ImageFile(image=torch.as_tensor(values)[None], bit_depth=bit_depth, icc=icc)


def _encode_pillow(file: IO[bytes], suffix: str, samples: Samples, icc: bytes | None, quality: int) -> None:
    options: dict[str, Any] = {} if icc is None else {"icc_profile": icc}
    if suffix in (".jpg", ".jpeg"):
        options |= {"quality": quality, "subsampling": "4:4:4"}
    elif suffix == ".webp":
        options |= {"quality": quality, "lossless": quality == 100}
    elif suffix == ".bmp" and icc is not None:
        _log.warning("BMP holds no colour profile: left out; write PNG to keep it")
    picture = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    picture.save(file, Image.registered_extensions()[suffix], **options)


def _encode_png16(file: IO[bytes], samples: Samples, icc: bytes | None) -> None:
    import imagecodecs  # Optional dependency

    data = memoryview(imagecodecs.png_encode(samples[..., 0] if samples.shape[2] == 1 else samples))
    file.write(data[:_PNG_IHDR_END])
    if icc is not None:
        # An iCCP chunk right after IHDR: name, 0, method 0, deflated profile   (PNG 3rd edition, 11.3.2.3).
        body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc)
        file.write(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    file.write(data[_PNG_IHDR_END:])


def _encode_tiff(file: IO[bytes], samples: Samples, icc: bytes | None) -> None:
    import tifffile  # Optional dependency

    channels = samples.shape[2]
    tifffile.imwrite(
        file,
        samples[..., 0] if channels == 1 else samples,
        photometric="minisblack" if channels == 1 else "rgb",
        planarconfig=None if channels == 1 else "contig",
        extrasamples=["unassalpha"] if channels == 4 else None,
        compression="zlib",
        predictor=True,
        metadata=None,
        software=False,
        iccprofile=icc,
    )


@contextmanager
def _whole_file(path: Path) -> Generator[IO[bytes], None, None]:
    """Give a file to write that takes the place of ``path`` once it is whole, or else is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("x+b") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # Gone already where all went well.


def write_image(
    path: str | Path, image: Tensor, bit_depth: BitDepth = 8, *, icc: bytes | None = None, quality: int = 95
) -> None:
    """Write one image; the suffix decides the format. The file appears whole or not at all.

    JPEG is written without chroma subsampling. A profile that does not fit the channels is left out with a warning.

    Args:
        path: where to; an existing file is replaced.
        image: [1, H, W, C] in 0 to 1 (clamped), C of 1, 3 or 4.
        bit_depth: 8, 16 (PNG, TIFF) or 32 (float TIFF); see ``samples.to_stored``.
        icc: profile to embed.
        quality: 1 to 100, for JPEG and WebP; 100 makes WebP lossless, which below it always subsamples chroma.

    Raises:
        ImageError: the suffix, bit depth, shape or alpha does not fit, a package is missing, or writing failed.
    """
    path = Path(path)
    suffix = _check_suffix(path)
    check_image(image)
    if image.shape[0] != 1:
        raise ImageError(f"expected a batch of one image to write, got {image.shape[0]}: write them one by one")
    if bit_depth not in BIT_DEPTHS[suffix]:
        fitting = ", ".join(name for name, depths in BIT_DEPTHS.items() if bit_depth in depths)
        raise ImageError(f"expected one of {fitting} for {bit_depth} bits per channel, got {path.name}: rename it")
    if image.shape[3] == 4 and suffix in WITHOUT_ALPHA:
        raise ImageError(f"expected a format with alpha for 4 channels, got {path.name}: write PNG, or drop the alpha")
    samples = to_stored(image[0].to(torch.float32).numpy(force=True), bit_depth)
    icc = _fitting_profile(icc, samples.shape[2])
    try:
        with _whole_file(path) as file:
            if suffix in (".tif", ".tiff"):
                _encode_tiff(file, samples, icc)
            elif bit_depth == 16:
                _encode_png16(file, samples, icc)
            else:
                _encode_pillow(file, suffix, samples, icc, quality)
    except ImportError as error:
        raise _missing_extra(path, error) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageError(f"cannot write {path}: {error}: check the folder, the space left and the size") from error
