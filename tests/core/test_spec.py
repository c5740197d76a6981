import math

import pytest

from gendr_core.errors import CheckpointError
from gendr_core.spec import ModelSpec, UNetArch, VAEArch, VAESpec, alpha_bar, one_step_coefficients


def test_alpha_bar_anchor() -> None:
    assert alpha_bar(354) == pytest.approx(0.49981740338943415, rel=1e-13)


def test_timestep_354_is_the_closest_to_half() -> None:
    assert min(range(1000), key=lambda t: abs(alpha_bar(t) - 0.5)) == 354


# Timestep -> (c_skip, c_out) for epsilon prediction, from the SD2.1 schedule in float64 (algorithm.md A2).
EPSILON_TABLE = {
    1: (1.000853, -0.041314),
    200: (1.151869, -0.571666),
    353: (1.412120, -0.997037),
    354: (1.414472, -1.000365),
    499: (1.897736, -1.612886),
    999: (14.648814, -14.614641),
}


@pytest.mark.parametrize(("timestep", "expected"), EPSILON_TABLE.items())
def test_epsilon_coefficients(timestep: int, expected: tuple[float, float]) -> None:
    assert one_step_coefficients("epsilon", alpha_bar(timestep)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_paper_coefficients_at_half_power() -> None:
    half = math.sqrt(0.5)
    assert one_step_coefficients("epsilon", 0.5) == pytest.approx((math.sqrt(2.0), -1.0), rel=1e-15)
    assert one_step_coefficients("v_prediction", 0.5) == pytest.approx((half, -half), rel=1e-15)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_alpha_bar_outside_the_schedule(timestep: int) -> None:
    with pytest.raises(CheckpointError, match=f"0 to 999, got {timestep}"):
        alpha_bar(timestep)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_out_channels": (100,), "attention_levels": (False,)}, "divide by 32 groups"),
        ({"attention_levels": (True,)}, "1 flags for 4 levels"),
        ({"block_out_channels": (320, 640, 1280, 10**6)}, "from 1 to 4096"),
        ({"head_dim": 48}, "divide by head_dim 48, got 320"),
        ({"block_out_channels": (32,) * 9, "attention_levels": (False,) * 9}, "1 to 8 levels"),
        ({"layers_per_block": 0}, "layers per block"),
        ({"in_channels": 0}, "1 to 4096 UNet channels, got 0"),
        ({"norm_groups": 0}, "at least 1 normalisation group"),
    ],
)
def test_impossible_unets(fields: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        UNetArch(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timestep": 1000}, "timestep from 0 to 999, got 1000"),
        ({"prediction": "sample"}, "epsilon, v_prediction, got 'sample'"),
        ({"front": "vae4"}, "front to be one of"),
        ({"c_out": math.nan}, "finite c_out"),
        ({"latent_scaling": 0.0}, "latent_scaling above 0"),
        ({"front": "pixel_unshuffle8"}, "192 channels with front pixel_unshuffle8, got 16"),
        ({"cell_px": 1}, "2, 4, 8 or 16 pixels per latent cell, got 1"),
        ({"cell_px": 12}, "2, 4, 8 or 16 pixels per latent cell, got 12"),
    ],
)
def test_impossible_specs(fields: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelSpec(arch=UNetArch(), **fields)  # type: ignore[arg-type]


def test_skip_needs_equal_channels() -> None:
    arch = UNetArch(in_channels=192, out_channels=16)
    assert ModelSpec(arch=arch, front="pixel_unshuffle8", c_skip=0.0, c_out=1.0).needs_vae
    with pytest.raises(CheckpointError, match="c_skip 0"):
        ModelSpec(arch=arch, front="pixel_unshuffle8")


def test_pixel_shuffle_has_cells_of_8_pixels() -> None:
    arch = UNetArch(in_channels=192, out_channels=192)
    with pytest.raises(CheckpointError, match="cell_px 8 with back pixel_shuffle8, got 4"):
        ModelSpec(arch=arch, back="pixel_shuffle8", cell_px=4)


@pytest.mark.parametrize("levels", range(1, 9))
def test_a_vae_doubles_the_pixels_per_cell_with_each_level(levels: int) -> None:
    arch = VAEArch(block_out_channels=(32,) * levels)
    assert arch.spatial_factor == 2 ** (levels - 1)
    if levels in (2, 3, 4, 5):
        assert VAESpec(arch=arch).arch == arch
    else:
        with pytest.raises(CheckpointError, match=f"8 or 16 pixels per latent cell, got {arch.spatial_factor}"):
            VAESpec(arch=arch)


def test_attention_in_the_middle_needs_a_middle() -> None:
    with pytest.raises(CheckpointError, match="mid_attention false in a VAE without a middle block"):
        VAEArch(mid_block=False)
