"""ComfyUI's layer classes as the core's networks use them.

Role: below ``host``, which builds networks of them; beside it the only file that imports the host's own code.
"""

from typing import TYPE_CHECKING

import comfy.ops

from ..gendr_core.float8 import FLOAT8, from_float8

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class HostOperations:
    """Layer classes of the host, and its way to their weights: cast, streamed and patched as its own layers do it."""

    def __init__(self, layers: type) -> None:
        """Take the classes from ``layers``, one of the host's namespaces."""
        self.Conv2d = layers.Conv2d
        self.Linear = layers.Linear
        self.GroupNorm = layers.GroupNorm
        self.LayerNorm = layers.LayerNorm

    @staticmethod
    def weights(layer: "torch.nn.Module", like: "Tensor", /) -> "tuple[Tensor, Tensor | None]":
        """Return weight and bias of ``layer``, on the device and in the dtype of ``like``, to be kept."""
        scales = getattr(layer, "weight_scale", None)
        # Brought there in 8 bits, as the host keeps it: what it casts by itself would lack the scales.
        dtypes = {} if scales is None else {"dtype": FLOAT8, "bias_dtype": like.dtype}
        if not hasattr(comfy.ops, "uncast_bias_weight"):
            weight, bias = comfy.ops.cast_bias_weight(layer, like, **dtypes)
            return (weight if scales is None else from_float8(weight, scales.to(like.device), like.dtype)), bias
        # Later hosts lend: a buffer that a layer soon after is copied into, or memory that they cannot free until it is
        # given back. Bands hold weights for longer than that, so what is lent is copied.
        weight, bias, lease = comfy.ops.cast_bias_weight(layer, like, offloadable=True, **dtypes)
        if scales is not None:
            kept = from_float8(weight, scales.to(like.device), like.dtype)
        else:
            kept = weight if weight is layer.weight else weight.clone()
        kept_bias = bias if bias is layer.bias else bias.clone()
        comfy.ops.uncast_bias_weight(layer, weight, bias, lease)
        return kept, kept_bias
