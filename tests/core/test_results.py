from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendr_core.results import RULES, run

ATEN: Any = torch.ops.aten
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
NUMBERS = [*FLOATS, torch.float64, torch.uint8, torch.int32, torch.int64]
UNARY = [ATEN.silu, ATEN.gelu, ATEN.sin, ATEN.cos, ATEN.sigmoid]
BINARY = [
    ATEN.add.Tensor,
    ATEN.sub.Tensor,
    ATEN.mul.Tensor,
    ATEN.div.Tensor,
    ATEN.minimum.default,
    ATEN.maximum.default,
]
IN_PLACE = [ATEN.add_.Tensor, ATEN.sub_.Tensor, ATEN.mul_.Tensor, ATEN.div_.Tensor]
OUT = [ATEN.add.out, ATEN.sub.out, ATEN.mul.out, ATEN.div.out]
SCALARS = [ATEN.add.Tensor, ATEN.mul.Tensor, ATEN.remainder.Scalar, ATEN.rsub.Scalar, ATEN.clamp.default]

# torch's kernels for tensors without memory import for seconds when the first one runs.
EXAMPLES = settings(deadline=None)

Description = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


def describe(result: Any) -> list[Description]:
    """Return shape, strides and dtype of all tensors; strides of axes of length 1, which lead nowhere, are 0."""
    return [
        (tuple(x.shape), tuple(0 if n == 1 else stride for n, stride in zip(x.shape, x.stride(), strict=True)), x.dtype)
        for x in ([result] if isinstance(result, Tensor) else result)
    ]


def on(device: torch.device | str, value: Any) -> Any:
    """Return ``value`` with its tensors, strides and all, as new ones on ``device``."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).fill_(1)
    return [on(device, part) for part in value] if isinstance(value, list) else value


def outcome(func: Any, device: str, *args: Any, **named: Any) -> Any:
    """Return what torch's kernel for ``device`` gives, or that it gives nothing."""
    there = {name: on(device, arg) for name, arg in named.items()}
    try:
        return describe(func(*(on(device, arg) for arg in args), **there))
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return "refused"


def known(func: Any, *args: Any, **named: Any) -> Any:
    """Return what the rule says by itself; None where it leaves the answer to torch."""
    rule: Any = RULES.get(func) or RULES[func.overloadpacket]
    found = rule(*(on("meta", arg) for arg in args), **{name: on("meta", arg) for name, arg in named.items()})
    return None if found is None else describe(found)


def check(func: Any, *args: Any, devices: Sequence[str] = ("cpu", "meta"), **named: Any) -> None:
    """Compare the rule, where it answers, with torch's kernels for ``devices``."""
    found = known(func, *args, **named)
    for device in devices if found is not None else ():
        assert found == outcome(func, device, *args, **named), device


shapes = st.lists(st.integers(1, 4), min_size=0, max_size=5).map(tuple)
images = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))


@st.composite
def tensors(draw: st.DrawFn, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Draw a tensor of ``shape``: dense in any order of its axes, or cut out of a larger one."""
    layout = draw(st.sampled_from(["rows", "order", "cut", "cut order", "last", "cut last"]))
    whole = [length + draw(st.integers(0, 2)) for length in shape] if layout.startswith("cut") else list(shape)
    order = list(range(len(shape)))
    if layout.endswith("order"):
        order = draw(st.permutations(order))
    elif layout.endswith("last") and len(shape) == 4:
        order = [0, 2, 3, 1]
    made = torch.empty([whole[axis] for axis in order], dtype=dtype)
    result = made.permute([order.index(axis) for axis in range(len(order))])
    for axis, length in enumerate(shape):
        result = result.narrow(axis, 0, length)
    return result


@st.composite
def operands(draw: st.DrawFn, dtypes: Sequence[torch.dtype], count: int, *, alike: bool = False) -> list[Tensor]:
    """Draw tensors that broadcast to the shape of the first one; of one dtype if ``alike``."""
    shape = draw(st.one_of(images, shapes))
    dtype = draw(st.sampled_from(dtypes))
    made = [draw(tensors(shape, dtype))]
    for _ in range(count - 1):
        dropped = draw(st.integers(0, len(shape)))
        smaller = [draw(st.sampled_from([1, length])) for length in shape[dropped:]]
        other = draw(st.sampled_from([shape, tuple(smaller)]))
        made.append(draw(tensors(other, dtype if alike else draw(st.sampled_from(dtypes)))))
    return made


@EXAMPLES
@given(st.sampled_from(UNARY), operands(FLOATS, 1))
def test_unary_operations(op: Any, args: list[Tensor]) -> None:
    assert known(op.default, *args) is not None
    check(op.default, *args)


@EXAMPLES
@given(st.sampled_from(BINARY), operands(NUMBERS, 2), st.booleans())
def test_binary_operations_broadcast_and_promote(op: Any, args: list[Tensor], swapped: bool) -> None:
    check(op, *(reversed(args) if swapped else args))


@EXAMPLES
@given(st.sampled_from(BINARY), operands(FLOATS, 2, alike=True))
def test_binary_operations_of_one_dtype_are_never_left_to_torch(op: Any, args: list[Tensor]) -> None:
    assert known(op, *args) is not None


@EXAMPLES
@given(st.sampled_from(SCALARS), operands(NUMBERS, 1), st.sampled_from([2, 0.5, True, 1j]))
def test_numbers_promote(op: Any, args: list[Tensor], number: Any) -> None:
    check(op, *args, number)


@EXAMPLES
@given(operands(FLOATS, 3, alike=True), st.booleans())
def test_three_operands(args: list[Tensor], by_number: bool) -> None:
    check(ATEN.addcmul.default, *args)
    check(ATEN.lerp.Scalar, *args[:2], 0.5) if by_number else check(ATEN.lerp.Tensor, *args)
    assert known(ATEN.addcmul.default, *args) is not None


@EXAMPLES
@given(st.sampled_from(IN_PLACE), operands(NUMBERS, 2), st.booleans())
def test_operations_in_place_give_their_target(op: Any, args: list[Tensor], swapped: bool) -> None:
    args = args[::-1] if swapped else args
    check(op, *args)
    target, other = (on("meta", arg) for arg in args)
    if known(op, *args) is not None:
        assert run(op, [target, other], {}) is target


@EXAMPLES
@given(st.sampled_from(OUT), operands(FLOATS, 3), st.booleans())
def test_operations_write_into_what_is_given(op: Any, args: list[Tensor], swapped: bool) -> None:
    out, *inputs = args[::-1] if swapped else args
    check(op, *inputs, out=out)
    target = on("meta", out)
    if known(op, *inputs, out=out) is not None:
        assert run(op, [on("meta", arg) for arg in inputs], {"out": target}) is target


@pytest.mark.parametrize("op", IN_PLACE)
def test_a_target_that_cannot_take_the_result_is_left_to_torch(op: Any) -> None:
    whole_numbers = torch.empty(3, dtype=torch.int32)
    assert known(op, whole_numbers, 0.5) is None
    assert known(op, torch.empty(1, 3).expand(2, 3), 0.5) is None
    with pytest.raises(RuntimeError):
        run(op, [on("meta", torch.empty(1, 3)), on("meta", torch.empty(2, 3))], {})


@EXAMPLES
@given(
    operands(NUMBERS, 1), st.sampled_from([None, torch.preserve_format, torch.contiguous_format, torch.channels_last])
)
def test_copies(args: list[Tensor], memory_format: Any) -> None:
    if memory_format != torch.channels_last or args[0].ndim == 4:
        check(ATEN.clone.default, *args, memory_format=memory_format)
        check(ATEN.empty_like.default, *args, memory_format=memory_format, dtype=torch.float16)
        check(ATEN.zeros_like.default, *args)


@EXAMPLES
@given(images, st.integers(-4, 3), st.data())
def test_joined(shape: tuple[int, ...], dim: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    parts = []
    for length in lengths:
        sizes = [*shape]
        sizes[dim] = length
        parts.append(data.draw(tensors(sizes, torch.float32)))
    check(ATEN.cat.default, parts, dim)
    assert known(ATEN.cat.default, parts, dim) is not None or not any(lengths)


@EXAMPLES
@given(
    images, st.sampled_from(FLOATS[:2]), st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 1), (3, 1, (0, 1))]), st.data()
)
def test_convolutions(
    shape: tuple[int, ...], dtype: torch.dtype, setting: tuple[int, int, Any], data: st.DataObject
) -> None:
    kernel, stride, padding = setting
    x = data.draw(tensors(shape, dtype))
    weight = data.draw(tensors((data.draw(st.integers(1, 5)), shape[1], kernel, kernel), dtype))
    padding = [padding] * 2 if isinstance(padding, int) else list(padding)
    # Torch's kernel for tensors without memory does not know channels_last.
    args = (x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], 1)
    check(ATEN.convolution.default, *args, devices=["cpu"])


@EXAMPLES
@given(images, st.sampled_from(FLOATS), st.data())
def test_resizing(shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(tensors(shape, dtype))
    check(ATEN.upsample_nearest2d.vec, x, None, [2.0, 2.0])
    check(ATEN.upsample_nearest2d.vec, x, [5, 7], None)
    if dtype == torch.float32:
        check(ATEN._upsample_bicubic2d_aa.vec, x, [5, 7], False, None)
        check(ATEN._upsample_bilinear2d_aa.default, x, [5, 7], False)


@EXAMPLES
@given(images, st.sampled_from(FLOATS), st.data())
def test_normalisations(shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(tensors(shape, dtype))
    vector = torch.empty(shape[1])
    for func, args in (
        (ATEN._native_batch_norm_legit_no_training.default, (x, vector, vector, vector, vector, 0.1, 1e-5)),
        (ATEN.native_group_norm.default, (x, None, None, shape[0], shape[1], shape[2] * shape[3], 1, 1e-5)),
        (ATEN.native_layer_norm.default, (x, [shape[3]], None, None, 1e-5)),
    ):
        found = known(func, *args)
        # The statistics are other ones on CPUs: what accelerators keep is counted.
        if found is not None and dtype != torch.float16:
            assert found[0] == outcome(func, "cpu", *args)[0]
            assert found == outcome(func, "meta", *args)


@EXAMPLES
@given(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)), st.sampled_from(FLOATS), st.data())
def test_products_of_matrices(shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(tensors(data.draw(st.sampled_from([shape, shape[1:]])), dtype))
    weight, bias = torch.empty(4, shape[-1], dtype=dtype), torch.empty(4, dtype=dtype)
    for args in ((x, weight), (x, weight, bias)):
        assert known(ATEN.linear.default, *args) is not None
        check(ATEN.linear.default, *args)


@EXAMPLES
@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(1, 5), st.sampled_from(FLOATS), st.data())
def test_attention(shape: tuple[int, ...], keys: int, dtype: torch.dtype, data: st.DataObject) -> None:
    query = data.draw(tensors(shape, dtype))
    key, value = (data.draw(tensors((*shape[:2], keys, shape[3]), dtype)) for _ in range(2))
    found = known(ATEN.scaled_dot_product_attention.default, query, key, value)
    assert found == outcome(ATEN.scaled_dot_product_attention.default, "meta", query, key, value)


PRODUCTS = [
    (ATEN.mm.default, (3, 4), (4, 5)),
    (ATEN.mv.default, (3, 4), (4,)),
    (ATEN.bmm.default, (2, 3, 4), (2, 4, 5)),
    (ATEN.matmul.default, (1, 2, 3, 4), (1, 2, 4, 5)),
    (ATEN.matmul.default, (3, 4), (4,)),
]


@pytest.mark.parametrize(("func", "first", "second"), PRODUCTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_products_have_the_shapes_of_the_kernels(
    func: Any, first: tuple[int, ...], second: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, y = torch.ones(first, dtype=dtype), torch.ones(second, dtype=dtype)
    assert known(func, x, y) == outcome(func, "cpu", x, y)


def test_products_that_do_not_fit_are_left_to_torch() -> None:
    assert known(ATEN.mm.default, torch.ones(3, 4), torch.ones(3, 4)) is None
    assert known(ATEN.matmul.default, torch.ones(2, 3, 4), torch.ones(4, 5)) is None


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_stacks_have_the_shapes_of_the_kernel(dim: int) -> None:
    parts = [torch.ones(3, 4), torch.ones(3, 4)]
    assert known(ATEN.stack.default, parts, dim) == outcome(ATEN.stack.default, "cpu", parts, dim)


def test_a_stack_of_different_shapes_is_left_to_torch() -> None:
    assert known(ATEN.stack.default, [torch.ones(3), torch.ones(4)]) is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_and_group_norm_keep_the_shape_of_processors(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, 8, dtype=dtype)
    assert known(ATEN._softmax.default, x, -1, False) == outcome(ATEN._softmax.default, "cpu", x, -1, False)
    image = torch.ones(2, 8, 5, 6, dtype=dtype)
    for frame in (image, image.contiguous(memory_format=torch.channels_last)):
        assert known(ATEN.group_norm.default, frame, 4) == outcome(ATEN.group_norm.default, "cpu", frame, 4)
