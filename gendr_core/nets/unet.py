"""The SD2.1 UNet with any number of input and output channels, widths and depths.

Role: the one network pass of ``step``. Its left neighbour is the latent, its right one the linear combination in
``step.one_step``. Parameter names are those of diffusers' UNet2DConditionModel, so its files load as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from ..spec import UNetArch
from .attention import SpatialTransformer, spread
from .frame import WholeFrame
from .fused import FusedGroupNorm
from .layers import (
    TORCH_OPERATIONS,
    Downsample,
    Factory,
    Operations,
    ResnetBlock,
    Upsample,
    layers_of,
)

NORM_EPS = 1e-5
"""Epsilon of the UNet's resnet and output norms (SD2.1); the VAE uses 1e-6."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What every block of a pass is given besides the frame."""

    time_embedding: Tensor | None
    """[B or 1, time channels]; None where it is folded."""
    context: Tensor
    """[B', tokens, width of a context]; B' is a multiple of the frame's batch."""
    run: WholeFrame
    """How the frame goes through."""


def timestep_features(timestep: Tensor, channels: int) -> Tensor:
    """Return [B, channels] float32 sinusoids of the timestep, cosines first (DDPM, arXiv:2006.11239, appendix B).

    Args:
        timestep: [B], any real dtype, 0 to 999.
        channels: even number of features.
    """
    half = channels // 2
    frequencies = torch.tensor([10_000.0 ** (-index / half) for index in range(half)], device=timestep.device)
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoids."""

    def __init__(self, make: Factory, channels: int, time_channels: int) -> None:
        """Build both layers."""
        super().__init__()
        self.linear_1 = make.linear(channels, time_channels)
        self.linear_2 = make.linear(time_channels, time_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, time_channels] from [B, channels]."""
        return self.linear_2(nn.functional.silu(self.linear_1(features)))


class Stage(nn.Module):
    """The resnets of one level, each followed by a transformer where the level has attention."""

    def __init__(
        self, make: Factory, arch: UNetArch, channels_in: Sequence[int], channels: int, *, attention: bool
    ) -> None:
        """Build one resnet per entry of ``channels_in``; all give ``channels``."""
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(make, arch, c, channels) for c in channels_in)
        self.attentions = nn.ModuleList(_transformer(make, arch, channels) for _ in channels_in) if attention else None

    def resnet(self, index: int, x: Tensor, given: Conditions, skip: Tensor | None = None) -> Tensor:
        """Return [B, channels, H, W] of resnet ``index`` on ``x`` and ``skip``."""
        block = layers_of(self.resnets, ResnetBlock)[index]
        return given.run.resnet(block, x, time_embedding=given.time_embedding, skip=skip)

    def attend(self, index: int, x: Tensor, given: Conditions) -> Tensor:
        """Return what the transformer after resnet ``index`` makes of ``x``: ``x`` itself where there is none."""
        if self.attentions is None:
            return x
        return given.run.transformer(layers_of(self.attentions, SpatialTransformer)[index], x, given.context)


class DownStage(Stage):
    """One level on the way down, and the way to the next."""

    def __init__(self, make: Factory, arch: UNetArch, channels_in: int, level: int) -> None:
        """Build level ``level`` (0 is the finest) on ``channels_in`` channels."""
        channels = arch.block_out_channels[level]
        inputs = [channels_in] + [channels] * (arch.layers_per_block - 1)
        super().__init__(make, arch, inputs, channels, attention=arch.attention_levels[level])
        last = level == arch.num_levels - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample(make, channels, pad_end=False)])


class UpStage(Stage):
    """One level on the way up, whose resnets take one skip each, and the way to the next finer one."""

    def __init__(
        self, make: Factory, arch: UNetArch, channels_in: int, skip_channels: Sequence[int], level: int
    ) -> None:
        """Build level ``level`` (0 is the finest); ``skip_channels`` in the order in which they are taken."""
        channels = arch.block_out_channels[level]
        befores = [channels_in] + [channels] * (len(skip_channels) - 1)
        inputs = [before + skip for before, skip in zip(befores, skip_channels, strict=True)]
        super().__init__(make, arch, inputs, channels, attention=arch.attention_levels[level])
        self.upsamplers = None if level == 0 else nn.ModuleList([Upsample(make, channels)])


class MidStage(nn.Module):
    """Resnet, transformer, resnet at the coarsest level."""

    def __init__(self, make: Factory, arch: UNetArch) -> None:
        """Build the three layers."""
        super().__init__()
        channels = arch.block_out_channels[-1]
        self.resnets = nn.ModuleList(_resnet(make, arch, channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([_transformer(make, arch, channels)])

    def forward(self, x: Tensor, given: Conditions) -> Tensor:
        """Return [B, C, H, W] from the same shape."""
        before, after = layers_of(self.resnets, ResnetBlock)
        x = given.run.resnet(before, x, time_embedding=given.time_embedding)
        x = given.run.transformer(layers_of(self.attentions, SpatialTransformer)[0], x, given.context)
        return given.run.resnet(after, x, time_embedding=given.time_embedding)


class UNet(nn.Module):
    """The denoiser: encoder levels, a middle, decoder levels with skips."""

    def __init__(
        self,
        arch: UNetArch,
        *,
        operations: Operations = TORCH_OPERATIONS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the network.

        Args:
            arch: shape of the network.
            operations: namespace of layer classes.
            device: where the parameters are made; ``"meta"`` makes shapes only.
            dtype: of the parameters; None is torch's default.
        """
        super().__init__()
        self.arch = arch
        self.operations = operations
        make = Factory(operations, device, dtype)
        widths = arch.block_out_channels
        self.conv_in = make.conv(arch.in_channels, widths[0], padding=1)
        self.time_embedding: TimeEmbedding | None = TimeEmbedding(make, widths[0], _time_channels(arch))
        """None where it is folded for one timestep."""
        self.context_width = arch.cross_attention_dim
        """Of a prompt embedding; where keys and values are folded, of those of all layers together."""
        entry = (widths[0], *widths[:-1])
        self.down_blocks = nn.ModuleList(DownStage(make, arch, entry[level], level) for level in range(arch.num_levels))
        self.mid_block = MidStage(make, arch)
        skips = _skip_channels(arch)
        self.up_blocks = nn.ModuleList()
        channels = widths[-1]
        for level in reversed(range(arch.num_levels)):
            taken = [skips.pop() for _ in range(arch.layers_per_block + 1)]
            self.up_blocks.append(UpStage(make, arch, channels, taken, level))
            channels = widths[level]
        self.conv_norm_out = make.group_norm(arch.norm_groups, widths[0], NORM_EPS)
        self.conv_out = make.conv(widths[0], arch.out_channels, padding=1)

    @property
    def channels_last(self) -> bool:
        """Whether frames are best in that order on any device, as fused norms and the layers beside them read them."""
        return isinstance(self.conv_norm_out, FusedGroupNorm)

    def forward(
        self,
        latent: Tensor,
        timestep: int | Tensor,
        context: Tensor,
        *,
        run: WholeFrame | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Return the prediction, same dtype and device as ``latent``: [B, out_channels, h, w].

        Args:
            latent: [B, in_channels, h, w], scaled latent, any h and w of at least 1.
            timestep: 0 to 999; one number, or [B].
            context: [B', tokens, ``context_width``], dtype and device of ``latent``; B' is a multiple of B, and the
                result has B' images then: those of the first prompt, those of the second, ...
            run: how the frame goes through; None runs it whole.
            guidance: weight w of the second of two prompts, B' = 2 B. The result is then n_1 + w * (n_2 - n_1), with B
                images, put together before the last convolution, which is linear.

        Raises:
            ShapeError: the latent or the context does not have the channels that the weights expect.
        """
        if latent.shape[1] != self.arch.in_channels:
            raise ShapeError(
                f"expected a latent of {self.arch.in_channels} channels, got {latent.shape[1]}:"
                " encode with the model's own front"
            )
        if context.shape[2] != self.context_width:
            raise ShapeError(f"expected a prompt of width {self.context_width}, got {context.shape[2]}")
        embedding = None
        if self.time_embedding is not None:
            # A number stays on the processor: dozens of values, and no waiting for the device.
            steps = torch.as_tensor(timestep).reshape(-1)
            embedding = self.time_embedding(timestep_features(steps, self.arch.block_out_channels[0]).to(latent))
        given = Conditions(time_embedding=embedding, context=context, run=run or WholeFrame())
        skips = self._down(latent, given)
        x = self.mid_block(skips[-1], given)
        # In one function: a caller further up would keep the frame of an earlier block in memory.
        for stage in layers_of(self.up_blocks, UpStage):
            for index in range(len(stage.resnets)):
                x = stage.resnet(index, x, given, spread(skips.pop(), len(x)))
                x = stage.attend(index, x, given)
            if stage.upsamplers is not None:
                # The next skip has the size to return to: odd sizes lose their last row or column on the way down.
                height, width = skips[-1].shape[2:]
                x = given.run.upsample(layers_of(stage.upsamplers, Upsample)[0], x, (height, width))
        return given.run.output(self.conv_norm_out, self.conv_out, x, guidance=guidance)

    def _down(self, latent: Tensor, given: Conditions) -> list[Tensor]:
        """Return every result on the way down in order: the skips for the way up."""
        skips = [given.run.convolution(self.conv_in, latent)]
        for stage in layers_of(self.down_blocks, DownStage):
            for index in range(len(stage.resnets)):
                skips.append(stage.attend(index, stage.resnet(index, skips[-1], given), given))
            if stage.downsamplers is not None:
                skips.append(given.run.downsample(layers_of(stage.downsamplers, Downsample)[0], skips[-1]))
        return skips


def _time_channels(arch: UNetArch) -> int:
    return 4 * arch.block_out_channels[0]


def _skip_channels(arch: UNetArch) -> list[int]:
    """Return the channels of every skip in the order in which the way down makes them."""
    skips = [arch.block_out_channels[0]]
    for level, width in enumerate(arch.block_out_channels):
        skips += [width] * arch.layers_per_block
        if level < arch.num_levels - 1:
            skips.append(width)
    return skips


def _resnet(make: Factory, arch: UNetArch, channels_in: int, channels_out: int) -> ResnetBlock:
    return ResnetBlock(
        make, channels_in, channels_out, groups=arch.norm_groups, eps=NORM_EPS, time_channels=_time_channels(arch)
    )


def _transformer(make: Factory, arch: UNetArch, channels: int) -> SpatialTransformer:
    return SpatialTransformer(
        make, channels, head_dim=arch.head_dim, context_dim=arch.cross_attention_dim, groups=arch.norm_groups
    )
