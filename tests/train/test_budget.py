"""What a dry run says, against published counts and sums made by hand."""

from pathlib import Path
from typing import Any

import pytest

from gendr_core.spec import UNetArch, VAEArch
from gendr_train.budget import GPUS, SUSTAINED_TFLOPS, UTILISATION, Budget, budget, estimate
from gendr_train.config import load_config, parse_config
from gendr_train.schema import TrainConfig
from gendr_train.sections import LoraConfig
from gendr_train.shapes import Pass, cost, num_adapter_parameters, num_parameters

CONFIGS = Path(__file__).parents[2] / "configs"


def tiny(**loop: object) -> TrainConfig:
    """Return a run of stage pixel on 64x64 pixels."""
    network: dict[str, Any] = {
        "in_channels": 192,
        "out_channels": 192,
        "block_out_channels": [8, 16],
        "attention_levels": [False, True],
        "layers_per_block": 1,
        "head_dim": 8,
        "cross_attention_dim": 8,
        "norm_groups": 4,
    }
    return parse_config(
        {
            "run": {"name": "tiny", "stage": "pixel"},
            "data": {"folders": ["photos"], "crop_px": 64, "batch": 2},
            "loop": {"images": 1000, **loop},
            "pixel": {"network": network},
        }
    )


@pytest.fixture(scope="module")
def small() -> Budget:
    """Return the budget of the tiny run."""
    return budget(tiny())


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        (UNetArch(), 865_979_856),
        (UNetArch(in_channels=192, out_channels=192), 866_993_792),
        (VAEArch(), 57_266_643),
    ],
)
def test_full_size_networks_have_the_published_counts(arch: UNetArch | VAEArch, count: int) -> None:
    assert num_parameters(arch) == count


def test_an_adapter_has_rank_times_both_sides_of_every_layer() -> None:
    arch = UNetArch(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8,),
        attention_levels=(False,),
        layers_per_block=1,
        head_dim=8,
        cross_attention_dim=8,
        norm_groups=4,
    )
    # A layer of k x k taps from a to b channels: rank * (k k a + b). Ends, down, middle, up (16 channels in).
    ends = (36 + 8) + (72 + 4)
    resnet = 2 * (72 + 8)
    up = (144 + 8) + (72 + 8) + (16 + 8)
    transformer = 2 * 16 + 2 * 4 * 16 + (8 + 64) + (32 + 8)
    middle = 2 * resnet + transformer
    assert num_adapter_parameters(arch, LoraConfig(rank=1, alpha=1), "middle") == (36 + 8) + resnet + middle
    assert num_adapter_parameters(arch, LoraConfig(rank=3, alpha=1), "whole") == 3 * (ends + resnet + middle + 2 * up)


@pytest.mark.slow
def test_work_of_the_full_size_unet() -> None:
    one = Pass(network=UNetArch(), images=1, channels=16, side=64, tokens=77, learns=True)
    found = cost(one, checkpointing=False, precision="bf16")
    # docs/algorithm.md, D2. Backward: two products for each of the forward pass, five for two in attention.
    assert found.forward_flops == pytest.approx((0.679 + 0.126) * 1e12, rel=2e-3)
    assert found.backward_flops == pytest.approx((2 * 0.679 + 2.5 * 0.126) * 1e12, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "channels", "side", "tflop"), [("encode", 3, 512, 0.676), ("decode", 16, 64, 1.213)])
def test_work_of_the_full_size_vae(part: Any, channels: int, side: int, tflop: float) -> None:
    one = Pass(network=VAEArch(), part=part, images=1, channels=channels, side=side)
    assert cost(one, checkpointing=False, precision="bf16").forward_flops == pytest.approx(tflop * 1e12, rel=2e-3)


def test_memory_of_every_kind_is_bytes_times_parameters(small: Budget) -> None:
    count = small.num_trained
    one, ddp = small.memory["one GPU"], small.memory["DDP"]
    assert one[:4] == (4 * count, 4 * count, 8 * count, 4 * count)
    assert ddp.gradients == 8 * count
    assert one.total == sum(one)
    fsdp = small.memory["FSDP over 8, checkpointing"]
    assert [8 * part for part in fsdp[:4]] == pytest.approx(one[:4], abs=8)


def test_checkpointing_takes_less_memory_and_more_work(small: Budget) -> None:
    twice = budget(tiny(checkpointing=True))
    assert twice.memory["one GPU"].activations < small.memory["one GPU"].activations
    assert small.flops_per_image < twice.flops_per_image < 1.34 * small.flops_per_image


def test_days_follow_from_work_images_and_rate(small: Budget) -> None:
    seconds = small.flops_per_image * 1000 / (250e12 * UTILISATION)
    assert small.days("A100", 1) == pytest.approx(seconds / 86_400)
    assert small.days("A100", 64) == pytest.approx(seconds / 86_400 / 64)


def test_the_text_names_all_that_was_found(small: Budget) -> None:
    text = estimate(tiny())
    for name in (*small.trained, *small.memory, *small.work, *SUSTAINED_TFLOPS, f"{max(GPUS)} GPUs"):
        assert name in text
    assert f"{small.num_trained:,}" in text


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae16", "base", "cida", "adc", "pix"])
def test_full_size_runs_are_estimated_without_their_files(stage: str) -> None:
    assert "in all" in estimate(load_config(CONFIGS / f"gendr_{stage}.yaml"))
