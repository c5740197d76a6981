"""Every file in configs/ is a run, and those of the full size have the published networks."""

from itertools import pairwise
from pathlib import Path

import pytest

from gendr_core.nets import VAE, UNet
from gendr_core.spec import UNetArch, VAEArch
from gendr_train.config import load_config
from gendr_train.sections import LoraConfig
from gendr_train.settings import BaseSettings, CidaSettings, Vae16Settings

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("vae16", "base", "cida", "adc", "pix")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_a_run_of_its_name(path: Path) -> None:
    assert load_config(path).run.name == path.stem


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_size_config_is_named_by_its_stage(stage: str) -> None:
    config = load_config(CONFIGS / f"gendr_{stage}.yaml")
    assert config.run.stage == stage
    assert config.loop.precision == "bf16"


def test_full_size_networks_have_the_published_counts() -> None:
    base, vae = (load_config(CONFIGS / f"gendr_{stage}.yaml").stage for stage in ("base", "vae16"))
    assert isinstance(base, BaseSettings)
    assert isinstance(vae, Vae16Settings)
    assert (base.network, vae.network) == (UNetArch(), VAEArch())
    assert sum(parameter.numel() for parameter in UNet(base.network, device="meta").parameters()) == 865_979_856
    assert sum(parameter.numel() for parameter in VAE(vae.network, device="meta").parameters()) == 57_266_643


def test_the_adapters_are_those_of_the_paper() -> None:
    settings = load_config(CONFIGS / "gendr_cida.yaml").stage
    assert isinstance(settings, CidaSettings)
    assert settings.lora == LoraConfig(rank=64, alpha=128)


@pytest.mark.parametrize("chain", ["gendr", "mini"])
def test_each_stage_of_a_chain_starts_from_the_file_of_the_one_before(chain: str) -> None:
    stages = STAGES[1:]
    configs = [load_config(CONFIGS / f"{chain}_{stage}.yaml") for stage in stages]
    for before, after in pairwise(configs):
        key = "base" if after.run.stage == "cida" else "teacher"
        assert getattr(after.stage, key) == f"{before.run.output}/{before.run.name}.safetensors"
    vae = "vae"
    assert len({getattr(config.stage, vae) for config in configs}) == 1
