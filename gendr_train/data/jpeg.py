"""What a JPEG file does to an image, in torch on any device: no file is made, and nothing is differentiable.

Role: takes the place of ``gendr_core.degrade.jpeg`` where ``second_order`` runs on the device of the networks; the
workers go through Pillow. Follows ITU-T T.81 (tables of annex K) and JFIF, with libjpeg's scaling of the tables by
quality and its smooth enlargement of chroma. It differs from Pillow by what libjpeg's integer arithmetic rounds.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

Matrix = tuple[tuple[float, float, float], ...]

BLOCK_PX = 8
TIE = 1e-9
"""Far above the rounding of float64, far below what a level contributes to a coefficient."""
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""T.81 table K.1."""
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99, 99, 99, 99, 99, 99, 99, 99),) * 4,
)
"""T.81 table K.2."""
RGB_TO_YCBCR: Matrix = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""JFIF 1.02; the offset 128 of the chroma planes is added apart."""
YCBCR_TO_RGB: Matrix = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg_on_device(image_bchw: Tensor, quality: int) -> Tensor:
    """Return the image as after one JPEG file (4:2:0): values k/255, float32, same shape and device.

    Args:
        image_bchw: [B, 3, H, W] float; clamped to 0..1 first.
        quality: libjpeg's number, 1 to 95.
    """
    height, width = image_bchw.shape[2:]
    levels = (image_bchw.to(torch.float32).clamp(0.0, 1.0) * 255.0).round()
    padding = (0, -width % (2 * BLOCK_PX), 0, -height % (2 * BLOCK_PX))
    ycc = _mixed(functional.pad(levels, padding, mode="replicate"), RGB_TO_YCBCR).round()
    luma = _through_blocks(ycc[:, :1] - 128.0, _table(LUMA_TABLE, quality, levels.device)) + 128.0
    # The offset of 128 is left out of chroma from beginning to end.
    chroma = _through_blocks(_halved(ycc[:, 1:], height), _table(CHROMA_TABLE, quality, levels.device))
    ycc = torch.cat([luma, _doubled(chroma, height, width, luma)], dim=1)[:, :, :height, :width]
    return _mixed(ycc, YCBCR_TO_RGB).round().clamp(0.0, 255.0) / 255.0


def quantisation_table(base: tuple[tuple[int, ...], ...], quality: int) -> list[list[int]]:
    """Return the steps [8, 8] of the coefficients at a quality, 1 to 255, as libjpeg scales them.

    Args:
        base: steps at quality 50.
        quality: 1 to 100.
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [[min(255, max(1, (step * percent + 50) // 100)) for step in row] for row in base]


def _table(base: tuple[tuple[int, ...], ...], quality: int, device: torch.device) -> Tensor:
    return torch.tensor(quantisation_table(base, quality), dtype=torch.float32, device=device)


def _mixed(planes: Tensor, matrix: Matrix) -> Tensor:
    # Not a matrix product: those are allowed TF32's ten bits on some devices.
    first, second, third = planes.unbind(1)
    return torch.stack([a * first + b * second + c * third for a, b, c in matrix], dim=1)


def _halved(planes: Tensor, height: int) -> Tensor:
    """Average 2x2 pixels as libjpeg does: halves go down and up by turns along a row, and the last row is repeated."""
    mean = functional.avg_pool2d(planes, 2)
    bias = torch.arange(mean.shape[3], device=planes.device) % 2 * 0.25 + 0.25
    inside = torch.floor(mean + bias)[:, :, : math.ceil(height / 2)]
    return functional.pad(inside, (0, 0, 0, mean.shape[2] - inside.shape[2]), mode="replicate")


def _doubled(planes: Tensor, height: int, width: int, like: Tensor) -> Tensor:
    """Enlarge by 2 with weights 3/4 and 1/4, ignoring the padding: libjpeg repeats the last real sample."""
    inside = planes[:, :, : math.ceil(height / 2), : math.ceil(width / 2)]
    large = functional.interpolate(inside, scale_factor=2, mode="bilinear", align_corners=False).round()
    rest = (0, like.shape[3] - large.shape[3], 0, like.shape[2] - large.shape[2])
    return functional.pad(large, rest, mode="replicate")


def _through_blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Quantise the cosine coefficients of every 8x8 block; whole numbers from -128 to 127 come back."""
    batch, channels, height, width = planes.shape
    blocks = planes.reshape(batch, channels, height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    basis = _cosines(planes.device)
    # Sums in float64: a coefficient halfway between two steps, as sums of whole levels often are, must not depend on
    # the device, and goes away from 0 as in libjpeg.
    coefficients = torch.einsum("ui,bchiwj,vj->bchuwv", basis, blocks.to(torch.float64), basis)
    steps = table.to(torch.float64)[:, None, :]
    counts = torch.floor((coefficients / steps).abs() + 0.5 + TIE) * coefficients.sign()
    restored = torch.einsum("ui,bchuwv,vj->bchiwj", basis, counts * steps, basis)
    return restored.reshape(batch, channels, height, width).round().clamp(-128.0, 127.0).to(torch.float32)


def _cosines(device: torch.device) -> Tensor:
    """Return the orthonormal 8-point DCT-II [frequency, position], which is T.81's (A.3.3) in two dimensions."""
    position = torch.arange(BLOCK_PX, dtype=torch.float64, device=device)
    basis = torch.cos((2.0 * position[None, :] + 1.0) * position[:, None] * math.pi / (2 * BLOCK_PX))
    basis[0] *= math.sqrt(0.5)
    return basis * math.sqrt(2.0 / BLOCK_PX)
