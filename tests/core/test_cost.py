from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from allocations import allocated_peak
from networks import seeded
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gendr_core.cost import measure
from gendr_core.nets import VAE, UNet
from gendr_core.spec import UNetArch, VAEArch

SMALL_UNET = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(32, 64),
    attention_levels=(True, False),
    layers_per_block=1,
    head_dim=32,
    cross_attention_dim=8,
    norm_groups=4,
)
SMALL_VAE = VAEArch(latent_channels=4, block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_groups=4)

Stage = Callable[[Any, int, str], Callable[[], Tensor]]
"""Makes a computation of a network, a size and a device."""


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def unet_pass(network: Any, latent_px: int, device: str) -> Callable[[], Tensor]:
    def run() -> Tensor:
        latent = torch.empty(1, 4, latent_px, latent_px, device=device).fill_(0.1)
        return network(latent, 354, torch.empty(1, 77, 8, device=device).fill_(0.1))

    return run


def encoding(network: Any, size_px: int, device: str) -> Callable[[], Tensor]:
    return lambda: network.encode(torch.empty(1, 3, size_px, size_px, device=device).fill_(0.1))


def decoding(network: Any, size_px: int, device: str) -> Callable[[], Tensor]:
    return lambda: network.decode(torch.empty(1, 4, size_px // 8, size_px // 8, device=device).fill_(0.1))


HAS_ONEDNN = torch.backends.mkldnn.is_available()
NEEDS_ONEDNN = pytest.mark.skipif(not HAS_ONEDNN, reason="other convolutions have other scratch memory")
NEEDS_AVX512 = pytest.mark.skipif(
    not HAS_ONEDNN
    or torch.backends.cpu.get_cpu_capability() != "AVX512"
    or torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    reason="processors with less than AVX-512, and those with fp16 and tiles of matrices, have other kernels",
)
STAGES = [
    pytest.param(UNet, SMALL_UNET, unet_pass, 32, id="unet"),
    pytest.param(VAE, SMALL_VAE, encoding, 64, id="encode"),
    pytest.param(VAE, SMALL_VAE, decoding, 64, id="decode"),
]


@pytest.mark.parametrize(("network", "arch", "stage", "size_px"), STAGES)
def test_tensors_without_memory_cost_what_real_ones_do(network: Any, arch: Any, stage: Stage, size_px: int) -> None:
    sketch = network(arch, device="meta").requires_grad_(False)
    real = seeded(network(arch), 1)
    _, predicted = measure(stage(sketch, size_px, "meta"))
    _, measured = measure(stage(real, size_px, "cpu"))
    assert predicted == measured


@NEEDS_ONEDNN
@pytest.mark.parametrize(("network", "arch", "stage", "size_px"), STAGES)
def test_estimate_is_what_the_allocator_hands_out(network: Any, arch: Any, stage: Stage, size_px: int) -> None:
    real = seeded(network(arch), 1)
    _, cost = measure(stage(real, size_px, "cpu"))
    assert cost.peak_bytes == pytest.approx(allocated_peak(stage(real, size_px, "cpu")), rel=0.05)


def test_attention_does_not_hold_the_matrix_of_all_tokens() -> None:
    tokens = meta(1, 1, 10_000, 16)
    for device_type in ("cpu", "cuda"):
        _, cost = measure(
            lambda: F.scaled_dot_product_attention(tokens, tokens, tokens), held=[tokens], device_type=device_type
        )
        blocks = 1_000_000 * torch.get_num_threads()
        assert 2 * tokens.nbytes < cost.peak_bytes < 2 * tokens.nbytes + blocks
    assert cost.flops == 2 * 2 * 10_000**2 * 16


def test_views_and_operations_in_place_allocate_nothing() -> None:
    image = meta(1, 3, 8, 8)
    _, cost = measure(lambda: image.flatten(2).transpose(1, 2).add_(1.0), held=[image, image.view(3, 64)])
    assert cost.peak_bytes == image.nbytes
    assert cost.flops == 0


def test_freed_tensors_make_room() -> None:
    def chain() -> Tensor:
        x = meta(1000)
        for _ in range(5):
            x = x + 1.0
        return x

    _, cost = measure(chain)
    assert cost.peak_bytes == 2 * 4000


@pytest.mark.parametrize(("network", "arch", "stage", "size_px"), STAGES)
def test_flops_are_those_of_torch(network: Any, arch: Any, stage: Stage, size_px: int) -> None:
    run = stage(network(arch, device="meta").requires_grad_(False), size_px, "meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    assert measure(run)[1].flops == counter.get_total_flops()


def test_remembered_outcomes_do_not_depend_on_what_ran_before() -> None:
    whole, half = meta(4, 4), torch.empty(4, 4, dtype=torch.float16, device="meta")
    for _ in range(2):
        for x, factor, dtype in ((whole, 1, torch.float32), (whole.int(), 1, torch.int32), (half, 1.0, torch.float16)):
            result, cost = measure(lambda x=x, factor=factor: x * factor)
            assert result.dtype == dtype
            assert cost.peak_bytes == result.nbytes
        assert measure(lambda: whole.int() * 1.0)[0].dtype == torch.float32
        assert measure(lambda: whole.t() + whole.t())[0].stride() == (1, 4)


def made_in_place(device: str) -> Callable[[], Tensor]:
    """Return what row-banded execution does: bands of a whole, normalised and written into a whole made before."""

    def run() -> Tensor:
        x = torch.empty(1, 32, 24, 8, device=device).fill_(0.5)
        scale = torch.empty(32, device=device).fill_(1.0)
        mean, rstd = torch.native_group_norm(x, None, None, 1, 32, 24 * 8, 4, 1e-6)[1:]
        result = torch.empty_like(x)
        for top in range(0, 24, 8):
            band = F.batch_norm(x[:, :, top : top + 8], scale, scale, scale, scale)
            F.silu(band, inplace=True)
            torch.mul(band, mean.sum() + rstd.sum(), out=result[:, :, top : top + 8])
            result[:, :, top : top + 8].add_(band)
        return result.copy_(x)

    return run


def test_bands_written_in_place() -> None:
    predicted, cost = measure(made_in_place("meta"))
    _, measured = measure(made_in_place("cpu"))
    whole, small = predicted.nbytes, 1024
    assert cost == measured
    # The whole, its result, and two bands while one is made anew with the last one still there.
    assert 2 * whole + 2 * whole // 3 <= cost.peak_bytes <= 2 * whole + 2 * whole // 3 + small
    assert cost.peak_bytes == pytest.approx(allocated_peak(made_in_place("cpu")), abs=small)


def test_the_statistics_of_a_group_norm_are_small() -> None:
    x = meta(1, 32, 8, 8).bfloat16()
    (normalised, mean, rstd), cost = measure(lambda: torch.native_group_norm(x, None, None, 1, 32, 64, 4, 1e-6))
    assert mean.shape == rstd.shape == (1, 4)
    assert cost.peak_bytes == normalised.nbytes + mean.nbytes + rstd.nbytes


@pytest.mark.parametrize("mode", ["contiguous", "channels last"])
def test_enlarging_allocates_its_result_only(mode: str) -> None:
    x = meta(1, 4, 8, 8).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last) if mode == "channels last" else x
    result, cost = measure(lambda: F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert cost.peak_bytes == result.nbytes


def test_linear_layers_on_a_frame_seen_as_tokens() -> None:
    x, linear = torch.ones(1, 32, 48), nn.Linear(32, 64).requires_grad_(False)
    result, cost = measure(lambda: linear(x.transpose(1, 2)))
    assert cost.peak_bytes == result.nbytes == allocated_peak(lambda: linear(x.transpose(1, 2)))
    assert cost.flops == 2 * 48 * 32 * 64


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Return the upper half of ``x`` in every memory layout that a convolution meets."""
    half = x.shape[2] // 2
    last = x.contiguous(memory_format=torch.channels_last)
    return {"whole": x[:, :, :half].clone(), "band": x[:, :, :half], "last": last[:, :, :half]}


@NEEDS_AVX512
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("channels", [(32, 64), (64, 3), (20, 30)], ids=str)
def test_scratch_of_convolutions(dtype: torch.dtype, kernel: int, stride: int, channels: tuple[int, int]) -> None:
    conv = nn.Conv2d(*channels, kernel, stride, padding=kernel // 2).to(dtype).requires_grad_(False)
    for x in layouts(torch.ones(1, channels[0], 64, 32, dtype=dtype)).values():
        _, cost = measure(lambda x=x: conv(x))
        # Copies of the bias and small tables of oneDNN's own stay uncounted, copies of weights are counted padded.
        assert cost.peak_bytes == pytest.approx(allocated_peak(lambda x=x: conv(x)), rel=0.05, abs=16384)


@NEEDS_AVX512
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("tokens", "head_dim"), [(900, 24), (300, 64), (100, 512)])
def test_scratch_of_attention(dtype: torch.dtype, tokens: int, head_dim: int) -> None:
    x = torch.ones(1, 2, tokens, head_dim, dtype=dtype)
    _, cost = measure(lambda: F.scaled_dot_product_attention(x, x, x))
    assert cost.peak_bytes == allocated_peak(lambda: F.scaled_dot_product_attention(x, x, x))


@pytest.mark.parametrize("shape", [(2, 300, 8), (1, 2, 8, 300)], ids=["three axes", "transposed"])
def test_attention_that_no_fused_kernel_takes_holds_the_matrix(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    x = x.transpose(-1, -2) if x.ndim == 4 else x
    _, cost = measure(lambda: F.scaled_dot_product_attention(x, x, x))
    assert cost.peak_bytes > 2 * 300 * 300 * 4
    # A softmax that guards against rows of -inf keeps a byte per element to itself.
    assert cost.peak_bytes == pytest.approx(allocated_peak(lambda: F.scaled_dot_product_attention(x, x, x)), rel=0.15)


def test_accelerators_have_scratch_memory_of_their_own() -> None:
    x, conv = meta(1, 16, 8, 8), nn.Conv2d(16, 16, 1, device="meta")
    for device_type in ("cuda", "mps"):
        _, cost = measure(lambda: conv(x), held=[x], device_type=device_type)
        assert cost.peak_bytes == 3 * x.nbytes + conv.weight.nbytes
    _, cost = measure(lambda: meta(3) + 1.0, device_type="cuda")
    assert cost.peak_bytes == 2 * 512
