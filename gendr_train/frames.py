"""How a frame goes through a network in training: whole, block by block, recomputed for gradients and listened to.

Role: handed by the stages and ``features`` to ``gendr_core.nets`` in place of its ``WholeFrame``; ``lora.acting`` gives
what ``again`` takes.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] - bare in its stubs

from gendr_core.nets import UNet
from gendr_core.nets.attention import FrameAttention, SpatialTransformer
from gendr_core.nets.frame import WholeFrame
from gendr_core.nets.layers import Downsample, ResnetBlock, Upsample
from gendr_core.nets.unet import DownStage

Again = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a pass ran, to run a part of it once more."""


def first_level(unet: UNet) -> nn.Module:
    """Return the block whose output is "after the first down block": [B, 320, 32, 32] of a 64x64 latent in SD2.1.

    That is the level's downsampler; in a UNet of one level the last block of it.

    Args:
        unet: of any shape, with or without adapters.
    """
    stage = cast("DownStage", unet.down_blocks[0])
    return (stage.downsamplers or stage.attentions or stage.resnets)[-1]


def middle(unet: UNet) -> nn.Module:
    """Return the last block at the coarsest level, before the way up: its output is [B, 1280, 8, 8] in SD2.1.

    Args:
        unet: of any shape, with or without adapters.
    """
    return unet.mid_block.resnets[-1]


class TrainingFrame(WholeFrame):
    """One pass of a network for training; made anew for each."""

    def __init__(
        self,
        *,
        checkpointing: bool = False,
        taps: Mapping[nn.Module, str] | None = None,
        taps_only: bool = False,
        again: Again = nullcontext,
    ) -> None:
        """Say what the pass is for.

        Args:
            checkpointing: forget what happens inside resnets, transformers and attention, and compute it a second time
                for the gradients: less memory, a third more time.
            taps: blocks to listen to, each with the name for its output; convolutions outside of blocks count too.
            taps_only: compute no further than the last tap. The result of the pass then means nothing.
            again: makes the context in which the second computation runs. It has to be that of the first, which is over
                by then: ``acting`` of ``lora`` gives it.
        """
        self.tapped: dict[str, Tensor] = {}
        """Output of every tapped block that has run, by its name."""
        self._checkpointing = checkpointing
        self._taps = taps or {}
        self._taps_only = taps_only
        self._again = again

    def convolution(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Return [B, C_out, H, W], as ``WholeFrame``."""
        return self._listen(conv, x, partial(super().convolution, conv, x))

    def output(self, norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, *, guidance: float | None = None) -> Tensor:
        """Return [B, C_out, H, W], as ``WholeFrame``."""
        return self._listen(conv, x, partial(super().output, norm, conv, x, guidance=guidance))

    def resnet(
        self,
        block: ResnetBlock,
        x: Tensor,
        *,
        time_embedding: Tensor | None = None,
        skip: Tensor | None = None,
        owned: bool = False,
    ) -> Tensor:
        """Return [B, C_out, H, W], as ``WholeFrame``."""
        del owned
        run = partial(super().resnet, block, x, time_embedding=time_embedding, skip=skip)
        return self._listen(block, x, partial(self._recomputed, run))

    def transformer(self, block: SpatialTransformer, x: Tensor, context: Tensor) -> Tensor:
        """Return [B, C, H, W], as ``WholeFrame``."""
        return self._listen(block, x, partial(self._recomputed, partial(super().transformer, block, x, context)))

    def attention(self, block: FrameAttention, x: Tensor) -> Tensor:
        """Return [B, C, H, W], as ``WholeFrame``."""
        return self._listen(block, x, partial(self._recomputed, partial(super().attention, block, x)))

    def downsample(self, block: Downsample, x: Tensor) -> Tensor:
        """Return the frame at half its size, as ``WholeFrame``."""
        return self._listen(block, x, partial(super().downsample, block, x))

    def upsample(self, block: Upsample, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the frame at ``size``, as ``WholeFrame``."""
        return self._listen(block, x, partial(super().upsample, block, x, size))

    def _listen(self, block: nn.Module, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """Run a block on ``x`` and keep its output if it is tapped; hand ``x`` on where nothing is wanted any more."""
        if self._taps_only and len(self.tapped) == len(self._taps):
            return x
        result = run()
        if block in self._taps:
            self.tapped[self._taps[block]] = result
        return result

    def _recomputed(self, run: Callable[[], Tensor]) -> Tensor:
        if not (self._checkpointing and torch.is_grad_enabled()):
            return run()
        # No block draws random numbers, so there is no state of a generator to put back.
        return cast(
            "Tensor",
            checkpoint(
                run,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), self._again()),
            ),
        )
