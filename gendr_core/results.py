# ruff: noqa: ANN401 - torch's dispatch hands over anything
"""What operations return, told from their arguments: the work of torch's kernels for the meta device, in plain Python.

Role: ``cost`` asks here before it runs an operation on tensors without memory. Knows nothing of networks.

Those kernels import torch's compiler and a computer algebra system the first time one runs: a second and more, for
symbols that a plan never has. Here are the operations that inference is made of, with the layouts of the kernels that
compute (aten/src/ATen/TensorIterator.cpp). Whatever is not certain, an error above all, is left to torch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .strides import Shape, is_dense, is_image, joint_strides, make, make_image, suggests_channels_last

ATEN: Any = torch.ops.aten
Rule = Callable[..., Any]
"""Takes the arguments of an operation; returns what it returns, or None where that is torch's to say."""

COMPUTED = {torch.float16, torch.bfloat16, torch.float32}
REAL = COMPUTED | {torch.float64}
WHOLE_NUMBERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what ``func`` does: a result like its own, made without running it if possible.

    Args:
        func: an operation of torch's, an overload.
        args: its arguments; tensors are on the meta device.
        kwargs: those given by name.
    """
    rule = RULES.get(func) or RULES.get(func.overloadpacket)
    known = rule(*args, **kwargs) if rule else None
    return func(*args, **kwargs) if known is None else known


def _elementwise(dtypes: set[torch.dtype], *, in_place: bool = False) -> Rule:
    """Return the rule of an operation on elements whose result is of the joint dtype, if that is one of ``dtypes``."""

    def rule(*args: Any, out: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        operands = [value for value in (*args, *kwargs.values()) if value is not None and not isinstance(value, str)]
        tensors = [value for value in operands if isinstance(value, Tensor)]
        shape, dtype = _joint_shape(tensors), _joint_dtype(operands, tensors)
        if shape is None or dtype not in dtypes:
            return None
        target = tensors[0] if in_place else out
        if target is None:
            alike = all(isinstance(value, Tensor) and value.shape == shape for value in args)
            return make(shape, dtype, joint_strides(shape, tensors, alike=alike))
        takes = target.dtype == dtype or (target.dtype in REAL and dtype in REAL)
        return target if takes and target.shape == shape and 0 not in target.stride() else None

    return rule


def _joint_dtype(operands: Sequence[Any], tensors: Sequence[Tensor]) -> torch.dtype | None:
    """Return the dtype to which all operands are brought; None where it takes more than two to tell."""
    if any(type(value) not in (int, float) for value in operands if not isinstance(value, Tensor)):
        return None
    if len(operands) == 2:
        return torch.result_type(*operands)
    dtype = tensors[0].dtype
    fits = dtype in REAL or float not in map(type, operands)
    return dtype if fits and all(x.dtype == dtype for x in tensors) else None


def _joint_shape(tensors: Sequence[Tensor]) -> Shape | None:
    """Return the shape that all have after broadcasting; None where they do not fit, or are empty."""
    rank = max(x.ndim for x in tensors)
    padded = [(1,) * (rank - x.ndim) + x.shape for x in tensors]
    shape = torch.Size(map(max, *padded, padded[0]))
    fits = all(length in (1, whole) for lengths in padded for length, whole in zip(lengths, shape, strict=True))
    return shape if fits and 0 not in shape else None


def _clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor | None:
    """Return a copy in the format asked for; the format of ``x`` without its gaps if none is."""
    if memory_format in (torch.contiguous_format, torch.channels_last):
        return torch.empty(x.shape, dtype=x.dtype, device="meta", memory_format=memory_format)
    if memory_format not in (None, torch.preserve_format) or 0 in x.shape:
        return None
    return make(x.shape, x.dtype, x.stride() if is_dense(x) else joint_strides(x.shape, [x], alike=False))


def _like(
    x: Tensor, *, dtype: torch.dtype | None = None, memory_format: torch.memory_format | None = None, **_: Any
) -> Tensor | None:
    like = _clone(x, memory_format=memory_format)
    return like if like is None or dtype in (None, x.dtype) else make(like.shape, dtype, like.stride())


def _repeat(x: Tensor, repeats: Sequence[int]) -> Tensor | None:
    lengths = (1,) * (len(repeats) - x.ndim) + x.shape
    if len(repeats) != len(lengths) or 0 in repeats or 0 in lengths:
        return None
    return make([length * count for length, count in zip(lengths, repeats, strict=True)], x.dtype)


def _arange(start: Any, end: Any, **kwargs: Any) -> Tensor | None:
    if type(start) is not int or type(end) is not int or end < start:
        return None
    return make([end - start], kwargs.get("dtype") or torch.int64)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    """Return all joined; in channels_last if all are, which empty ones never are (cat_compute_output_memory_format)."""
    first, axis = tensors[0], dim % max(1, tensors[0].ndim)
    others = {(x.ndim, x.dtype, x.shape[:axis], x.shape[axis + 1 :]) for x in tensors}
    # Empty vectors go with anything.
    if len(others) > 1 or first.ndim == 0 or (first.ndim == 1 and any(0 in x.shape for x in tensors)):
        return None
    shape = [*first.shape[:axis], sum(x.shape[axis] for x in tensors), *first.shape[axis + 1 :]]
    channels_last = all(map(suggests_channels_last, tensors))
    return None if 0 in shape else make_image(shape, first.dtype, channels_last=channels_last)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    axis = dim % (first.ndim + 1)
    if len({(x.shape, x.dtype) for x in tensors}) > 1 or 0 in first.shape:
        return None
    return make([*first.shape[:axis], len(tensors), *first.shape[axis:]], first.dtype)


def _usable(*tensors: Tensor) -> bool:
    """Tell whether none is empty and all have one dtype that networks compute in."""
    dtypes = {x.dtype for x in tensors}
    return len(dtypes) == 1 and dtypes <= COMPUTED and all(0 not in x.shape for x in tensors)


def _convolution(x: Tensor, weight: Tensor, _bias: Any, *settings: Any) -> Tensor | None:
    """Return an image, in channels_last if the input or the weights are: torch's kernel for meta forgets that."""
    *steps, transposed, _, groups = settings
    if not _usable(x, weight) or x.ndim != 4 or transposed or x.shape[1] != weight.shape[1] * groups:
        return None
    axes = zip(x.shape[2:], weight.shape[2:], *([*step] * (2 // len(step)) for step in steps), strict=True)
    size = [(length + 2 * border - gap * (kernel - 1) - 1) // step + 1 for length, kernel, step, border, gap in axes]
    if min(size) < 1:
        return None
    channels_last = suggests_channels_last(x) or suggests_channels_last(weight)
    return make_image([x.shape[0], weight.shape[0], *size], x.dtype, channels_last=channels_last)


def _packed_convolution(x: Tensor, weight: Tensor, bias: Any, *settings: Any) -> Tensor | None:
    """Return an image in channels_last, which is the only format that packed weights are used with."""
    padding, stride, dilation, groups, *_ = settings
    result = _convolution(x, weight, bias, stride, padding, dilation, False, [0], groups)
    return None if result is None else make_image(result.shape, x.dtype, channels_last=True)


def _product(x: Tensor, y: Tensor) -> Tensor | None:
    """Return a product of matrices, of as many pairs of them, or of a matrix and a vector."""
    vector = x.ndim == 2 and y.ndim == 1
    fits = vector or (x.ndim == y.ndim >= 2 and x.shape[:-2] == y.shape[:-2])
    if not fits or x.shape[-1] != y.shape[0 if vector else -2] or not _usable(x, y):
        return None
    return make([*x.shape[:-1], *([] if vector else y.shape[-1:])], x.dtype)


def _softmax(x: Tensor, *_: Any) -> Tensor | None:
    return make(x.shape, x.dtype) if _usable(x) and x.is_contiguous() else None


def _fixed_norm(x: Tensor, *_: Any) -> tuple[Tensor, ...] | None:
    """Return a batch normalisation with known statistics; these too, in fp32, as accelerators do and CPUs do not."""
    result = _elementwise(COMPUTED)(x)
    if result is None or not is_image(result):
        return None
    return result, *(make([x.shape[1]], torch.float32) for _ in range(2))


def _group_norm(x: Tensor, _weight: Any, _bias: Any, batch: int, *sizes: Any) -> tuple[Tensor, ...] | None:
    channels, _, groups, _ = sizes
    if not _usable(x) or not is_image(x) or channels % groups:
        return None
    return make_image(x.shape, x.dtype, channels_last=not x.is_contiguous()), *(
        make([batch, groups], x.dtype) for _ in range(2)
    )


def _whole_group_norm(x: Tensor, groups: int, *_: Any) -> Tensor | None:
    """Return the norm alone, in the format of ``x``, as on processors; elsewhere frames are contiguous anyway."""
    return None if not _usable(x) or not is_image(x) or x.shape[1] % groups else _clone(x)


def _layer_norm(x: Tensor, lengths: Shape, *_: Any) -> tuple[Tensor, ...] | None:
    if not _usable(x) or [*x.shape[-1:]] != [*lengths]:
        return None
    return make(x.shape, x.dtype), *(make([*x.shape[:-1], 1], torch.float32) for _ in range(2))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    fits = x.ndim in (2, 3) and weight.ndim == 2 and x.shape[-1] == weight.shape[1] and _usable(x, weight)
    if not fits or (bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype)):
        return None
    return make([*x.shape[:-1], weight.shape[0]], x.dtype)


def _attention(query: Tensor, key: Tensor, value: Tensor, *settings: Any, scale: Any = None) -> Tensor | None:
    """Return [B, heads, tokens, C] contiguous as torch's kernel for meta; fused ones keep the queries' layout."""
    del scale
    fits = query.shape[:2] == key.shape[:2] == value.shape[:2] and query.shape[3:] == key.shape[3:]
    if settings or query.ndim != 4 or not fits or key.shape[2:3] != value.shape[2:3]:
        return None
    return make([*query.shape[:3], value.shape[3]], query.dtype) if _usable(query, key, value) else None


def _nearest(x: Tensor, size: Shape | None, factors: Sequence[float] | None) -> Tensor | None:
    if factors is not None:
        size = [int(length * factor) for length, factor in zip(x.shape[2:], factors, strict=True)]
    return _resized(x, size)


def _resized(x: Tensor, size: Shape | None, *_: Any) -> Tensor | None:
    """Return [B, C, *size] in the format of ``x``."""
    if x.ndim != 4 or not _usable(x) or size is None or min(size) < 1:
        return None
    return make_image([*x.shape[:2], *size], x.dtype, channels_last=suggests_channels_last(x))


# Elementwise: of any numbers, and those that make something else of whole ones, or nothing.
KEPT = ("add", "sub", "mul", "minimum", "maximum", "remainder", "rsub", "clamp")
KEPT_REAL = ("div", "pow", "sin", "cos", "sigmoid", "silu", "gelu", "lerp", "addcmul")

RULES: dict[Any, Rule] = {
    ATEN.clone.default: _clone,
    ATEN.empty_like.default: _like,
    ATEN.zeros_like.default: _like,
    ATEN.repeat.default: _repeat,
    ATEN.arange.start: _arange,
    ATEN.cat.default: _cat,
    ATEN.stack.default: _stack,
    ATEN.convolution.default: _convolution,
    ATEN.bmm.default: _product,
    ATEN.mm.default: _product,
    ATEN.mv.default: _product,
    ATEN.matmul.default: _product,
    ATEN._softmax.default: _softmax,
    ATEN._native_batch_norm_legit_no_training.default: _fixed_norm,
    ATEN.native_group_norm.default: _group_norm,
    ATEN.group_norm.default: _whole_group_norm,
    ATEN.native_layer_norm.default: _layer_norm,
    ATEN.linear.default: _linear,
    ATEN.scaled_dot_product_attention.default: _attention,
    ATEN.upsample_nearest2d.vec: _nearest,
    ATEN._upsample_bicubic2d_aa.default: _resized,
    ATEN._upsample_bicubic2d_aa.vec: _resized,
    ATEN._upsample_bilinear2d_aa.default: _resized,
    ATEN._upsample_bilinear2d_aa.vec: _resized,
}
if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
    RULES[torch.ops.mkldnn._convolution_pointwise.default] = _packed_convolution
for _names, _dtypes in ((KEPT, REAL | WHOLE_NUMBERS), (KEPT_REAL, REAL)):
    for _name in _names:
        RULES[getattr(ATEN, _name)] = _elementwise(_dtypes)
        if hasattr(ATEN, f"{_name}_"):
            RULES[getattr(ATEN, f"{_name}_")] = _elementwise(_dtypes, in_place=True)
