"""The end of a restoration: colours, the strength of new detail, a mask, and the layout that came in.

Role: ``pipeline`` calls ``finish`` on every cropped frame after ``decode``; it joins ``color`` and ``prepare``. All of
it runs in float32, in bands of rows, inside the finished image. Definitions: docs/algorithm.md, section E.
"""

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .color import coarse_bands, match_color, plane_rows
from .config import RestoreOptions
from .errors import ImageError
from .geometry import Extent, Span, partition
from .host import NEVER, Interrupt
from .prepare import Prepared, prepare, restore_layout
from .tensors import check_image, row_bands

ROUNDING = 2.0**-20
"""What a resized mask of ones may miss 1 by: a few roundings of float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuideShapes:
    """The sizes of ``Guides``: all that planning needs of them."""

    mask: Extent | None = None
    color_reference: Extent | None = None
    color_channels: int = 3
    """Of the colour reference."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Guides:
    """Pictures beside the image that is restored; each serves all frames, or there is one for every frame."""

    mask: Tensor | None = None
    """[1 or B, any, any] in 0 to 1, float: 1 is restored, 0 keeps the resized input. None restores everything."""
    color_reference: Tensor | None = None
    """[1 or B, any, any, 1, 3 or 4] in 0 to 1, float: whose colours are taken. None takes those of the input."""

    def check(self, num_frames: int) -> None:
        """Return if these fit a batch of ``num_frames``.

        Raises:
            ImageError: one of them is no mask, or no image, or their number is another one.
        """
        if self.mask is not None:
            if self.mask.ndim != 3:
                shape = tuple(self.mask.shape)
                raise ImageError(
                    f"expected a mask of 3 dimensions [batch, height, width], got shape {shape}: leave out channels"
                )
            check_image(self.mask[..., None])
            check_count("mask", self.mask, num_frames)
        if self.color_reference is not None:
            check_image(self.color_reference)
            check_count("colour reference", self.color_reference, num_frames)

    def shapes(self) -> GuideShapes:
        """Return the sizes."""
        mask, reference = self.mask, self.color_reference
        return GuideShapes(
            mask=None if mask is None else Extent(*mask.shape[1:]),
            color_reference=None if reference is None else Extent(*reference.shape[1:3]),
            color_channels=3 if reference is None else reference.shape[3],
        )

    def part(self, frames: Span) -> "Guides":
        """Return what belongs to these frames, as views."""
        mask, reference = self.mask, self.color_reference
        return Guides(
            mask=None if mask is None else of_frames(mask, frames),
            color_reference=None if reference is None else of_frames(reference, frames),
        )

    def to(self, device: torch.device) -> "Guides":
        """Return the same on ``device``."""
        mask, reference = self.mask, self.color_reference
        return Guides(
            mask=None if mask is None else mask.to(device),
            color_reference=None if reference is None else reference.to(device),
        )

    def keep_everything(self) -> bool:
        """Return whether the mask is 0 all over, so that nothing of a restoration would be seen."""
        return self.mask is not None and not bool((self.mask > 0.0).any())


def of_frames(batch: Tensor, frames: Span) -> Tensor:
    """Return what belongs to these frames, a view [1 or len(frames), ...]; a batch of one serves all of them."""
    return batch if len(batch) == 1 else batch[frames.places]


def check_count(name: str, batch: Tensor, num_frames: int) -> None:
    """Return if ``batch`` has one entry, or as many as there are frames.

    Raises:
        ImageError: it has another number of them.
    """
    if batch.shape[0] not in (1, num_frames):
        raise ImageError(
            f"expected 1 {name}, or one for each of {num_frames} images, got {batch.shape[0]}: give one for all of them"
        )


def finish(
    pixels: Tensor,
    prepared: Prepared,
    options: RestoreOptions,
    guides: Guides,
    *,
    out: Tensor | None = None,
    interrupt: Interrupt = NEVER,
) -> Tensor:
    """Return the image [B, H, W, C] of restored ``pixels``: colours, detail and mask, then the layout of the input.

    Args:
        pixels: [B, 3, H, W], the padding cropped; not written to.
        prepared: what ``prepare`` returned, on the same device; its reference is the input at this size.
        options: how colours are matched, how much detail is added, how wide the border of the mask is.
        guides: of these images, on the same device.
        out: [B, H, W, C], float32, on the same device: written to and returned where given.
        interrupt: asked between bands of rows.
    """
    method, given, upscaled = options.color, guides.color_reference, prepared.reference
    # Before the result is there: what ``prepare`` needs on the way then takes its place.
    wanted = upscaled if given is None or method == "none" else prepare(given, prepared.extent).reference
    if out is None:
        size = (pixels.shape[0], *pixels.shape[2:], prepared.channels)
        out = pixels.new_empty(size, dtype=torch.float32)
    # All is done right inside the image, which saves a frame; gray has no room for that.
    room = out[..., :3].permute(0, 3, 1, 2) if prepared.channels > 1 else None
    if room is None and (options.detail != 1.0 or guides.mask is not None):
        room = torch.empty_like(pixels, dtype=torch.float32)
    pixels = match_color(pixels, wanted.expand_as(pixels), method, out=room, interrupt=interrupt)
    del wanted
    if room is not None and options.detail != 1.0:
        pixels = scale_detail(pixels, upscaled, options.detail, out=room, interrupt=interrupt)
    if room is not None and guides.mask is not None:
        interrupt.check()
        # The resized mask goes by no name here, so that it is freed before the layout is changed.
        pixels = blend_mask(pixels, upscaled, resize_mask(guides.mask, prepared.extent), options.feather_px, out=room)
    interrupt.check()
    return restore_layout(pixels, prepared, out=out)


def scale_detail(
    pixels: Tensor, upscaled: Tensor, detail: float, *, out: Tensor, interrupt: Interrupt = NEVER
) -> Tensor:
    """Return ``out``, in which the high frequencies that the restoration added count ``detail`` times.

    out = sr + (d - 1) H(sr - lq), H = 1 - L with the low-pass L of ``color.low_pass``. With d = 0 only the change of
    coarse structure is left, and the fine one is the input's; d = 1 is sr.

    Args:
        pixels: sr, [B, 3, H, W], float32.
        upscaled: lq, the input at this size; [B, 3, H, W], float32.
        detail: d, at least 0.
        out: [B, 3, H, W], float32, any strides; may be ``pixels``.
        interrupt: asked between bands of rows.
    """
    for index, channel in product(range(pixels.shape[0]), range(pixels.shape[1])):
        plane, before, result = (x[index : index + 1, channel : channel + 1] for x in (pixels, upscaled, out))
        _scale_fine(plane, before, detail, result, interrupt)
    return out


def _scale_fine(plane: Tensor, upscaled: Tensor, detail: float, result: Tensor, interrupt: Interrupt) -> None:
    """Write what ``scale_detail`` makes of one plane into ``result``. By itself, so that its bands are freed."""
    for band, difference, coarse in coarse_bands(plane, upscaled, plane_rows(plane), interrupt):
        # The difference is lq - sr, the other way round. In place: a band less.
        added = torch.sub(difference, coarse, out=coarse).mul_(1.0 - detail)
        torch.add(plane[:, :, band.places], added, out=result[:, :, band.places])


def resize_mask(mask: Tensor, extent: Extent) -> Tensor:
    """Return ``mask`` [B, h, w] as a plane [B, 1, H, W], float32: bilinear, antialiased, and 1 where it was 1 all over.

    Values are clamped to 0 to 1; ``mask`` is not written to.
    """
    plane = mask[:, None].to(torch.float32, copy=True).clamp_(0.0, 1.0)
    size = (extent.height, extent.width)
    if tuple(plane.shape[2:]) != size:
        plane = F.interpolate(plane, size, mode="bilinear", align_corners=False, antialias=True)
    for band in row_bands(plane):
        rows = plane[:, :, band.places]
        rows.masked_fill_(rows > 1.0 - ROUNDING, 1.0)
    return plane


def feather(mask: Tensor, reach: int) -> Tensor:
    """Return ``mask`` [B, 1, H, W] convolved with the triangle (r + 1 - |d|) / (r + 1)^2, |d| <= r, on both axes.

    That is a mean of r + 1 twice. A step becomes a smooth ramp, which ends ``reach`` pixels from it on either side;
    beyond, 0 and 1 stay exactly that, as sums of ones lose no bits. The border is replicated.
    """
    if reach == 0:
        return mask
    mask = F.pad(mask, (reach,) * 4, mode="replicate")
    for size in ((reach + 1, 1), (reach + 1, 1), (1, reach + 1), (1, reach + 1)):
        mask = F.avg_pool2d(mask, size, stride=1)
    return mask


def mask_rows(extent: Extent, reach: int) -> int:
    """Return how many rows ``blend_mask`` takes at once: a band of three planes, but not less than the ramp."""
    band = row_bands(torch.empty(1, 3, extent.height, extent.width, device="meta"))[0]
    return max(len(band), 2 * reach)


def blend_mask(pixels: Tensor, upscaled: Tensor, mask: Tensor, reach: int, *, out: Tensor) -> Tensor:
    """Return ``out`` with the restored pixels where the mask is 1 and the input where it is 0, exactly.

    out = lq + m (sr - lq), m the feathered mask.

    Args:
        pixels: sr, [B, 3, H, W], float32.
        upscaled: lq, the input at this size; [B, 3, H, W] in -1 to 1, float32.
        mask: [B, 1, H, W] in 0 to 1, float32.
        reach: of ``feather``, in pixels.
        out: [B, 3, H, W], float32, any strides; may be ``pixels``.
    """
    height = pixels.shape[2]
    for band in partition(height, mask_rows(Extent(height, pixels.shape[3]), reach)):
        around = band.widened(reach, reach, height)
        weights = feather(mask[:, :, around.places], reach)[:, :, band.within(around)]
        torch.lerp(upscaled[:, :, band.places], pixels[:, :, band.places], weights, out=out[:, :, band.places])
    return out
