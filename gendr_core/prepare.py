"""Stage 1 of 5: any image becomes RGB pixels of the final size, padded for the networks; the layout is put back last.

Role: ``pipeline`` calls ``prepare`` before ``encode`` and ``restore_layout`` after ``color``.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import PAD_MULTIPLE, Extent, Padding, padding_to_multiple
from .tensors import luma, reflect_pad, row_bands, to_image, to_pixels, to_planes

MIN_ALPHA = 0.5 / 255.0
"""Alpha below this is 0 in 8 bits: the colour there is unseen and may be anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What the later stages need of one batch. All tensors float32, on the device of the image."""

    pixels: Tensor
    """[B, 3, Hp, Wp] in -1 to 1: ``reference`` padded by reflection to what the networks take."""
    reference: Tensor
    """[B, 3, H, W] in -1 to 1: the input resized to the final size, the colours to be kept."""
    alpha: Tensor | None
    """[B, 1, H, W] in 0 to 1, or None where the image has no alpha."""
    channels: int
    """Channels of the image that came in: 1, 3 or 4."""
    extent: Extent
    """Final size."""
    padding: Padding
    """What ``pixels`` has around ``extent``."""

    def to(self, device: torch.device) -> "Prepared":
        """Return the same on ``device``."""
        alpha = None if self.alpha is None else self.alpha.to(device)
        return replace(self, pixels=self.pixels.to(device), reference=self.reference.to(device), alpha=alpha)


def _resize(planes: Tensor, extent: Extent, mode: Literal["bicubic", "bilinear"] = "bicubic") -> Tensor:
    """Return ``planes`` [B, C, H, W] at ``extent``, antialiased; bicubic (a = -0.5) may overshoot 0 to 1."""
    size = (extent.height, extent.width)
    if tuple(planes.shape[2:]) == size:
        return planes
    return F.interpolate(planes, size, mode=mode, align_corners=False, antialias=True)


def _fill_unknown(color: Tensor, known: Tensor) -> Tensor:
    """Return ``color`` where ``known`` is 1 and a smooth continuation of the nearest known colour elsewhere.

    Push-pull: each coarser level holds the known mean of 2x2, down to 1x1; going back up, what a level does not
    know is taken from the level below it. Black where nothing is known.   (Gortler et al., The Lumigraph, 1996)

    Args:
        color: [B, 3, H, W], not negative; ignored where ``known`` is 0. Overwritten.
        known: [B, 1, H, W], weights in 0 to 1.
    """
    color = color.mul_(known)
    if max(color.shape[2:]) == 1:
        return color
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    mean = torch.where(share > 0.0, F.avg_pool2d(color, 2, ceil_mode=True) / share, 0.0)
    # One known pixel of four is enough to speak for its cell.
    coarse = _fill_unknown(mean, share.mul_(4.0).clamp_(max=1.0))
    behind = F.interpolate(coarse, (color.shape[2], color.shape[3]), mode="bilinear", align_corners=False)
    return color.add_(behind.mul_(1.0 - known))


def _resize_translucent(rgb: Tensor, alpha: Tensor, extent: Extent) -> tuple[Tensor, Tensor, Tensor]:
    """Return colour, where it is known, and alpha at ``extent``; colour under alpha 0 has no say in any of them.

    c = resize(a c) / resize(a), known where the resized alpha is at least ``MIN_ALPHA`` (Porter and Duff 1984:
    filters work on premultiplied colour). Past an edge the bicubic weights cancel and the quotient runs wild; there
    the bilinear quotient, a mean of nearby colours, takes over by how much less alpha bicubic finds than bilinear.

    Args:
        rgb: [B, 3, h, w] in 0 to 1, straight (not premultiplied). Overwritten.
        alpha: [B, 1, h, w] in 0 to 1.
        extent: final size.
    """
    if tuple(rgb.shape[2:]) == (extent.height, extent.width):
        # Dividing what was just multiplied would only lose bits.
        return rgb, (alpha >= MIN_ALPHA).to(rgb.dtype), alpha
    premultiplied = rgb.mul_(alpha)
    sharp_alpha, soft_alpha = _resize(alpha, extent), _resize(alpha, extent, "bilinear")
    divisor = soft_alpha.clamp(min=MIN_ALPHA)
    # Nothing is clamped before the division: colour and alpha overshoot alike, and the quotient is right.
    sharp = _resize(premultiplied, extent).div_(sharp_alpha.clamp(min=MIN_ALPHA)).clamp_(0.0, 1.0)
    soft = _resize(premultiplied, extent, "bilinear").div_(divisor).clamp_(0.0, 1.0)
    trust = (2.0 * sharp_alpha / divisor - 1.0).clamp(0.0, 1.0)
    known = (soft_alpha >= MIN_ALPHA).to(rgb.dtype)
    return soft.lerp_(sharp, trust), known, sharp_alpha.clamp_(0.0, 1.0)


def _resize_rgba(planes: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
    """Return (colour [B, 3, H, W], alpha [B, 1, H, W]) at ``extent``; opaque images take the plain RGB path.

    The colour may be a view of ``planes`` [B, 4, h, w], contiguous, which are overwritten.
    """
    results: list[tuple[Tensor, Tensor]] = []
    for frame in planes:
        # A view of the alpha would keep the colours in memory as long as a latent keeps the alpha.
        rgb, alpha = frame[None, :3], frame[None, 3:].clone()
        if bool((alpha == 1.0).all()):
            results.append((_resize(rgb, extent).clamp_(0.0, 1.0), alpha.new_ones(1, 1, extent.height, extent.width)))
        else:
            color, known, alpha = _resize_translucent(rgb, alpha, extent)
            results.append((_fill_unknown(color, known), alpha))
    if len(results) == 1:
        return results[0]
    colors, alphas = zip(*results, strict=True)
    return torch.cat(colors), torch.cat(alphas)


def prepare(image: Tensor, extent: Extent, multiple: int = PAD_MULTIPLE) -> Prepared:
    """Return ``image`` at its final size as padded pixels, with what is needed to finish it.

    Resizing is antialiased bicubic in float32 and is left out where the size is already right. Gray becomes RGB;
    alpha is resized by itself, and the networks see a smooth continuation of the visible colours under alpha 0.

    Memory: beside the image never more than the pixels and the reference, which without padding are one tensor, and
    where the size changes a copy of the image and the half-resized [B, C, h, W]. Alpha that is not all 1 takes more.

    Args:
        image: [B, H, W, C] that ``tensors.check_image`` lets pass; to look at its values here would make the processor
            wait for the device. They are clamped to 0 to 1. Never written to. Gray and RGB may be on the meta device.
        extent: final size.
        multiple: of pixels that both edges are padded to, see ``geometry.pad_multiple``.
    """
    channels = image.shape[3]
    # The planes go by no name here, so that their memory is free once they are resized.
    if channels == 4:
        color, alpha = _resize_rgba(to_planes(image), extent)
    else:
        color, alpha = _resize(to_planes(image), extent).clamp_(0.0, 1.0), None
    reference = to_pixels(color)
    padding = padding_to_multiple(extent, multiple)
    return Prepared(
        pixels=reflect_pad(reference, padding),
        reference=reference,
        alpha=alpha,
        channels=channels,
        extent=extent,
        padding=padding,
    )


def restore_layout(pixels: Tensor, prepared: Prepared, *, out: Tensor | None = None) -> Tensor:
    """Return the finished image [B, H, W, C] in 0 to 1, float32, on the same device, with as many channels as came in.

    Gray is the BT.601 luma of the restored RGB; alpha is the resized alpha of the input.

    Args:
        pixels: [B, 3, H, W] at ``prepared.extent``, padding already cropped; clamped here to -1 to 1.
        prepared: what ``prepare`` returned for this batch.
        out: [B, H, W, C], float32: written to and returned where given, else a new tensor is.
    """
    extent = prepared.extent
    if out is None:
        size = (pixels.shape[0], extent.height, extent.width, prepared.channels)
        out = pixels.new_empty(size, dtype=torch.float32)
    for band in row_bands(pixels):
        rows = pixels[:, :, band.places]
        out[:, band.places, :, :3] = to_image(luma(rows) if prepared.channels == 1 else rows)
        if prepared.alpha is not None:
            out[:, band.places, :, 3:] = prepared.alpha[:, :, band.places].permute(0, 2, 3, 1)
    return out
