"""Layout, range and borders of image tensors: the one place where images become pixels and back.

Role: ``prepare`` brings images in through here; ``pipeline`` and ``decode`` crop and hand them out.
An image is [B, H, W, C] in 0 to 1, as ComfyUI has it; pixels are [B, 3, H, W] in -1 to 1, as the networks have it.
"""

import torch
from torch import Tensor

from .errors import ImageError, ShapeError
from .geometry import Extent, Padding, Span, partition

IMAGE_CHANNELS = (1, 3, 4)
"""Gray, RGB, RGB with alpha."""
LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Y' = 0.299 R' + 0.587 G' + 0.114 B'  (ITU-R BT.601-7, section 2.5.1)."""
BAND_BYTES = 16 * 2**20
"""Bytes of the bands that frames are worked through in: little beside a frame, and much for a single call."""


def row_bands(x: Tensor, axis: int = 2) -> list[Span]:
    """Return bands of about ``BAND_BYTES`` that cover ``x``, which is not empty, along ``axis``; at least one row."""
    row_bytes = x.element_size() * x.numel() // x.shape[axis]
    return partition(x.shape[axis], max(1, BAND_BYTES // row_bytes))


def check_image(image: Tensor) -> None:
    """Return if ``image`` can be restored: [B, H, W, C], C of 1, 3 or 4, floating point, finite, not empty.

    Values outside 0 to 1 pass; ``prepare`` clamps them.

    Raises:
        ImageError: it is something else.
    """
    shape = tuple(image.shape)
    if image.ndim != 4:
        way = "add a batch dimension" if image.ndim < 4 else "give the frames of a video as one batch"
        raise ImageError(
            f"expected an image of 4 dimensions [batch, height, width, channels], got {image.ndim} with shape {shape}:"
            f" {way}"
        )
    if shape[3] not in IMAGE_CHANNELS:
        raise ImageError(
            f"expected 1, 3 or 4 channels in the last dimension, got {shape[3]} in shape {shape}:"
            " move the channels last, or convert to gray, RGB or RGBA"
        )
    if image.numel() == 0:
        raise ImageError(f"expected at least one image of 1x1 pixel, got shape {shape}: give a non-empty batch")
    if not image.is_floating_point():
        raise ImageError(f"expected floating point values from 0 to 1, got {image.dtype}: divide by the largest value")
    if image.is_meta:
        return  # Planning runs on shapes alone; there are no values to look at.
    # Extremes need no mask of the frame's size, and what is not finite always shows in them.
    if not bool(torch.stack(image.aminmax()).isfinite().all()):
        num_bad = sum(int((~image[:, band.places].isfinite()).sum()) for band in row_bands(image, axis=1))
        raise ImageError(
            f"expected finite values, got {num_bad} of {image.numel()} that are NaN or infinite:"
            " check the step that made this image"
        )


def check_latent(latent: Tensor) -> None:
    """Return if ``latent`` can be a batch of latents: [B, C, h, w], floating point, not empty.

    Raises:
        ShapeError: it is something else.
    """
    shape = tuple(latent.shape)
    if latent.ndim != 4:
        way = "take single frames of a video's latent" if latent.ndim > 4 else "add what is missing"
        raise ShapeError(
            f"expected a latent of 4 dimensions [batch, channels, height, width], got {latent.ndim} with shape {shape}:"
            f" {way}"
        )
    if latent.numel() == 0 or not latent.is_floating_point():
        raise ShapeError(f"expected floating point latents, at least one cell, got {latent.dtype} of shape {shape}")


def to_planes(image: Tensor) -> Tensor:
    """Return a copy of ``image`` [B, H, W, C] as planes [B, C, H, W], clamped to 0 to 1, float32, contiguous."""
    # Contiguous, because kernels for other memory orders may differ in the last bit.
    planes = image.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return planes.clamp_(0.0, 1.0)


def to_pixels(planes: Tensor) -> Tensor:
    """Return pixels [B, 3, H, W] in -1 to 1, made of ``planes``, which are overwritten; 2 * planes - 1.

    Args:
        planes: [B, C, H, W] in 0 to 1, float32. Gray, C = 1, is repeated into three channels.
    """
    return planes.mul_(2.0).sub_(1.0).expand(-1, 3, -1, -1).contiguous()


def to_image(pixels: Tensor) -> Tensor:
    """Return an image [B, H, W, C] clamped to 0 to 1, float32, on the same device; (pixels + 1) / 2.

    Args:
        pixels: [B, C, H, W], nominally -1 to 1, any dtype and device.
    """
    planes = pixels.to(torch.float32) + 1.0
    return planes.mul_(0.5).clamp_(0.0, 1.0).permute(0, 2, 3, 1).contiguous()


def luma(rgb: Tensor) -> Tensor:
    """Return the BT.601 luma [B, 1, H, W] of [B, 3, H, W]; weights ``LUMA_WEIGHTS``, whose sum is 1.

    Linear, so it holds for values in 0 to 1, in -1 to 1 and for differences alike.
    """
    weights = torch.tensor(LUMA_WEIGHTS, dtype=rgb.dtype, device=rgb.device)
    return (rgb * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _reflected_index(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Return where each of before + size + after places reads, reflecting at both ends as often as needed."""
    period = max(1, 2 * (size - 1))
    place = torch.arange(-before, size + after, device=device) % period
    return torch.minimum(place, period - place) if size > 1 else torch.zeros_like(place)


def reflect_pad(x: Tensor, padding: Padding) -> Tensor:
    """Return ``x`` with its surroundings mirrored about the border pixels, which are not repeated.

    Unlike ``torch.nn.functional.pad`` this has no least size: a padding wider than the image reflects again and
    again, and a single pixel becomes a constant. Padding of 0 returns ``x`` itself.

    Args:
        x: [B, C, H, W], H and W at least 1.
        padding: pixels to add at each side.
    """
    extent = Extent(x.shape[2], x.shape[3])
    if padding.around(extent) == extent:
        return x
    around = padding.around(extent)
    rows = _reflected_index(extent.height, padding.top, padding.bottom, x.device)
    columns = _reflected_index(extent.width, padding.left, padding.right, x.device)
    padded = x.new_empty(x.shape[0], x.shape[1], around.height, around.width)
    # The middle once, then its sides, then above and below: no second frame on the way.
    crop(padded, padding, extent).copy_(x)
    middle = padded[:, :, padding.top : padding.top + extent.height]
    for sides in (slice(0, padding.left), slice(padding.left + extent.width, around.width)):
        middle[..., sides] = x.index_select(3, columns[sides])
    for ends in (slice(0, padding.top), slice(padding.top + extent.height, around.height)):
        padded[:, :, ends] = middle.index_select(2, rows[ends])
    return padded


def crop(x: Tensor, padding: Padding, extent: Extent) -> Tensor:
    """Return the view [B, C, extent.height, extent.width] of ``x`` that lies inside ``padding``: undoes the pad."""
    rows = slice(padding.top, padding.top + extent.height)
    columns = slice(padding.left, padding.left + extent.width)
    return x[:, :, rows, columns]
