"""The banded networks against the same networks run whole, in float32: at any size, for any height of the bands."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import seeded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gendr_core.bands import Moments
from gendr_core.cost import measure
from gendr_core.host import Host, Meter
from gendr_core.nets import VAE, UNet
from gendr_core.nets.kernels import in_order
from gendr_core.parking import Frames
from gendr_core.plan import Bands
from gendr_core.spec import UNetArch, VAEArch
from gendr_core.windows import BandedFrame

TOLERANCE = 5e-5
"""Bound on max |difference| / standard deviation in float32."""

VAE_ARCH = VAEArch(latent_channels=4, block_out_channels=(8, 8, 16, 24), layers_per_block=1, norm_groups=4)
UNET_ARCH = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 32, 32),
    attention_levels=(True, True, False),
    layers_per_block=1,
    head_dim=8,
    cross_attention_dim=8,
    norm_groups=4,
)
cells = st.integers(min_value=1, max_value=11)
band_bytes = st.integers(min_value=1, max_value=60_000)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return seeded(VAE(VAE_ARCH), 1)


@pytest.fixture(scope="module")
def unet() -> UNet:
    return seeded(UNet(UNET_ARCH), 2)


def noise(*shape: int) -> Tensor:
    # Different statistics in different places, which a normalisation of parts would not survive.
    ramp = torch.linspace(-1.0, 1.0, shape[2])[:, None]
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * (1.5 + ramp) + 2.0 * ramp


def banded(network: Any, size: int, *, meter: Meter | None = None, device: str = "cpu", **ways: bool) -> BandedFrame:
    bands = Bands(band_bytes=size, **ways)
    return BandedFrame(bands, network.operations, meter=meter, device=torch.device(device))


def distance(result: Tensor, whole: Tensor) -> float:
    return float((result - whole).abs().max() / whole.std().clamp(min=1e-3))


@settings(max_examples=40, deadline=None)
@given(height=cells, width=cells, size=band_bytes, recompute=st.booleans(), batch=st.integers(1, 2))
def test_banded_decoder_is_the_whole_one(
    vae: VAE, height: int, width: int, size: int, recompute: bool, batch: int
) -> None:
    latent = noise(batch, 4, height, width)
    with torch.inference_mode():
        whole = vae.decode(latent)
        result = vae.decode(latent, run=banded(vae, size, recompute=recompute))
    assert distance(result, whole) <= TOLERANCE


@settings(max_examples=40, deadline=None)
@given(height=cells, width=cells, size=band_bytes, recompute=st.booleans(), batch=st.integers(1, 2))
def test_banded_encoder_is_the_whole_one(
    vae: VAE, height: int, width: int, size: int, recompute: bool, batch: int
) -> None:
    pixels = noise(batch, 3, 8 * height, 8 * width)
    before = pixels.clone()
    with torch.inference_mode():
        whole = vae.encode(pixels)
        result = vae.encode(pixels, run=banded(vae, size, recompute=recompute))
    assert distance(result, whole) <= TOLERANCE
    assert torch.equal(pixels, before)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 21), width=st.integers(1, 21), size=band_bytes, batch=st.integers(1, 2))
def test_banded_unet_is_the_whole_one(unet: UNet, height: int, width: int, size: int, batch: int) -> None:
    latent, prompt = noise(batch, 4, height, width), noise(batch, 1, 5, 8)[:, 0]
    before = latent.clone()
    with torch.inference_mode():
        whole = unet(latent, 354, prompt)
        result = unet(latent, 354, prompt, run=banded(unet, size))
    assert distance(result, whole) <= TOLERANCE
    assert torch.equal(latent, before)


def test_a_frame_of_one_band_is_the_whole_one_bit_for_bit(vae: VAE, unet: UNet) -> None:
    latent, prompt = in_order(noise(1, 4, 9, 7)), noise(1, 1, 5, 8)[:, 0]
    with torch.inference_mode():
        assert torch.equal(vae.decode(latent, run=banded(vae, 2**30)), vae.decode(latent))
        assert torch.equal(unet(latent, 1, prompt, run=banded(unet, 2**30)), unet(latent, 1, prompt))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_in_bands(vae: VAE, dtype: torch.dtype) -> None:
    latent = noise(1, 4, 9, 7)
    half = seeded(VAE(VAE_ARCH), 1).to(dtype)
    with torch.inference_mode():
        exact = vae.decode(latent)
        whole = half.decode(latent.to(dtype)).float()
        result = half.decode(latent.to(dtype), run=banded(half, 5_000)).float()
    assert (result - exact).square().mean() <= 1.3 * (whole - exact).square().mean()


@settings(max_examples=40, deadline=None)
@given(height=cells, width=cells, size=band_bytes, recompute=st.booleans(), batch=st.integers(1, 2))
def test_parked_frames_have_the_same_values(
    vae: VAE, height: int, width: int, size: int, recompute: bool, batch: int
) -> None:
    latent, pixels = noise(batch, 4, height, width), noise(batch, 3, 8 * height, 8 * width)
    parked, near = (banded(vae, size, recompute=recompute, parked=parked) for parked in (True, False))
    with torch.inference_mode():
        assert torch.equal(vae.decode(latent, run=parked), vae.decode(latent, run=near))
        assert torch.equal(vae.encode(pixels, run=parked), vae.encode(pixels, run=near))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [1, 3_000, 20_000, 2**30])
def test_copied_bands_have_the_same_values(vae: VAE, size: int, recompute: bool) -> None:
    latent, pixels = noise(2, 4, 11, 9), noise(2, 3, 88, 72)
    copying = banded(vae, size, recompute=recompute, parked=True)
    copying.frames._copies = True  # as for a device that is not the processor
    before = pixels.clone()
    with torch.inference_mode():
        assert distance(vae.decode(latent, run=copying), vae.decode(latent)) <= TOLERANCE
        assert distance(vae.encode(pixels, run=copying), vae.encode(pixels)) <= TOLERANCE
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [3_000, 2**30])
def test_only_bands_of_parked_frames_go_to_the_device(size: int, recompute: bool) -> None:
    seen: list[int] = []

    class TwoDevices(TorchDispatchMode):
        """The meta device as one beside the processor: copies are the only way between them."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            if func is torch.ops.aten.copy_.default:
                return args[0]
            assert len(devices) <= 1, func
            result = func(*args, **(kwargs or {}))
            seen.extend(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_meta)
            return result

    network = VAE(VAE_ARCH, device="meta")
    run = banded(network, size, recompute=recompute, parked=True, device="meta")
    run.frames._home = torch.device("cpu")
    latent, pixels = torch.empty(1, 4, 11, 9, device="meta"), torch.empty(1, 3, 88, 72, device="meta")
    with torch.inference_mode(), TwoDevices():
        results = network.decode(latent, run=run), network.encode(pixels, run=run)
    assert [result.device.type for result in results] == ["meta", "meta"]
    finest = 4 * 8 * 88 * 72
    assert (max(seen) < finest) == (size < finest)


def test_parked_frames_have_the_order_of_the_device_that_computes() -> None:
    def orders() -> list[bool]:
        frames = Frames(torch.device("meta"))
        frames._home = torch.device("cpu")
        parked = torch.empty(1, 2, 3, 4)
        made = frames.make(parked, 1, 2, 3, 4), frames.make_near(parked, 1, 2, 3, 4)
        return [frame.is_contiguous(memory_format=torch.channels_last) for frame in made]

    assert measure(orders, device_type="cuda")[0] == [False, False]
    assert measure(orders, device_type="cpu")[0] == [True, True]


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
def test_frames_parked_beside_the_device_have_the_same_values(recompute: bool) -> None:
    network = seeded(VAE(VAE_ARCH), 1).to("cuda")
    latent, pixels = noise(1, 4, 11, 9).to("cuda"), noise(1, 3, 88, 72).to("cuda")
    parked, near = (
        banded(network, 3_000, recompute=recompute, parked=parked, device="cuda") for parked in (True, False)
    )
    with torch.inference_mode():
        assert distance(network.decode(latent, run=parked), network.decode(latent, run=near)) <= TOLERANCE
        assert distance(network.encode(pixels, run=parked), network.encode(pixels, run=near)) <= TOLERANCE


@settings(max_examples=50, deadline=None)
@given(heights=st.lists(st.integers(1, 9), min_size=1, max_size=8), offset=st.floats(-50.0, 50.0))
def test_moments_of_bands_are_those_of_the_frame(heights: list[int], offset: float) -> None:
    norm = nn.GroupNorm(2, 6)
    frame = noise(2, 6, sum(heights), 5) + offset
    moments = Moments(norm)
    for band in frame.split(heights, dim=2):
        moments.add(band)
    result = moments.normalisation(norm.weight, norm.bias)(frame, activate=False)
    assert torch.allclose(result, norm(frame), atol=2e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_work_adds_up_to_the_same_whatever_the_bands(vae: VAE, recompute: bool) -> None:
    latent = noise(1, 4, 16, 8)
    counts: list[int] = []
    for size in (3_000, 2**30):
        meter = Meter()
        with torch.inference_mode():
            vae.decode(latent, run=banded(vae, size, recompute=recompute, meter=meter))
        counts.append(meter.flops)
    more = 1.5 if recompute else 1.001
    assert counts[1] <= counts[0] * 1.001
    assert counts[0] <= counts[1] * more


class StopAfter:
    """The user's interrupt, after so many checks."""

    def __init__(self, num_checks: int) -> None:
        self.left = num_checks

    def check(self) -> None:
        """Count down and stop."""
        self.left -= 1
        if self.left < 0:
            raise InterruptedError


def checks_of(run: Callable[[Meter], object]) -> int:
    counter = StopAfter(10**9)
    run(Meter(Host(interrupt=counter)))
    return 10**9 - counter.left


def test_a_run_can_be_stopped_between_any_two_bands(vae: VAE) -> None:
    latent = noise(1, 4, 16, 8)

    def run(meter: Meter) -> object:
        with torch.inference_mode():
            return vae.decode(latent, run=banded(vae, 3_000, meter=meter))

    num_checks = checks_of(run)
    assert num_checks > 100
    for after in (0, 1, num_checks // 2, num_checks - 1):
        with pytest.raises(InterruptedError):
            run(Meter(Host(interrupt=StopAfter(after))))
