from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tiny_unet
from torch import nn

from gendr_core.config import RestoreOptions
from gendr_core.errors import ImageError, OptionError
from gendr_core.host import Host
from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.pipeline import restore
from gendr_core.spec import ModelSpec


def image_of(height: int, width: int, channels: int = 3, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(height * 31 + width))


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3, 4]),
    scale=st.sampled_from([0.25, 0.5, 1.0, 1.7, 3.0]),
)
@settings(max_examples=25, deadline=None)
def test_any_image_gives_exactly_the_promised_size(height: int, width: int, channels: int, scale: float) -> None:
    unet = tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8", c_skip=1.0, c_out=0.05)
    result = restore(image_of(height, width, channels), unet, options=RestoreOptions(scale=scale))
    size = [max(1, int(edge * scale + 0.5)) for edge in (height, width)]
    assert list(result.shape) == [1, *size, channels]
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert result.min() >= 0.0
    assert result.max() <= 1.0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (33, 65)])
def test_vae_path_sizes(height: int, width: int, latent_unet: GenDRUNet, vae: GenDRVAE) -> None:
    result = restore(image_of(height, width), latent_unet, vae, RestoreOptions(scale=2.0))
    assert result.shape == (1, 2 * height, 2 * width, 3)


def test_zero_network_with_skip_returns_the_resized_input(pixel_unet: GenDRUNet) -> None:
    nn.init.zeros_(pixel_unet.network.conv_out.weight)
    assert pixel_unet.network.conv_out.bias is not None
    nn.init.zeros_(pixel_unet.network.conv_out.bias)
    image = image_of(24, 40)
    result = restore(image, pixel_unet, options=RestoreOptions(scale=1.0, color="none"))
    torch.testing.assert_close(result, image, rtol=0, atol=1e-6)


def test_frames_do_not_influence_each_other(pixel_unet: GenDRUNet) -> None:
    batch = image_of(16, 20, batch=3)
    options = RestoreOptions(scale=2.0)
    together = restore(batch, pixel_unet, options=options)
    apart = torch.cat([restore(frame[None], pixel_unet, options=options) for frame in batch])
    assert torch.equal(together, apart)


def test_scale_defaults_to_the_model(pixel_unet: GenDRUNet) -> None:
    doubled = replace(pixel_unet, spec=replace(pixel_unet.spec, scale=2.0))
    assert restore(image_of(10, 12), doubled).shape == (1, 20, 24, 3)


def test_edges(pixel_unet: GenDRUNet) -> None:
    assert restore(image_of(10, 20), pixel_unet, options=RestoreOptions(longest_edge=50)).shape == (1, 25, 50, 3)
    assert restore(image_of(10, 20), pixel_unet, options=RestoreOptions(shortest_edge=30)).shape == (1, 30, 60, 3)


def test_gray_stays_gray_and_alpha_is_resized_apart(pixel_unet: GenDRUNet) -> None:
    rgba = image_of(16, 16, 4)
    rgba[..., 3] = 0.5
    result = restore(rgba, pixel_unet, options=RestoreOptions(scale=2.0))
    torch.testing.assert_close(result[..., 3], torch.full((1, 32, 32), 0.5))


def test_deterministic(pixel_unet: GenDRUNet) -> None:
    image = image_of(20, 20)
    assert torch.equal(restore(image, pixel_unet), restore(image, pixel_unet))


def test_progress_and_interrupt(pixel_unet: GenDRUNet) -> None:
    seen: list[tuple[int, int]] = []

    class Recorder:
        def update(self, done: int, total: int) -> None:
            seen.append((done, total))

    class Stop(Exception):
        pass

    class StopAtTheFifth:
        def check(self) -> None:
            if len(seen) == 5:
                raise Stop

    restore(image_of(8, 8, batch=2), pixel_unet, host=Host(progress=Recorder()))
    steps = [done for done, _ in seen]
    assert {total for _, total in seen} == {1000}
    # Ever forward, to the very end, and in small strides.
    assert steps == sorted(set(steps))
    assert steps[-1] == 1000
    assert max(after - before for before, after in pairwise([0, *steps])) < 250
    seen.clear()
    with pytest.raises(Stop):
        restore(image_of(8, 8, batch=2), pixel_unet, host=Host(progress=Recorder(), interrupt=StopAtTheFifth()))
    assert len(seen) == 5


def test_missing_or_foreign_vae(latent_unet: GenDRUNet, vae: GenDRVAE) -> None:
    with pytest.raises(OptionError, match="expected a VAE, got none"):
        restore(image_of(8, 8), latent_unet)
    sixteen = tiny_unet(16)
    assert isinstance(sixteen.spec, ModelSpec)
    with pytest.raises(OptionError, match="16 latent channels, got 4"):
        restore(image_of(8, 8), sixteen, vae)


def test_images_that_are_none(pixel_unet: GenDRUNet) -> None:
    with pytest.raises(ImageError, match="4 dimensions"):
        restore(torch.zeros(8, 8, 3), pixel_unet)
    bad = image_of(8, 8)
    bad[0, 3, 3, 1] = float("nan")
    with pytest.raises(ImageError, match="1 of 192"):
        restore(bad, pixel_unet)
