"""Computations that have several kernels, and which of them runs where.

Role: below all of ``nets`` but ``fused``, which it calls for the norms made there. Every choice gives the same numbers
up to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import device_type_of
from .fused import FusedGroupNorm, as_channels_last

WIDE_HEAD = 128
"""Head widths beyond this make torch's fused kernel for processors slow: the VAE has one head of 512."""
MANY_KEYS = 2**15
"""Beyond these, copying the keys to float32 for every piece of the queries costs what is won."""
SCORE_BYTES = 2**24
"""Of the scores held at once."""


def frame_format(like: Tensor) -> torch.memory_format:
    """Return in which order frames are best kept where ``like`` is.

    On a processor the channels of a position go together: convolutions are fastest so, and rows of a frame are dense.
    Elsewhere torch's group norm knows one order only, and would copy every frame; networks with norms of our own
    (``fused``) say for themselves that they want the other one.
    """
    return torch.channels_last if device_type_of(like) == "cpu" else torch.contiguous_format


def in_order(frame: Tensor, order: torch.memory_format | None = None) -> Tensor:
    """Return ``frame`` [B, C, H, W] in ``order``, None is ``frame_format``; itself where it is."""
    return as_channels_last(frame) if (order or frame_format(frame)) == torch.channels_last else frame.contiguous()


def normalised(norm: nn.GroupNorm, x: Tensor, *, activate: bool) -> Tensor:
    """Return ``norm`` of ``x`` [B, C, H, W], with SiLU behind it if asked."""
    if isinstance(norm, FusedGroupNorm):
        return norm(x, activate=activate)
    return F.silu(norm(x)) if activate else norm(x)


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None) -> Tensor:
    """Return softmax(scale * queries . keys^T) . values, [B, heads, N, d].

    Args:
        queries: [B, heads, N, d].
        keys: [B, heads, M, d].
        values: as ``keys``.
        scale: None is 1 / sqrt(d).
    """
    if device_type_of(queries) == "cpu" and not torch.is_grad_enabled():
        # Its fused kernel reads heads one after the other.
        queries, keys, values = (x.contiguous() for x in (queries, keys, values))
        if queries.dtype == torch.bfloat16 and queries.shape[-1] > WIDE_HEAD and keys.shape[-2] <= MANY_KEYS:
            return _attend_in_parts(queries, keys, values, queries.shape[-1] ** -0.5 if scale is None else scale)
    return F.scaled_dot_product_attention(queries, keys, values, scale=scale)


def _attend_in_parts(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return attention with exact scores: in float32, since products in 16 bits would round them."""
    wide = keys.float().mul_(scale).transpose(2, 3)
    rows = max(1, SCORE_BYTES // (4 * keys[..., 0].numel()))
    parts = [
        torch.softmax(part.float() @ wide, dim=-1).to(values.dtype) @ values for part in torch.split(queries, rows, 2)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
