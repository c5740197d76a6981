"""Models whose latent cells are not 8 pixels wide: the same restoration, with sizes that follow the cell."""

from dataclasses import replace

import pytest
import torch
from networks import PROMPT_DIM, TOKENS, prompt, seeded, tiny_unet, tiny_vae

from gendr_core.config import MemoryOptions, RestoreOptions
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.errors import OptionError
from gendr_core.geometry import Extent
from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.nets import UNet
from gendr_core.pipeline import restore
from gendr_core.plan import Bands, Plan, StagePlan, Tiles
from gendr_core.planner import Planner, Task
from gendr_core.spec import ModelSpec, UNetArch
from gendr_core.step import one_step


@pytest.fixture
def vae() -> GenDRVAE:
    """With 4 pixels per cell and no middle block."""
    return tiny_vae(4)


@pytest.fixture
def unet() -> GenDRUNet:
    """For that VAE, of five levels."""
    arch = UNetArch(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8, 8, 16, 16),
        attention_levels=(False, True, False, False, False),
        layers_per_block=1,
        head_dim=8,
        cross_attention_dim=PROMPT_DIM,
        norm_groups=4,
    )
    network = seeded(UNet(arch), 1)
    spec = ModelSpec(arch=arch, cell_px=4, c_out=-0.1)
    return GenDRUNet(network=network, spec=spec, positive=prompt(2), negative=None, dtype=torch.float32)


def plan_of(unet: GenDRUNet, vae: GenDRVAE, size: Extent, **memory: object) -> Plan:
    options = RestoreOptions(scale=1.0, memory=MemoryOptions(**memory))  # type: ignore[arg-type]
    return Planner(unet, vae, Task(source=size), options).plan()


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (33, 65), (64, 100)])
def test_any_size_comes_out_as_promised(unet: GenDRUNet, vae: GenDRVAE, height: int, width: int) -> None:
    restored = restore(picture(height, width), unet, vae, RestoreOptions(scale=2.0))
    assert restored.shape == (1, 2 * height, 2 * width, 3)
    assert restored.isfinite().all()


def test_a_frame_in_bands_is_the_whole_frame(unet: GenDRUNet, vae: GenDRVAE) -> None:
    pixels = torch.rand(1, 3, 192, 128, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    timestep, prompts = unet.spec.timestep, unet.positive.reshape(1, TOKENS, PROMPT_DIM)
    bands = StagePlan(bands=Bands(band_bytes=2**13), windows=None)
    with torch.inference_mode():
        latent = vae.network.encode(pixels)
        assert latent.shape == (1, 4, 48, 32)
        torch.testing.assert_close(encode(pixels, "vae16", vae, plan=bands), latent, rtol=1e-4, atol=1e-5)
        scaling, spec = unet.spec.latent_scaling, unet.spec
        network = unet.network(latent * scaling, timestep, prompts)
        expected = spec.c_skip * latent + spec.c_out * network / scaling
        torch.testing.assert_close(one_step(latent, unet, plan=bands), expected, rtol=1e-4, atol=1e-4)
        whole = vae.network.decode(latent)
        assert whole.shape == pixels.shape
        torch.testing.assert_close(decode(latent, "vae16", vae, plan=bands), whole, rtol=1e-4, atol=1e-4)


def test_tiles_are_close_to_the_whole_frame(unet: GenDRUNet, vae: GenDRVAE) -> None:
    image = picture(256, 384)
    whole, tiled = (
        restore(image, unet, vae, RestoreOptions(scale=1.0, color="none", memory=memory))
        for memory in (MemoryOptions(), MemoryOptions(mode="tiles", tile_px=192, overlap_px=64))
    )
    # Statistics of groups and what attention sees are those of a tile: close, not equal.
    assert not torch.equal(whole, tiled)
    assert (whole - tiled).square().mean().sqrt() < 0.02


def test_tiles_follow_the_strides_of_five_levels(unet: GenDRUNet, vae: GenDRVAE) -> None:
    plan = plan_of(unet, vae, Extent(700, 500), mode="tiles")
    tiles = plan.stages["step"].tiles
    assert plan.padded == Extent(704, 512)
    assert tiles is not None
    assert (tiles.cell_px, tiles.multiple) == (4, 16)
    assert tiles.size_px in (256, 512)
    assert tiles.overlap_px == tiles.size_px // 4
    assert f"tiles of {tiles.size_px} px" in plan.describe()
    with pytest.raises(OptionError, match=r"multiple of 16 latent cells \(64 pixels\), got 24"):
        replace(tiles, size=24)
    named = plan_of(unet, vae, Extent(700, 500), mode="tiles", tile_px=192, overlap_px=64).stages["step"].tiles
    assert named is not None
    assert (named.size, named.overlap) == (48, 16)


def test_tiles_that_do_not_fit_the_strides_are_refused_in_pixels() -> None:
    unet = tiny_unet(cell_px=16)
    arch = replace(unet.spec.arch, block_out_channels=(8,) * 4, attention_levels=(False,) * 4)
    unet = replace(unet, spec=replace(unet.spec, arch=arch), network=UNet(arch))
    options = RestoreOptions(scale=1.0, memory=MemoryOptions(mode="tiles", tile_px=192))
    planner = Planner(unet, None, Task(source=Extent(512, 512)), options)
    with pytest.raises(OptionError, match=r"multiple of 8 latent cells \(128 pixels\), got 12"):
        _ = planner.step


def test_every_tiling_of_a_coarse_model_has_room_to_go_forward() -> None:
    unet = tiny_unet(cell_px=16)
    arch = replace(unet.spec.arch, block_out_channels=(8,) * 6, attention_levels=(False,) * 6)
    unet = replace(unet, spec=replace(unet.spec, arch=arch), network=UNet(arch))
    options = RestoreOptions(scale=1.0, memory=MemoryOptions(mode="tiles"))
    planner = Planner(unet, None, Task(source=Extent(4096, 4096)), options)
    assert planner.pad_multiple == 512
    assert planner.step.plan.tiles == Tiles(size=128, overlap=32, multiple=32, cell_px=16)


def test_networks_of_other_cells_are_told_apart(unet: GenDRUNet, vae: GenDRVAE) -> None:
    with pytest.raises(OptionError, match="expected a VAE with 4 pixels per latent cell, got one with 8"):
        restore(picture(8, 8), unet, tiny_vae())
    with pytest.raises(OptionError, match="expected a VAE with 8 pixels per latent cell, got one with 4"):
        restore(picture(8, 8), tiny_unet(), vae)
