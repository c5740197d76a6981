"""Several processes: the same run as one, over gloo as on a GPU over NCCL."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gendr_core.checkpoint import read_unet
from gendr_train.cli import EXIT_OK, main
from gendr_train.config import resolved
from gendr_train.schema import TrainConfig

MakeConfig = Callable[..., TrainConfig]


def _lines(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "test" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "images_per_s"} for line in lines]


def test_two_processes_give_the_losses_of_one_at_the_same_batch_in_all(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = {"adversary": {"channels": 4, "layers": 1}}
    config = make_config("pixel", pixel=settings, loop={"images": 12, "log_every": 4, "validate_every": 8})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(resolved(config)), encoding="utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["pixel", str(path), "--out", str(one), "--set", "data.batch=4"]) == EXIT_OK
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command = [*launch, "-m", "gendr_train", "pixel", str(path), "--out", str(two), "--set", "data.batch=2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    first, second = _lines(one), _lines(two)
    assert [entry["images"] for entry in first] == [entry["images"] for entry in second]
    for entry, other in zip(first, second, strict=True):
        assert {k: v for k, v in other.items() if k != "kind"} == pytest.approx(
            {k: v for k, v in entry.items() if k != "kind"}, rel=1e-4, abs=1e-6
        )
    assert read_unet(one / "test.safetensors").spec.arch == read_unet(two / "test.safetensors").spec.arch
