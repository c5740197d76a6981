"""Configs: what is refused, and in which words."""

from pathlib import Path

import pytest

from gendr_core.errors import GenDRError, OptionError
from gendr_train.config import config_hash, load_config, parse_config, resolved
from gendr_train.degradations import PRESETS, Degradation
from gendr_train.sections import OneStep
from gendr_train.settings import SETTINGS, RestorationSettings

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
MINIMAL = """
run: {name: a, stage: pixel}
data: {folders: [photos]}
pixel: {network: {in_channels: 192, out_channels: 192, block_out_channels: [64], attention_levels: [false]}}
loop: {images: 1e3}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL.replace("1e3", "1000"), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config.stage, SETTINGS[config.run.stage])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.learning_rat=1", "optimiser.learning_rat: did you mean optimiser"),
        ("data.bacth=1", "did you mean data.batch"),
        ("dat.batch=1", "unknown key dat: did you mean data"),
        ("data.batch=many", "data.batch as int, got str 'many'"),
        ("data.batch=true", "data.batch as int, got bool True"),
        ("data.batch=0", "data.batch of at least 1, got 0"),
        ("data.crop_px=100", "multiple of 64, got 100"),
        ("data.folders=photos", "data.folders as a list, got str 'photos'"),
        ("data.folders=[1]", r"data.folders\[0\] as str, got int 1"),
        ("optimiser.betas=[0.9]", "2 values in optimiser.betas, got 1"),
        ("optimiser.final_lr=1", "final_lr <= lr"),
        ("loop.precision=fp8", "loop.precision to be one of fp32, bf16, got str 'fp8'"),
        ("loop.images=null", "loop.images as int, got NoneType None"),
        ("degradation=sunny", "one of photo, light, heavy, realesrgan, got 'sunny'"),
        ("degradation.jpeg_quality=[50, 40]", r"got \[50.0, 40.0\]"),
        ("degradation.noise_probability=2", "from 0 to 1, got 2"),
        ("pixel.network.in_channels=4", "expected 192 network in_channels and out_channels in pixels, got 4 and 192"),
        ("pixel.network.layers_per_block=99", "layers per block"),
        ("pixel.vae=file.safetensors", "vae in stage latent and none in stage pixel"),
        ("pixel.kl=1", "unknown key pixel.kl: did you mean pixel"),
        ("pixel.latent=1", "only in stage latent"),
        ("pixel.losses.l1=-1", "ImageLosses.l1 of at least 0, got -1"),
        ("pixel.losses.perceptual=1", "features beside the loss perceptual"),
        ("pixel.adversary.channels=0", "AdversaryConfig.channels of at least 1, got 0"),
        ("vae16.kl=1", "unknown key vae16: did you mean"),
        ("run.stage=vae", "run.stage to be one of vae16, pixel, latent, base, cida, adc, pix, got str 'vae'"),
        ("data.shards=[a.tar]", "data.folders or data.shards, got 1 folders and 1 shards"),
        ("run=fast", "named keys in run, got str 'fast'"),
        ("data.batch", "section.key=value, got 'data.batch'"),
        ("data.batch=[", "a YAML value"),
    ],
)
def test_wrong_values_are_named(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(GenDRError, match=message):
        load_config(minimal, [override])


def test_overrides_and_exponents(minimal: Path) -> None:
    config = load_config(minimal, ["optimiser.lr=1e-3", "degradation.preset=heavy", "degradation.gray_probability=1"])
    assert config.optimiser.lr == 0.001
    assert isinstance(config.degradation, Degradation)
    assert config.degradation.jpeg_quality == (30.0, 65.0)
    assert config.degradation.gray_probability == 1.0


def test_a_section_in_part_keeps_the_rest_of_what_stands_without_it(minimal: Path) -> None:
    config = load_config(minimal, ["pixel.one_step.timestep=1"])
    assert isinstance(config.stage, RestorationSettings)
    assert config.stage.one_step == OneStep(timestep=1, c_skip=1.0, c_out=1.0)


def test_missing_key_and_missing_file(minimal: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"expected the key run\.name"):
        parse_config({"run": {"stage": "vae16"}, "data": {"folders": ["a"]}})
    with pytest.raises(OptionError, match="readable config file"):
        load_config(tmp_path / "absent.yaml")
    minimal.write_text("run: [", encoding="utf-8")
    with pytest.raises(OptionError, match="expected YAML"):
        load_config(minimal)


def test_resolved_config_reads_back_and_hash_follows_values(minimal: Path) -> None:
    config = load_config(minimal)
    assert parse_config(resolved(config)) == config
    assert config_hash(parse_config(resolved(config))) == config_hash(config)
    assert config_hash(load_config(minimal, ["run.seed=1"])) != config_hash(config)
    second_order = load_config(minimal, ["degradation=realesrgan"])
    assert second_order.degradation == PRESETS["realesrgan"]
    assert parse_config(resolved(second_order)) == second_order
