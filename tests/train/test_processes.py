"""Several processes: the same run as one, over gloo as on a GPU over NCCL."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gendr_core.checkpoint import read_unet, write_unet
from gendr_core.nets import UNet
from gendr_core.spec import ModelSpec
from gendr_train.cli import EXIT_OK, main
from gendr_train.config import resolved
from gendr_train.schema import TrainConfig
from gendr_train.settings import RestorationSettings

MakeConfig = Callable[..., TrainConfig]


def _lines(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "test" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "images_per_s"} for line in lines]


def _write_start(folder: Path, config: TrainConfig) -> Path:
    assert isinstance(config.stage, RestorationSettings)
    torch.manual_seed(0)
    unet = UNet(config.stage.network)
    spec = ModelSpec(
        arch=config.stage.network, front="pixel_unshuffle8", back="pixel_shuffle8", latent_scaling=1.0, c_skip=1.0
    )
    path = folder / "start.safetensors"
    write_unet(path, spec, unet.state_dict(), torch.randn(1, config.stage.network.cross_attention_dim))
    return path


def test_two_processes_give_the_losses_of_one_at_the_same_batch_in_all(make_config: MakeConfig, tmp_path: Path) -> None:
    # From a file: the statistics that a fresh start is made from would be taken over more images in other processes.
    settings = {"adversary": {"channels": 4, "layers": 1}, "init": str(_write_start(tmp_path, make_config("pixel")))}
    config = make_config("pixel", pixel=settings, loop={"images": 12, "log_every": 4, "validate_every": 8})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(resolved(config)), encoding="utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["pixel", str(path), "--out", str(one), "--set", "data.batch=4"]) == EXIT_OK
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "gendr_train", "pixel", str(path), "--out", str(two), "--set", "data.batch=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = _lines(one), _lines(two)
    assert [entry["images"] for entry in first] == [entry["images"] for entry in second]
    for entry, other in zip(first, second, strict=True):
        assert {k: v for k, v in other.items() if k != "kind"} == pytest.approx(
            {k: v for k, v in entry.items() if k != "kind"}, rel=1e-4, abs=1e-6
        )
    assert read_unet(one / "test.safetensors").spec.arch == read_unet(two / "test.safetensors").spec.arch
