"""Every kernel gives what the formula gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tiny_unet
from torch import nn

from gendr_core.model import fold_unet
from gendr_core.nets.attention import spread
from gendr_core.nets.kernels import MANY_KEYS, attend, frame_format, in_order
from gendr_core.step import one_step


def heads(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 64, 160])
def test_attention_is_the_formula(width: int, dtype: torch.dtype, scale: float | None) -> None:
    queries, keys, values = (heads(seed, 2, 3, 40, width, dtype=dtype) for seed in range(3))
    factor = width**-0.5 if scale is None else scale
    scores = (queries.double() @ keys.double().transpose(2, 3)) * factor
    expected = scores.softmax(-1) @ values.double()
    with torch.inference_mode():
        result = attend(queries, keys, values, scale=scale)
    assert result.dtype == dtype
    assert (result - expected).abs().max() <= {torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype] * expected.abs().max()


def test_attention_in_parts_is_about_as_close_as_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = (3 * heads(seed, 1, 1, 300, 160, dtype=torch.bfloat16) for seed in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(queries.double(), keys.double(), values.double())
    monkeypatch.setattr("gendr_core.nets.kernels.SCORE_BYTES", 4 * 300 * 7)  # seven queries at a time
    with torch.inference_mode():
        ours = (attend(queries, keys, values) - expected).square().mean().sqrt()
        fused = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
    assert ours <= 1.3 * (fused - expected).square().mean().sqrt()
    assert MANY_KEYS > 300


def test_attention_has_gradients() -> None:
    queries = heads(1, 1, 1, 5, 160, dtype=torch.bfloat16).requires_grad_()
    attend(queries, queries, queries).sum().backward()
    assert queries.grad is not None


@settings(deadline=None, max_examples=40)
@given(shape=st.tuples(*[st.integers(1, 3)] * 4))
def test_a_frame_in_order_has_the_strides_of_that_order_at_any_size(shape: tuple[int, int, int, int]) -> None:
    frame = torch.randn(shape)
    ordered = in_order(frame)
    assert torch.equal(ordered, frame)
    assert ordered.stride()[1:] == (1, shape[3] * shape[1], shape[1])
    assert in_order(ordered) is ordered


def test_frames_keep_their_order_where_it_is_not_known_to_be_slow() -> None:
    assert frame_format(torch.empty(1)) == torch.channels_last
    assert frame_format(torch.empty(1, device="meta")) == torch.channels_last  # planned for a processor


def test_a_frame_for_two_prompts_keeps_its_order() -> None:
    frame = in_order(torch.randn(1, 8, 3, 5))
    both = spread(frame, 2)
    assert torch.equal(both, torch.cat([frame, frame]))
    assert both.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_no_convolution_of_a_step_has_to_bring_its_frame_into_order(guidance: float) -> None:
    unet = fold_unet(tiny_unet(negative=True))
    seen: list[bool] = []

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for layer in unet.network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(note)
    with torch.inference_mode():
        one_step(torch.randn(1, 4, 8, 16), unet, guidance=guidance)
    assert len(seen) > 10
    assert all(seen)
