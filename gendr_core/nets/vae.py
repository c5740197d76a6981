"""The KL VAE of any width: pixels to latents and back, 2^(levels - 1) pixels per latent cell.

Role: used by ``encode`` and ``decode``. Parameter names are those of diffusers' AutoencoderKL, so its files load as
they are. Latents are unscaled here; ``step`` applies the scaling factor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ShapeError
from ..spec import VAEArch
from .attention import FrameAttention
from .frame import WholeFrame
from .fused import FusedGroupNorm
from .layers import TORCH_OPERATIONS, Downsample, Factory, Operations, ResnetBlock, Upsample, layers_of

NORM_EPS = 1e-6


class Middle(nn.Module):
    """Resnet, attention (where the VAE has one), resnet at the coarsest level; its owner runs them."""

    def __init__(self, make: Factory, arch: VAEArch) -> None:
        """Build the layers."""
        super().__init__()
        channels = arch.block_out_channels[-1]
        self.resnets = nn.ModuleList(_resnet(make, arch, channels, channels) for _ in range(2))
        self.attentions = (
            nn.ModuleList([FrameAttention(make, channels, arch.norm_groups, NORM_EPS)]) if arch.mid_attention else None
        )


class DownStage(nn.Module):
    """The resnets of one encoder level and the way to the next; the encoder runs them."""

    def __init__(self, make: Factory, arch: VAEArch, channels_in: int, level: int) -> None:
        """Build level ``level`` (0 is the finest) on ``channels_in`` channels."""
        super().__init__()
        channels = arch.block_out_channels[level]
        inputs = [channels_in] + [channels] * (arch.layers_per_block - 1)
        self.resnets = nn.ModuleList(_resnet(make, arch, c, channels) for c in inputs)
        last = level == len(arch.block_out_channels) - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample(make, channels, pad_end=True)])


class UpStage(nn.Module):
    """The resnets of one decoder level and the way to the next finer one; the decoder runs them."""

    def __init__(self, make: Factory, arch: VAEArch, channels_in: int, level: int) -> None:
        """Build level ``level`` (0 is the finest) on ``channels_in`` channels."""
        super().__init__()
        channels = arch.block_out_channels[level]
        inputs = [channels_in] + [channels] * arch.layers_per_block
        self.resnets = nn.ModuleList(_resnet(make, arch, c, channels) for c in inputs)
        self.upsamplers = None if level == 0 else nn.ModuleList([Upsample(make, channels)])


class Encoder(nn.Module):
    """Pixels to twice the latent channels: mean and log-variance before ``quant_conv``."""

    def __init__(self, make: Factory, arch: VAEArch) -> None:
        """Build the levels, finest first."""
        super().__init__()
        widths = arch.block_out_channels
        self.conv_in = make.conv(arch.in_channels, widths[0], padding=1)
        entry = (widths[0], *widths[:-1])
        self.down_blocks = nn.ModuleList(DownStage(make, arch, c, level) for level, c in enumerate(entry))
        self.mid_block = Middle(make, arch) if arch.mid_block else None
        self.conv_norm_out = make.group_norm(arch.norm_groups, widths[-1], NORM_EPS)
        self.conv_out = make.conv(widths[-1], 2 * arch.latent_channels, padding=1)

    def forward(self, pixels: Tensor, run: WholeFrame) -> Tensor:
        """Return [B, 2 * latent_channels, h, w] from [B, 3, H, W]."""
        # All in one function: a caller further up would keep the frame of an earlier block in memory.
        x = run.convolution(self.conv_in, pixels)
        for stage in layers_of(self.down_blocks, DownStage):
            for resnet in layers_of(stage.resnets, ResnetBlock):
                x = run.resnet(resnet, x, owned=True)
            if stage.downsamplers is not None:
                x = run.downsample(layers_of(stage.downsamplers, Downsample)[0], x)
        if self.mid_block is not None:
            before, after = layers_of(self.mid_block.resnets, ResnetBlock)
            x = run.resnet(before, x, owned=True)
            if self.mid_block.attentions is not None:
                x = run.attention(layers_of(self.mid_block.attentions, FrameAttention)[0], x)
            x = run.resnet(after, x, owned=True)
        return run.output(self.conv_norm_out, self.conv_out, x)


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, make: Factory, arch: VAEArch) -> None:
        """Build the levels, coarsest first."""
        super().__init__()
        widths = arch.block_out_channels
        self.conv_in = make.conv(arch.latent_channels, widths[-1], padding=1)
        self.mid_block = Middle(make, arch) if arch.mid_block else None
        entry = (*widths[1:], widths[-1])
        self.up_blocks = nn.ModuleList(UpStage(make, arch, entry[i], i) for i in reversed(range(len(widths))))
        self.conv_norm_out = make.group_norm(arch.norm_groups, widths[0], NORM_EPS)
        self.conv_out = make.conv(widths[0], arch.out_channels, padding=1)

    def forward(self, latent: Tensor, run: WholeFrame) -> Tensor:
        """Return [B, 3, H, W] from [B, latent_channels, h, w]."""
        # All in one function, as in the encoder.
        x = run.convolution(self.conv_in, latent)
        if self.mid_block is not None:
            before, after = layers_of(self.mid_block.resnets, ResnetBlock)
            x = run.resnet(before, x, owned=True)
            if self.mid_block.attentions is not None:
                x = run.attention(layers_of(self.mid_block.attentions, FrameAttention)[0], x)
            x = run.resnet(after, x, owned=True)
        for stage in layers_of(self.up_blocks, UpStage):
            for resnet in layers_of(stage.resnets, ResnetBlock):
                x = run.resnet(resnet, x, owned=True)
            if stage.upsamplers is not None:
                x = run.upsample(layers_of(stage.upsamplers, Upsample)[0], x, (2 * x.shape[2], 2 * x.shape[3]))
        return run.output(self.conv_norm_out, self.conv_out, x)


class VAE(nn.Module):
    """Encoder and decoder with the 1x1 convolutions around the latent."""

    def __init__(
        self,
        arch: VAEArch,
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
        self.run = WholeFrame()
        """How a frame runs where the caller does not say; a host that calls the network by itself gets this."""
        make = Factory(operations, device, dtype)
        channels = arch.latent_channels
        self.encoder = Encoder(make, arch)
        self.decoder = Decoder(make, arch)
        self.quant_conv = make.conv(2 * channels, 2 * channels, 1) if arch.quant_conv else None
        self.post_quant_conv = make.conv(channels, channels, 1) if arch.quant_conv else None
        self.ends_folded = False
        """Whether these two are part of the convolutions beside them: the encoder then gives the mean alone, and the
        decoder takes one more channel, of ones, which carries the bias as far as the frame reaches."""

    def moments(self, pixels: Tensor, *, run: WholeFrame | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posterior, each [B, latent_channels, h, w]; not with ``ends_folded``.

        Args:
            pixels: [B, in_channels, H, W] in [-1, 1]; H and W multiples of ``arch.spatial_factor``.
            run: how the frame goes through; None takes the network's own ``run``.

        Raises:
            ShapeError: channels or size do not fit.
        """
        self._check(pixels)
        moments = self.encoder(pixels, run or self.run)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance

    @property
    def channels_last(self) -> bool:
        """Whether frames are best in that order on any device, as fused norms and the layers beside them read them."""
        return isinstance(self.decoder.conv_norm_out, FusedGroupNorm)

    def encode(self, pixels: Tensor, *, run: WholeFrame | None = None) -> Tensor:
        """Return the posterior mode [B, latent_channels, h, w], unscaled; deterministic. Arguments as ``moments``."""
        self._check(pixels)
        if self.ends_folded:
            return self.encoder(pixels, run or self.run)
        return self.moments(pixels, run=run)[0]

    def decode(self, latent: Tensor, *, run: WholeFrame | None = None) -> Tensor:
        """Return pixels [B, out_channels, H, W], nominally in [-1, 1] but not clamped.

        Args:
            latent: [B, latent_channels, h, w], unscaled.
            run: how the frame goes through; None takes the network's own ``run``.

        Raises:
            ShapeError: the channels do not fit.
        """
        if latent.shape[1] != self.arch.latent_channels:
            raise ShapeError(f"expected a latent of {self.arch.latent_channels} channels, got {latent.shape[1]}")
        if self.ends_folded:
            latent = F.pad(latent, (0, 0, 0, 0, 0, 1), value=1.0)
        if self.post_quant_conv is not None:
            latent = self.post_quant_conv(latent)
        return self.decoder(latent, run or self.run)

    def _check(self, pixels: Tensor) -> None:
        factor = self.arch.spatial_factor
        if pixels.shape[1] != self.arch.in_channels or pixels.shape[2] % factor or pixels.shape[3] % factor:
            raise ShapeError(
                f"expected {self.arch.in_channels} channels and sides that are multiples of {factor},"
                f" got {list(pixels.shape[1:])}: pad the image first"
            )


def _resnet(make: Factory, arch: VAEArch, channels_in: int, channels_out: int) -> ResnetBlock:
    return ResnetBlock(make, channels_in, channels_out, groups=arch.norm_groups, eps=NORM_EPS)
