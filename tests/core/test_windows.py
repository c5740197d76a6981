from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import seeded
from torch import Tensor

from gendr_core.host import Meter
from gendr_core.nets import VAE, UNet
from gendr_core.nets.attention import SpatialTransformer
from gendr_core.plan import Bands, Windows
from gendr_core.spec import UNetArch, VAEArch
from gendr_core.windows import BandedFrame

ARCH = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 16),
    attention_levels=(True, False),
    layers_per_block=1,
    head_dim=8,
    cross_attention_dim=8,
    norm_groups=4,
)
SMALL = Windows(size=4, context=2)


@pytest.fixture(scope="module")
def unet() -> UNet:
    return seeded(UNet(ARCH), 3)


def run(network: Any, windows: Windows | None, *, size: int = 2_000, meter: Meter | None = None) -> BandedFrame:
    return BandedFrame(Bands(band_bytes=size), network.operations, windows=windows, meter=meter)


def restored(unet: UNet, latent: Tensor, windows: Windows | None, **kwargs: Any) -> Tensor:
    prompt = torch.linspace(-1.0, 1.0, 3 * 8).view(1, 3, 8)
    with torch.inference_mode():
        return unet(latent, 354, prompt, run=run(unet, windows, **kwargs))


def latent_of(height: int, width: int) -> Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(height * 100 + width))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 8), width=st.integers(1, 8), size=st.sampled_from([1, 2_000, 2**30]))
def test_a_frame_no_larger_than_a_window_gets_full_attention_bit_for_bit(
    unet: UNet, height: int, width: int, size: int
) -> None:
    latent = latent_of(height, width)
    full = restored(unet, latent, None, size=size)
    assert torch.equal(restored(unet, latent, Windows(size=8, context=0), size=size), full)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_windows_cover_frames_of_any_size(unet: UNet, height: int, width: int) -> None:
    latent = latent_of(height, width)
    result, full = restored(unet, latent, SMALL), restored(unet, latent, None)
    assert result.shape == full.shape
    # Every position is attended once: a hole or a double would be an error of the size of the signal.
    assert (result - full).abs().max() < 0.5 * full.std()


def test_windows_that_see_everything_are_full_attention(unet: UNet) -> None:
    latent = latent_of(20, 12)
    wide = restored(unet, latent, Windows(size=8, context=20))
    assert torch.allclose(wide, restored(unet, latent, None), atol=1e-5)


def test_attention_reaches_as_far_as_the_context_and_no_further(unet: UNet) -> None:
    block = unet.get_submodule("down_blocks.0.attentions.0")
    assert isinstance(block, SpatialTransformer)
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn(1, 16, 32, 8, generator=generator)
    # Exchanging two rows leaves the statistics of the normalisation in front as they are.
    exchanged = frame[:, :, [20, *range(1, 20), 0, *range(21, 32)]]
    prompt = torch.randn(1, 3, 8, generator=generator)
    with torch.inference_mode():
        runner = run(unet, SMALL)
        after, before = (runner.transformer(block, x.clone(), prompt) for x in (exchanged, frame))
    moved = (after - before).abs().amax(dim=(0, 1, 3))
    # Windows begin at every fourth row and see two more on each side; at the ends they are moved inward.
    seeing = {1, 2, 3, 16, 17, 18, 19, 21, 22, 23}
    others = set(range(32)) - seeing - {0, 20}
    assert moved[sorted(seeing)].min() > 1e-4
    assert moved[sorted(others)].max() < 1e-5


def test_work_grows_with_the_pixels_and_not_with_their_square(unet: UNet) -> None:
    def flops(edge: int, windows: Windows | None) -> int:
        meter = Meter()
        restored(unet, latent_of(edge, edge), windows, meter=meter)
        return meter.flops

    assert flops(64, SMALL) == pytest.approx(4 * flops(32, SMALL), rel=0.02)
    assert flops(64, None) > 5 * flops(32, None)


def test_attention_of_the_vae_sees_the_whole_frame_in_pieces() -> None:
    vae = seeded(VAE(VAEArch(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4)), 5)
    latent = latent_of(9, 7)
    with torch.inference_mode():
        whole = vae.decode(latent)
        # Pieces of three queries with 63 keys each.
        result = vae.decode(latent, run=run(vae, SMALL, size=50))
    assert (result - whole).abs().max() <= 5e-5 * whole.std()
