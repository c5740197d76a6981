"""The blocks that the UNet and the VAE share. Names of parameters are those of diffusers.

Role: used by ``unet`` and ``vae``. Every layer with weights is made by an ``Operations`` namespace, so that a host can
supply classes that cast or stream their weights. ``forward`` runs a block on a whole frame with plain torch, gradients
included; how a frame too large for that runs is ``frame``'s and ``bands``' business.

Shapes: B = batch, C = channels, H, W = rows and columns of the current level, N = tokens (H * W), D = context width.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def layers_of(layers: nn.ModuleList, kind: type[Layer]) -> Sequence[Layer]:
    """Return ``layers`` as what all of them are: torch's own list does not tell."""
    del kind
    return cast("Sequence[Layer]", layers)


class Operations(Protocol):
    """A namespace of layer classes with torch.nn's signatures, and a way to their weights."""

    @property
    def Conv2d(self) -> type[nn.Conv2d]:  # noqa: N802 - the name is torch's
        """Class of convolutions."""
        ...

    @property
    def Linear(self) -> type[nn.Linear]:  # noqa: N802
        """Class of linear layers."""
        ...

    @property
    def GroupNorm(self) -> type[nn.GroupNorm]:  # noqa: N802
        """Class of group normalisations."""
        ...

    @property
    def LayerNorm(self) -> type[nn.LayerNorm]:  # noqa: N802
        """Class of layer normalisations."""
        ...

    def weights(self, layer: nn.Module, like: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of one of its layers, on the device and in the dtype of ``like``."""
        ...


class TorchOperations:
    """torch.nn's own layers, whose weights stay where they are."""

    Conv2d = nn.Conv2d
    Linear = nn.Linear
    GroupNorm = nn.GroupNorm
    LayerNorm = nn.LayerNorm

    @staticmethod
    def weights(layer: nn.Module, like: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in the dtype of ``like``, as ``Operations.weights``."""
        weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
        return weight.to(like), None if bias is None else bias.to(like)


TORCH_OPERATIONS = TorchOperations()


class Factory:
    """Makes layers of one operations namespace on one device and in one dtype."""

    def __init__(self, operations: Operations, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Remember where the layers come from and where they go."""
        self._operations = operations
        self._device = device
        self._dtype = dtype

    def conv(
        self, channels_in: int, channels_out: int, kernel: int = 3, *, stride: int = 1, padding: int = 0
    ) -> nn.Conv2d:
        """Return a square convolution with bias."""
        return self._operations.Conv2d(
            channels_in, channels_out, kernel, stride=stride, padding=padding, device=self._device, dtype=self._dtype
        )

    def linear(self, features_in: int, features_out: int, *, bias: bool = True) -> nn.Linear:
        """Return a linear layer."""
        return self._operations.Linear(features_in, features_out, bias=bias, device=self._device, dtype=self._dtype)

    def group_norm(self, groups: int, channels: int, eps: float) -> nn.GroupNorm:
        """Return a group normalisation with affine parameters."""
        return self._operations.GroupNorm(groups, channels, eps=eps, device=self._device, dtype=self._dtype)

    def layer_norm(self, channels: int) -> nn.LayerNorm:
        """Return a layer normalisation over the last axis."""
        return self._operations.LayerNorm(channels, eps=1e-5, device=self._device, dtype=self._dtype)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions around an identity or 1x1 shortcut, with an optional time bias between them."""

    def __init__(
        self,
        make: Factory,
        channels_in: int,
        channels_out: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
    ) -> None:
        """Build the block; ``time_channels`` None leaves the time bias out, as in the VAE."""
        super().__init__()
        self.norm1 = make.group_norm(groups, channels_in, eps)
        self.conv1 = make.conv(channels_in, channels_out, padding=1)
        self.time_emb_proj = None if time_channels is None else make.linear(time_channels, channels_out)
        self.norm2 = make.group_norm(groups, channels_out, eps)
        self.conv2 = make.conv(channels_out, channels_out, padding=1)
        self.conv_shortcut = None if channels_in == channels_out else make.conv(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time_embedding: Tensor | None = None) -> Tensor:
        """Return [B, C_out, H, W] from ``x`` [B, C_in, H, W] and ``time_embedding`` [B or 1, time_channels]."""
        h = self.conv1(F.silu(self.norm1(x)))
        time_bias = self.time_bias(time_embedding)
        if time_bias is not None:
            h = h + time_bias
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def time_bias(self, time_embedding: Tensor | None) -> Tensor | None:
        """Return what the timestep adds behind ``conv1``, [B or 1, C_out, 1, 1]; None in a block without time."""
        if self.time_emb_proj is None or time_embedding is None:
            return None
        return self.time_emb_proj(F.silu(time_embedding))[:, :, None, None]


class Attention(nn.Module):
    """Multi-head attention on tokens; the context defaults to the tokens themselves."""

    def __init__(self, make: Factory, channels: int, *, head_dim: int, context_dim: int | None = None) -> None:
        """Build the projections; queries, keys and values carry no bias, as in SD2.1."""
        super().__init__()
        self._num_heads = channels // head_dim
        source = channels if context_dim is None else context_dim
        self.to_q = make.linear(channels, channels, bias=False)
        self.to_k = make.linear(source, channels, bias=False)
        self.to_v = make.linear(source, channels, bias=False)
        self.to_out = nn.ModuleList([make.linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from ``x`` [B, N, C] and ``context`` [B, M, D]."""
        source = x if context is None else context
        return self.mix(x, self.to_k(source), self.to_v(source))

    def mix(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the queries of ``x`` [B, N, C] find in ``keys`` and ``values`` [B, M, C]: [B, N, C]."""
        q, k, v = self._split(self.to_q(x)), self._split(keys), self._split(values)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self._num_heads, -1).transpose(1, 2)


class GEGLU(nn.Module):
    """A linear layer whose second half gates the first through GELU (arXiv:2002.05202)."""

    def __init__(self, make: Factory, channels: int, hidden: int) -> None:
        """Build the one projection to both halves."""
        super().__init__()
        self.proj = make.linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, hidden] from ``x`` [B, N, C]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and a projection back; the index in between is diffusers' dropout, which never drops at inference."""

    def __init__(self, make: Factory, channels: int) -> None:
        """Build both layers with SD's hidden width of four times the channels."""
        super().__init__()
        self.net = nn.ModuleList(
            [GEGLU(make, channels, 4 * channels), nn.Identity(), make.linear(4 * channels, channels)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, C] from ``x`` [B, N, C]."""
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt and a feed-forward layer, each pre-normalised and residual."""

    def __init__(self, make: Factory, channels: int, *, head_dim: int, context_dim: int) -> None:
        """Build the three sublayers."""
        super().__init__()
        self.norm1 = make.layer_norm(channels)
        self.attn1 = Attention(make, channels, head_dim=head_dim)
        self.norm2 = make.layer_norm(channels)
        self.attn2 = Attention(make, channels, head_dim=head_dim, context_dim=context_dim)
        self.norm3 = make.layer_norm(channels)
        self.ff = FeedForward(make, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return [B, N, C] from tokens ``x`` [B, N, C] and the prompt ``context`` [B, M, D]."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over all positions of a feature map, with linear projections (SD2.1) and a residual."""

    def __init__(self, make: Factory, channels: int, *, head_dim: int, context_dim: int, groups: int) -> None:
        """Build the norm, the projections and the one block."""
        super().__init__()
        self.norm = make.group_norm(groups, channels, 1e-6)
        self.proj_in = make.linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(make, channels, head_dim=head_dim, context_dim=context_dim)]
        )
        self.proj_out = make.linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return [B, C, H, W] from ``x`` [B, C, H, W] and ``context`` [B, M, D]."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class FrameAttention(nn.Module):
    """Single-head attention over all positions of a feature map, with a residual: the middle of the VAE."""

    def __init__(self, make: Factory, channels: int, groups: int, eps: float) -> None:
        """Build the norm and the four projections."""
        super().__init__()
        self.group_norm = make.group_norm(groups, channels, eps)
        self.to_q = make.linear(channels, channels)
        self.to_k = make.linear(channels, channels)
        self.to_v = make.linear(channels, channels)
        self.to_out = nn.ModuleList([make.linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H, W] from the same shape."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        mixed = self.mix(tokens, self.to_k(tokens), self.to_v(tokens))
        return x + mixed.transpose(1, 2).reshape(x.shape)

    def mix(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the queries of ``x`` [B, N, C] find in ``keys`` and ``values`` [B, M, C]: [B, N, C]."""
        mixed = F.scaled_dot_product_attention(self.to_q(x)[:, None], keys[:, None], values[:, None])
        return self.to_out[0](mixed[:, 0])


class Downsample(nn.Module):
    """Halves both axes by a stride-2 convolution; ``pad_end`` is the VAE's one-sided padding."""

    def __init__(self, make: Factory, channels: int, *, pad_end: bool) -> None:
        """Build the convolution."""
        super().__init__()
        self.pad_end = pad_end
        self.conv = make.conv(channels, channels, stride=2, padding=0 if pad_end else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H', W']; H' = ceil(H / 2), or floor(H / 2) with ``pad_end``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Upsample(nn.Module):
    """Enlarges to a given size by nearest neighbours and smooths with a convolution."""

    def __init__(self, make: Factory, channels: int) -> None:
        """Build the convolution."""
        super().__init__()
        self.conv = make.conv(channels, channels, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return [B, C, *size]; ``size`` is twice that of ``x``, or one less where a level had an odd size."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
