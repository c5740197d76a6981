"""The hand-made mirror of the stages against the stages themselves, run on tensors without memory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import tiny_unet, tiny_vae
from torch import Tensor

from gendr_core.checkpoint import write_unet, write_vae
from gendr_core.nets import UNet
from gendr_train.config import parse_config
from gendr_train.data.dataset import Batch
from gendr_train.frames import TrainingFrame
from gendr_train.meter import PassCost, measure_pass
from gendr_train.passes import update_of
from gendr_train.rng import Draws
from gendr_train.schema import TrainConfig
from gendr_train.shapes import cost
from gendr_train.stages.build import build_stage

IMAGES, CROP = 2, 64
NETWORK = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "attention_levels": [False, True],
    "layers_per_block": 1,
    "head_dim": 8,
    "cross_attention_dim": 8,
    "norm_groups": 4,
}
VAE = {"latent_channels": 4, "block_out_channels": [4, 4, 8, 8], "layers_per_block": 1, "norm_groups": 4}


class HalfMetaDraws(Draws):
    """Draws on the meta device, but for the padding of stage pix, whose values decide shapes."""

    def integers(self, low: int, high: int) -> Tensor:
        """Return the lowest number for each image."""
        drawn = torch.full((IMAGES,), low)
        return drawn if high == 8 else drawn.to("meta")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a VAE, a UNet on its latents, and one from unshuffled pixels to them."""
    folder = tmp_path_factory.mktemp("weights")
    vae, base = tiny_vae(), tiny_unet(4, negative=True)
    write_vae(folder / "vae.safetensors", vae.spec, vae.network.state_dict())
    write_unet(folder / "base.safetensors", base.spec, base.network.state_dict(), base.positive, base.negative)
    arch = replace(base.spec.arch, in_channels=192)
    spec = replace(base.spec, arch=arch, c_skip=0.0, front="pixel_unshuffle8")
    write_unet(folder / "adc.safetensors", spec, UNet(arch).state_dict(), base.positive)
    return folder


def config_of(files: Path, stage: str, section: dict[str, Any]) -> TrainConfig:
    """Return a run whose weights are in ``files``, which ``{}`` in a value stands for."""
    text = json.dumps({stage: section}).replace("{}", str(files))
    return parse_config(
        {
            "run": {"name": "test", "stage": stage},
            "data": {"folders": ["photos"], "crop_px": CROP, "batch": IMAGES},
            "loop": {"images": 100},
            **json.loads(text),
        }
    )


def measured(config: TrainConfig) -> PassCost:
    """Return the cost of one update of the real stage, moved to the meta device."""
    stage = build_stage(config).to("meta")
    original = torch.empty(IMAGES, 3, CROP, CROP, dtype=torch.uint8, device="meta")
    damaged = torch.empty(IMAGES, 3, CROP // 4, CROP // 4, device="meta")
    batch = Batch(original, damaged, torch.arange(IMAGES), [""] * IMAGES)
    draws = HalfMetaDraws(0, range(IMAGES), torch.device("meta"))

    def run(_: TrainingFrame) -> Tensor:
        return torch.stack([loss.mean() for loss in stage(batch, draws, 100).values()]).sum()

    return measure_pass(stage, run, differentiates=True, precision="fp32", frame=TrainingFrame)


VAE_FILE, FEATURES = "{}/vae.safetensors", {"kind": "vae16", "name": "{}/vae.safetensors", "layers": [1]}
ALIGNMENT = {"features": FEATURES, "hidden": 8}
PERCEPTUAL = {"losses": {"perceptual": 1.0}, "features": FEATURES}
CIDA = {"base": "{}/base.safetensors", "vae": VAE_FILE, "lora": {"rank": 2, "alpha": 4}}


@pytest.mark.parametrize(
    ("stage", "section"),
    [
        ("vae16", {"network": VAE, **PERCEPTUAL}),
        ("vae16", {"network": VAE, "adversary": {"channels": 8, "layers": 2}}),
        ("latent", {"network": NETWORK, "vae": VAE_FILE, "latent": 1.0, **PERCEPTUAL}),
        ("latent", {"network": NETWORK, "vae": VAE_FILE, "latent": 1.0, "losses": {"charbonnier": 0.0}}),
        ("base", {"network": NETWORK, "vae": VAE_FILE, "alignment": ALIGNMENT}),
        ("cida", {**CIDA, "alignment": ALIGNMENT}),
        ("cida", {**CIDA, "distillation": "vsd", "real_rate": 0.0, "adversary_weight": 0.0}),
        ("cida", {**CIDA, "distillation": "sid", "guidance": 1.0}),
        ("adc", {"teacher": "{}/base.safetensors", "vae": VAE_FILE}),
        ("adc", {"teacher": "{}/base.safetensors", "vae": VAE_FILE, "decoded": {"l1": 1.0}, "adversary": 0.0}),
        ("pix", {"teacher": "{}/adc.safetensors", "vae": VAE_FILE}),
        ("pix", {"teacher": "{}/adc.safetensors", "vae": VAE_FILE, "adversary": 0.0, **PERCEPTUAL}),
    ],
)
def test_passes_add_up_to_the_stage(files: Path, stage: str, section: dict[str, Any]) -> None:
    config = config_of(files, stage, section)
    update, real = update_of(config), measured(config)
    costs = [cost(one, checkpointing=False, precision="fp32") for _, one in update.passes]
    assert sum(c.forward_flops for c in costs) == real.forward_flops
    assert sum(c.backward_flops for c in costs) == real.backward_flops
    kept = sum(c.kept_bytes for c in costs)
    # Losses keep some images too, which beside networks as small as these is much.
    assert 0.45 * real.kept_bytes < kept < 1.1 * real.kept_bytes


@pytest.mark.parametrize(
    ("stage", "section"),
    [
        ("vae16", {"network": VAE, "adversary": {"channels": 8, "layers": 2}}),
        ("cida", {**CIDA, "alignment": ALIGNMENT}),
        ("adc", {"teacher": "{}/base.safetensors", "vae": VAE_FILE}),
    ],
)
def test_trained_parameters_are_those_of_the_roles(files: Path, stage: str, section: dict[str, Any]) -> None:
    config = config_of(files, stage, section)
    roles = build_stage(config).roles()
    counts = {name: sum(parameter.numel() for parameter in role.parameters) for name, role in roles.items()}
    assert update_of(config).trained == counts


def test_missing_files_are_full_size_and_said_to_be() -> None:
    config = config_of(Path("nowhere"), "adc", {"teacher": "{}/cida.safetensors", "vae": VAE_FILE})
    update = update_of(config)
    assert update.beside == {"VAE": 57_266_643, "teacher": 865_979_856}
    assert [note.partition(" ")[0] for note in update.notes] == ["nowhere/vae.safetensors", "nowhere/cida.safetensors"]


def test_an_adversary_is_run_three_times(files: Path) -> None:
    config = config_of(files, "vae16", {"network": VAE, "adversary": {"channels": 8, "layers": 2}})
    passes = dict(update_of(config).passes)
    # 32x32 of 8 channels by 4x4x3, 16x16 of 16 by 4x4x8, 16x16 of 1 by 3x3x16; a multiply-add counts 2.
    flops = 2 * IMAGES * (32 * 32 * 8 * 48 + 16 * 16 * 16 * 128 + 16 * 16 * 144)
    pulls = cost(passes["discriminator pulls"], checkpointing=False, precision="fp32")
    assert pulls.forward_flops - flops < 0.01 * flops
    learns = [name for name, one in passes.items() if name.startswith("discriminator") and one.learns]
    assert len(learns) == 2
