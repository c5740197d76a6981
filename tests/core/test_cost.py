from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import seeded
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

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


STAGES = [
    pytest.param(UNet, SMALL_UNET, unet_pass, 32, id="unet"),
    pytest.param(VAE, SMALL_VAE, encoding, 64, id="encode"),
    pytest.param(VAE, SMALL_VAE, decoding, 64, id="decode"),
]


def allocated_peak(run: Callable[[], object]) -> int:
    """Return the most bytes that torch's CPU allocator had handed out at once."""
    with torch.inference_mode():
        run()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = run()
    del result
    # The profiler's typed interface sums allocations up; only its raw events tell when each of them happened.
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(("network", "arch", "stage", "size_px"), STAGES)
def test_tensors_without_memory_cost_what_real_ones_do(network: Any, arch: Any, stage: Stage, size_px: int) -> None:
    sketch = network(arch, device="meta").requires_grad_(False)
    real = seeded(network(arch), 1)
    _, predicted = measure(stage(sketch, size_px, "meta"))
    _, measured = measure(stage(real, size_px, "cpu"))
    assert predicted.peak_bytes == measured.peak_bytes


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other convolutions have other scratch memory")
@pytest.mark.parametrize(("network", "arch", "stage", "size_px"), STAGES)
def test_estimate_is_what_the_allocator_hands_out(network: Any, arch: Any, stage: Stage, size_px: int) -> None:
    real = seeded(network(arch), 1)
    _, cost = measure(stage(real, size_px, "cpu"))
    assert cost.peak_bytes == pytest.approx(allocated_peak(stage(real, size_px, "cpu")), rel=0.05)


def test_attention_does_not_hold_the_matrix_of_all_tokens() -> None:
    tokens = meta(1, 1, 10_000, 16)
    _, cost = measure(lambda: nn.functional.scaled_dot_product_attention(tokens, tokens, tokens), held=[tokens])
    assert cost.peak_bytes == 2 * tokens.nbytes
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


def test_1x1_convolutions_read_their_input_as_it_is() -> None:
    x = meta(1, 16, 8, 8)
    for kernel, copies in ((1, 0), (3, x.nbytes + 16 * 16 * 9 * 4)):
        conv = nn.Conv2d(16, 16, kernel, padding=kernel // 2, device="meta")
        _, cost = measure(lambda conv=conv: conv(x), held=[x])
        assert cost.peak_bytes == 2 * x.nbytes + copies
        assert cost.flops == 2 * 8 * 8 * 16 * 16 * kernel**2
