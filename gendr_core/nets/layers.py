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

from ..float8 import from_float8
from .kernels import normalised

Layer = TypeVar("Layer", bound=nn.Module)


def layers_of(layers: nn.ModuleList | None, kind: type[Layer]) -> Sequence[Layer]:
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
        """Return weight and bias of one of its layers, on the device and in the dtype of ``like``.

        A layer with a ``weight_scale`` has its weight in 8 bits, which is multiplied out.
        """
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
        scales = getattr(layer, "weight_scale", None)
        if scales is not None:
            weight = from_float8(weight, scales, like.dtype)
        elif weight.is_mkldnn:
            weight = weight.to_dense().contiguous(memory_format=torch.channels_last)
        return weight.to(like), None if bias is None else bias.to(like)


TORCH_OPERATIONS = TorchOperations()


class Factory:
    """Makes layers of one operations namespace on one device and in one dtype."""

    def __init__(self, operations: Operations, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Remember where the layers come from and where they go."""
        self.operations = operations
        self._device = device
        self._dtype = dtype

    def conv(
        self, channels_in: int, channels_out: int, kernel: int = 3, *, stride: int = 1, padding: int = 0
    ) -> nn.Conv2d:
        """Return a square convolution with bias."""
        return self.operations.Conv2d(
            channels_in, channels_out, kernel, stride=stride, padding=padding, device=self._device, dtype=self._dtype
        )

    def linear(self, features_in: int, features_out: int, *, bias: bool = True) -> nn.Linear:
        """Return a linear layer."""
        return self.operations.Linear(features_in, features_out, bias=bias, device=self._device, dtype=self._dtype)

    def group_norm(self, groups: int, channels: int, eps: float) -> nn.GroupNorm:
        """Return a group normalisation with affine parameters."""
        return self.operations.GroupNorm(groups, channels, eps=eps, device=self._device, dtype=self._dtype)

    def layer_norm(self, channels: int) -> nn.LayerNorm:
        """Return a layer normalisation over the last axis."""
        return self.operations.LayerNorm(channels, eps=1e-5, device=self._device, dtype=self._dtype)


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
        h = self.conv1(normalised(self.norm1, x, activate=True))
        time_bias = self.time_bias(time_embedding)
        if time_bias is not None:
            h = h + time_bias
        h = self.conv2(normalised(self.norm2, h, activate=True))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def time_bias(self, time_embedding: Tensor | None) -> Tensor | None:
        """Return what the timestep adds behind ``conv1``, [B or 1, C_out, 1, 1]; None in a block without time."""
        if self.time_emb_proj is None or time_embedding is None:
            return None
        return self.time_emb_proj(F.silu(time_embedding))[:, :, None, None]


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
        self.conv: nn.Conv2d | None = make.conv(channels, channels, padding=1)
        self.phases: nn.ModuleList | None = None
        """Four 2x2 convolutions in place of the 3x3 one, where they are folded: one for every second row and column of
        the result, beginning at row 0 or 1 and column 0 or 1, all of which see a pixel of ``x`` several times. ``conv``
        is None then."""
        self.operations = make.operations

    @property
    def layers(self) -> Sequence[nn.Conv2d]:
        """What it consists of: one convolution or four."""
        return layers_of(self.phases, nn.Conv2d) if self.conv is None else [self.conv]

    @property
    def num_weights(self) -> int:
        """Weights that a pixel of the result is multiplied with."""
        return self.layers[0].weight.numel()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return [B, C, *size]; ``size`` is twice that of ``x``, or one less where a level had an odd size."""
        if self.conv is not None:
            return self.conv(F.interpolate(x, size=size, mode="nearest"))
        height, width = x.shape[2:]
        if size != (2 * height, 2 * width):
            kernel, bias = self.kernel(x.new_empty(0))
            return F.conv2d(F.interpolate(x, size=size, mode="nearest"), kernel, bias, padding=1)
        order = suggested_format(x)
        out = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=order)
        for (row, column), phase in zip(PHASES, self.layers, strict=True):
            out[:, :, row::2, column::2] = phase(x)[:, :, row : row + height, column : column + width]
        return out

    def kernel(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the 3x3 kernel [C, C, 3, 3] and bias [C], on the device and in the dtype of ``like``."""
        weights, biases = zip(*(self.operations.weights(layer, like) for layer in self.layers), strict=True)
        if self.phases is None:
            return weights[0], biases[0]
        # Columns and then rows: the first of two phases has w0 and w1 + w2, the second w0 + w1 and w2.
        first, second = (_joined(*row, axis=3) for row in (weights[:2], weights[2:]))
        return _joined(first, second, axis=2), biases[0]


PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""First row and column of the result of each of ``Upsample.phases``."""


def _joined(first: Tensor, second: Tensor, *, axis: int) -> Tensor:
    """Return the three weights along an axis of which two phases have sums."""
    before, both = first.unbind(axis)
    after = second.select(axis, 1)
    return torch.stack([before, both - after, after], axis)


def suggested_format(x: Tensor) -> torch.memory_format:
    """Return in which order ``x`` [B, C, H, W] lies in memory."""
    return torch.channels_last if x.ndim == 4 and x.stride(1) == 1 < x.shape[1] else torch.contiguous_format
