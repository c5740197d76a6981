"""Attention and what belongs to it: the transformers of the UNet, the one attention of the VAE.

Role: used by ``unet`` and ``vae`` beside ``layers``. Names of parameters are those of diffusers, as long as nothing is
folded; what folding makes of a module is said where it happens (``specialise``).

Shapes: B = batch, C = channels, H, W = rows and columns of the current level, N = tokens (H * W), M = tokens attended
to, D = width of the context.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import attend, normalised
from .layers import Factory, layers_of


class Attention(nn.Module):
    """Multi-head attention on tokens; the context defaults to the tokens themselves."""

    def __init__(
        self, make: Factory, channels: int, *, head_dim: int, context_dim: int | None = None, bias: bool = False
    ) -> None:
        """Build the projections; in SD2.1's UNet queries, keys and values carry no bias."""
        super().__init__()
        self.num_heads = channels // head_dim
        self.scale: float | None = None
        """Of the scores; None is 1 / sqrt(head_dim)."""
        source = channels if context_dim is None else context_dim
        self.to_q: nn.Linear | None = make.linear(channels, channels, bias=bias)
        self.to_k: nn.Linear | None = make.linear(source, channels, bias=bias)
        self.to_v: nn.Linear | None = make.linear(source, channels, bias=bias)
        self.to_qkv: nn.Linear | None = None
        """All three in one, where they are folded; the others are None then."""
        self.prompt_offset: int | None = None
        """Where its keys and values lie in a context that holds those of all layers; without ``to_k`` and ``to_v``."""
        self.to_out = nn.ModuleList([make.linear(channels, channels)])
        self._operations = make.operations
        self.channels = channels

    @property
    def projections(self) -> list[nn.Linear]:
        """``to_q``, ``to_k`` and ``to_v``, as long as nothing is folded."""
        return [layer for layer in (self.to_q, self.to_k, self.to_v) if layer is not None]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from ``x`` [B, N, C] and ``context`` [B, M, D]."""
        if self.to_qkv is not None and context is None:
            return self.mix(*self.to_qkv(x).chunk(3, dim=-1))
        return self.mix(self.queries(x), *self.keys_values(x if context is None else context))

    def queries(self, x: Tensor) -> Tensor:
        """Return [B, N, C] from ``x`` [B, N, C]."""
        return self._part(x, 0, 1) if self.to_q is None else self.to_q(x)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [B, M, C], of ``source`` [B, M, D]."""
        if self.prompt_offset is not None:
            keys_values = source[..., self.prompt_offset : self.prompt_offset + 2 * self.channels]
        elif self.to_k is None or self.to_v is None:
            keys_values = self._part(source, 1, 3)
        else:
            return self.to_k(source), self.to_v(source)
        keys, values = keys_values.chunk(2, dim=-1)
        return keys, values

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what ``queries`` [B, N, C] find in ``keys`` and ``values`` [B, M, C]: [B, N, C]."""
        mixed = attend(*map(self._split, (queries, keys, values)), scale=self.scale)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _part(self, x: Tensor, first: int, last: int) -> Tensor:
        """Return those of the queries, keys and values that ``to_qkv`` makes."""
        assert self.to_qkv is not None
        weight, bias = self._operations.weights(self.to_qkv, x.new_empty(0))
        rows = slice(first * self.channels, last * self.channels)
        return F.linear(x, weight[rows], None if bias is None else bias[rows])


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

    @property
    def gate(self) -> GEGLU:
        """The first layer."""
        return layers_of(self.net, GEGLU)[0]

    @property
    def back(self) -> nn.Linear | None:
        """The last layer; None where it is folded."""
        return layers_of(self.net, nn.Linear)[-1] if len(self.net) > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, C] from ``x`` [B, N, C]; the hidden [B, N, 4 C] where the projection back is folded away."""
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
        self.joined = False
        """Whether ``proj_out`` behind it takes tokens and hidden layer together, in place of their sum."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return [B', N, C] from tokens ``x`` [B, N, C] and the prompt ``context`` [B', M, D].

        B' is a multiple of B: what comes before the first look at the prompt is the same for all prompts.
        """
        x = spread(x + self.attn1(self.norm1(x)), len(context))
        x = x + self.attn2(self.norm2(x), context)
        return self.feed(x)

    def feed(self, x: Tensor) -> Tensor:
        """Return ``x`` [B, N, C] and what the feed-forward layer makes of it: summed up, or side by side."""
        fed = self.ff(self.norm3(x))
        return torch.cat([x, fed], dim=2) if self.joined else x + fed


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
        """Return [B', C, H, W] from ``x`` [B, C, H, W] and ``context`` [B', M, D], as ``TransformerBlock``."""
        tokens = self.proj_in(normalised(self.norm, x, activate=False).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return spread(x, len(context)) + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class FrameAttention(Attention):
    """Single-head attention over all positions of a feature map, with a residual: the middle of the VAE."""

    def __init__(self, make: Factory, channels: int, groups: int, eps: float) -> None:
        """Build the norm and the four projections."""
        super().__init__(make, channels, head_dim=channels, bias=True)
        self.group_norm = make.group_norm(groups, channels, eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return [B, C, H, W] from the same shape; there is no context."""
        assert context is None
        tokens = super().forward(normalised(self.group_norm, x, activate=False).flatten(2).transpose(1, 2))
        return x + tokens.transpose(1, 2).reshape(x.shape)


def spread(x: Tensor, batch: int) -> Tensor:
    """Return ``x`` [B, ...] once for every prompt, [batch, ...]; itself where there is one."""
    # Joined and not repeated, which would bring frames into another order in memory.
    return x if len(x) == batch else torch.cat([x] * (batch // len(x)))
