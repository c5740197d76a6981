"""How a frame goes through a network: here in one piece, block by block, as torch does it.

Role: ``unet`` and ``vae`` say in which order their blocks come; whoever they are given here says how each block runs.
``windows.BandedFrame`` is the other way, for inference on frames of any size.

Shapes: B = batch, C = channels, H, W = rows and columns of the current level, M = tokens of the prompt.
"""

import torch
from torch import Tensor, nn

from .attention import FrameAttention, SpatialTransformer
from .kernels import normalised
from .layers import Downsample, ResnetBlock, Upsample


class WholeFrame:
    """Every block on the whole frame, by its own ``forward``; differentiable."""

    def convolution(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Return [B, C_out, H, W] of a 3x3 convolution with stride 1."""
        return conv(x)

    def output(self, norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, *, guidance: float | None = None) -> Tensor:
        """Return [B, C_out, H, W]: normalisation, SiLU and a 3x3 convolution, the end of every network.

        With ``guidance`` ``x`` holds two predictions [2 B, C, H, W], which are combined before the convolution.
        """
        return conv(guided(normalised(norm, x, activate=True), guidance))

    def resnet(
        self,
        block: ResnetBlock,
        x: Tensor,
        *,
        time_embedding: Tensor | None = None,
        skip: Tensor | None = None,
        owned: bool = False,
    ) -> Tensor:
        """Return [B, C_out, H, W] of a resnet block.

        Args:
            block: the block.
            x: [B, C, H, W].
            time_embedding: [B or 1, time channels], in a UNet.
            skip: [B, C', H, W], more channels for the block's input.
            owned: whether nobody needs ``x`` afterwards, so that the result may take its place.
        """
        del owned
        return block(x if skip is None else torch.cat([x, skip], dim=1), time_embedding)

    def transformer(self, block: SpatialTransformer, x: Tensor, context: Tensor) -> Tensor:
        """Return [B', C, H, W] of ``x`` [B, C, H, W], which nobody needs afterwards, and prompts [B', M, D]."""
        return block(x, context)

    def attention(self, block: FrameAttention, x: Tensor) -> Tensor:
        """Return [B, C, H, W] of ``x``, which nobody needs afterwards."""
        return block(x)

    def downsample(self, block: Downsample, x: Tensor) -> Tensor:
        """Return the frame at half its size."""
        return block(x)

    def upsample(self, block: Upsample, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the frame at ``size``, twice its own or one less."""
        return block(x, size)


def guided(x: Tensor, guidance: float | None) -> Tensor:
    """Return n_1 + guidance * (n_2 - n_1), [B, ...], of both predictions ``x`` [2 B, ...]; ``x`` itself without."""
    if guidance is None:
        return x
    first, second = x.chunk(2)
    return torch.lerp(first, second, guidance)
