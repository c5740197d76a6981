"""Folds what is constant or linear for one timestep and prompt into the weights around it (docs/speed.md).

Role: between the plain networks of ``nets`` and ``model``, which loads them. A folded network is the same function with
fewer parameters and operations; every fold can be left out, to find a mistake or to train. Works on networks with
weights and on torch's meta device alike, so that the planner's sketches have the same shape; a baked file's weights are
those of a network that has some folds already (``blank``).

Weights are multiplied in float32 at least and rounded to the network's dtype once, at the end.
"""

from collections.abc import Callable, Collection
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import CheckpointError
from .nets import TORCH_OPERATIONS, VAE, Operations, UNet
from .nets.attention import Attention, FrameAttention, SpatialTransformer, TransformerBlock
from .nets.layers import ResnetBlock, Upsample, layers_of
from .nets.unet import timestep_features
from .spec import Fold, ModelSpec

Layer = TypeVar("Layer", bound=nn.Module)

Steps = dict[Fold, Callable[[], None]]


def specialise_unet(
    network: UNet, spec: ModelSpec, folds: Collection[Fold], done: Collection[Fold] = ()
) -> Tensor | None:
    """Fold a UNet in place.

    Args:
        network: as its file has it; of any dtype, mixed ones too.
        spec: its timestep, coefficients and scaling.
        folds: which of ``spec.UNET_FOLDS``; others are ignored.
        done: those that the network has already.

    Returns:
        [sum of 2 C over all cross-attentions, cross_attention_dim], which makes keys and values of a prompt embedding,
        in the dtype of the file; None where ``prompt`` is not folded now.

    Raises:
        CheckpointError: one of the folds cannot follow those that are done.
    """
    steps: Steps = {
        "time": lambda: _fold_time(network, spec.timestep),
        "norms": lambda: _fold_norms(network, network.operations),
        "scale": lambda: _fold_scale(network, network.operations),
        "qkv": lambda: _fold_qkv(network, network.operations),
        "feed_forward": lambda: _fold_feed_forward(network),
        "ends": lambda: _fold_scaling(network, spec),
        "phases": lambda: _fold_phases(network, network.operations),
    }
    _take(steps, folds, done)
    return _fold_prompt(network) if "prompt" in folds and "prompt" not in done else None


def specialise_vae(network: VAE, folds: Collection[Fold], done: Collection[Fold] = ()) -> None:
    """Fold a VAE in place; arguments and errors as ``specialise_unet``, of ``spec.VAE_FOLDS``."""
    steps: Steps = {
        "norms": lambda: _fold_norms(network, network.operations),
        "scale": lambda: _fold_scale(network, network.operations),
        "qkv": lambda: _fold_qkv(network, network.operations),
        "ends": lambda: _fold_quant_convolutions(network),
        "phases": lambda: _fold_phases(network, network.operations),
    }
    _take(steps, folds, done)


def _take(steps: Steps, folds: Collection[Fold], done: Collection[Fold]) -> None:
    check_order(folds, done)
    for fold, step in steps.items():
        if fold in folds and fold not in done:
            step()


def check_order(folds: Collection[Fold], done: Collection[Fold]) -> None:
    """Check that a network that has some folds can get others.

    Raises:
        CheckpointError: one of them cannot follow those that are done.
    """
    late = [fold for fold in ("norms", "scale") if "qkv" in done and fold in folds and fold not in done]
    if late:
        raise CheckpointError(
            f"qkv is folded without {' and '.join(late)}, which would have to come before it: bake the file again, from"
            " the plain one"
        )


def _fold_time(network: UNet, timestep: int) -> None:
    """What the timestep adds behind conv1 is a constant: it joins the bias there."""
    embedding = network.time_embedding
    if embedding is None:
        return
    first, second = embedding.linear_1, embedding.linear_2
    features = timestep_features(torch.tensor([timestep]), first.in_features).to(_wide(first.weight))
    activated = F.silu(_applied(second, F.silu(_applied(first, features))))
    for block in _all(network, ResnetBlock):
        if block.time_emb_proj is not None:
            added = _applied(block.time_emb_proj, activated)[0]
            block.conv1.bias = _parameter(_wide(_bias(block.conv1)) + added)
            block.time_emb_proj = None
    network.time_embedding = None


def _fold_prompt(network: UNet) -> Tensor:
    """Keys and values of a fixed prompt are constants: they come in as the context, layer after layer."""
    rows: list[Tensor] = []
    offset = 0
    for block in _all(network, TransformerBlock):
        attention = block.attn2
        rows += [_required(layer).weight.detach() for layer in (attention.to_k, attention.to_v)]
        attention.to_k = attention.to_v = None
        attention.prompt_offset = offset
        offset += 2 * attention.channels
    network.context_width = offset
    return torch.cat(rows)


def _fold_norms(network: nn.Module, operations: Operations) -> None:
    """Scale and shift of a norm, with only a linear layer behind it: W (x * scale + shift) + b."""
    for block in _all(network, SpatialTransformer):
        (block.proj_in,) = _after_norm(block.norm, [block.proj_in], operations)
        block.norm = _plain_group_norm(block.norm)
    for block in _all(network, TransformerBlock):
        attention = block.attn1
        attention.to_q, attention.to_k, attention.to_v = _after_norm(block.norm1, attention.projections, operations)
        (block.attn2.to_q,) = _after_norm(block.norm2, [_required(block.attn2.to_q)], operations)
        gate = block.ff.gate
        (gate.proj,) = _after_norm(block.norm3, [gate.proj], operations)
        for name in ("norm1", "norm2", "norm3"):
            norm: nn.LayerNorm = getattr(block, name)
            # torch's own class: what has no weights needs no host to cast them.
            setattr(block, name, TORCH_OPERATIONS.LayerNorm(block.attn1.channels, norm.eps, elementwise_affine=False))
    for block in _all(network, FrameAttention):
        block.to_q, block.to_k, block.to_v = _after_norm(block.group_norm, block.projections, operations)
        block.group_norm = _plain_group_norm(block.group_norm)


def _fold_scale(network: nn.Module, operations: Operations) -> None:
    """Attention divides its scores by sqrt(d): so can the queries."""
    for attention in _all(network, Attention):
        layer, factor = _required(attention.to_q), (attention.num_heads / attention.channels) ** 0.5
        bias = _bias_or_none(layer)
        bias = None if bias is None else bias * factor
        attention.to_q = _linear(operations, _wide(layer.weight) * factor, bias)
        attention.scale = 1.0


def _fold_qkv(network: nn.Module, operations: Operations) -> None:
    """Queries, keys and values of self-attention come from one product."""
    own = (block.attn1 for block in _all(network, TransformerBlock))
    for attention in [*own, *_all(network, FrameAttention)]:
        layers = attention.projections
        # Those that are folded already may be wider than those that are not.
        weight = torch.cat([_wide(layer.weight) for layer in layers])
        biases = [bias for bias in map(_bias_or_none, layers) if bias is not None]
        bias = torch.cat(biases) if biases else None
        attention.to_qkv = _linear(operations, weight, bias)
        attention.to_q = attention.to_k = attention.to_v = None


def _fold_feed_forward(network: UNet) -> None:
    """The way out of the feed-forward layer and proj_out: P (x + W g + b) + p = [P, P W] [x, g] + P b + p."""
    for transformer in _all(network, SpatialTransformer):
        last = layers_of(transformer.transformer_blocks, TransformerBlock)[-1]
        back, out = last.ff.back, transformer.proj_out
        assert back is not None
        weight = _wide(out.weight)
        joined = torch.cat([weight, weight @ _wide(back.weight)], dim=1)
        transformer.proj_out = _linear(network.operations, joined, weight @ _wide(_bias(back)) + _wide(_bias(out)))
        last.ff.net = nn.ModuleList([last.ff.gate])
        last.joined = True


def _fold_scaling(network: UNet, spec: ModelSpec) -> None:
    """The latent's scaling and c_out are factors of the first and the last convolution."""
    first, last, factor = network.conv_in, network.conv_out, spec.c_out / spec.output_scaling
    first.weight = _parameter(_wide(first.weight) * spec.input_scaling)
    last.weight = _parameter(_wide(last.weight) * factor)
    last.bias = _parameter(_wide(_bias(last)) * factor)


def _fold_quant_convolutions(network: VAE) -> None:
    """The mean's half of quant_conv joins the convolution before it, post_quant_conv the one behind it.

    The latter's bias does not reach the zeros around the frame, so it comes in through a channel of ones.
    """
    before, after = network.quant_conv, network.post_quant_conv
    channels, out = network.arch.latent_channels, network.encoder.conv_out
    weight, bias = _wide(out.weight), _wide(_bias(out))
    if before is not None:
        mixing = _wide(before.weight)[:channels, :, 0, 0]
        weight, bias = torch.einsum("po,oikl->pikl", mixing, weight), mixing @ bias + _wide(_bias(before))[:channels]
    network.encoder.conv_out = _convolution(network.operations, weight[:channels], bias[:channels], padding=1)
    entry = network.decoder.conv_in
    weight = _wide(entry.weight)
    mixing = torch.eye(channels).to(weight) if after is None else _wide(after.weight)[:, :, 0, 0]
    shift = torch.zeros(channels).to(weight) if after is None else _wide(_bias(after))
    ones = torch.einsum("oikl,i->okl", weight, shift)[:, None]
    weight = torch.cat([torch.einsum("oikl,ij->ojkl", weight, mixing), ones], dim=1)
    network.decoder.conv_in = _convolution(network.operations, weight, _wide(_bias(entry)), padding=1)
    network.quant_conv = network.post_quant_conv = None
    network.ends_folded = True


def _fold_phases(network: nn.Module, operations: Operations) -> None:
    """A 3x3 convolution of doubled pixels sees 2x2 different ones: four small kernels, 4/9 of the multiplications."""
    for block in _all(network, Upsample):
        assert block.conv is not None
        kernel, bias = _wide(block.conv.weight), block.conv.bias
        phases = [phase for rows in _phases(kernel, 2) for phase in _phases(rows, 3)]
        block.phases = nn.ModuleList(_convolution(operations, phase, bias, padding=1) for phase in phases)
        block.conv = None


def _phases(kernel: Tensor, axis: int) -> list[Tensor]:
    """Return what the first and the second of two equal pixels make of the three weights along an axis: two each."""
    before, middle, after = kernel.unbind(axis)
    return [torch.stack([before, middle + after], axis), torch.stack([before + middle, after], axis)]


def _after_norm(norm: nn.Module, layers: list[nn.Linear], operations: Operations) -> list[nn.Linear]:
    """Return ``layers`` with the scale and shift of ``norm``, which they all take their input from."""
    scale, shift = _wide(norm.get_parameter("weight")), _wide(norm.get_parameter("bias"))
    folded: list[nn.Linear] = []
    for layer in layers:
        weight, bias = _wide(layer.weight), _bias_or_none(layer)
        added = weight @ shift
        folded.append(_linear(operations, weight * scale, added if bias is None else added + bias))
    return folded


def _plain_group_norm(norm: nn.GroupNorm) -> nn.GroupNorm:
    return TORCH_OPERATIONS.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, affine=False)


def _linear(operations: Operations, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = operations.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _filled(layer, weight, bias)


def _convolution(operations: Operations, weight: Tensor, bias: Tensor | None, *, padding: int) -> nn.Conv2d:
    size = (weight.shape[2], weight.shape[3])
    layer = operations.Conv2d(
        weight.shape[1], weight.shape[0], size, padding=padding, bias=bias is not None, device="meta"
    )
    return _filled(layer, weight, bias)


def _filled(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer.train(False)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


def _wide(value: Tensor) -> Tensor:
    """Return ``value`` in float64 if it is, else in float32."""
    return value.detach() if value.dtype == torch.float64 else value.detach().float()


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    return layer.get_parameter("bias")


def _bias_or_none(layer: nn.Linear) -> Tensor | None:
    bias = cast("Tensor | None", layer.bias)
    return None if bias is None else _wide(bias)


def _applied(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, _wide(layer.weight), _wide(_bias(layer)))


def _required(layer: nn.Linear | None) -> nn.Linear:
    assert layer is not None
    return layer


def _all(network: nn.Module, kind: type[Layer]) -> list[Layer]:
    return [module for module in network.modules() if isinstance(module, kind)]
