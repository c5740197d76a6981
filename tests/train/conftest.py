"""Fixtures of the training tests: photos made on the spot, and runs small enough for seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gendr_train.config import parse_config
from gendr_train.schema import TrainConfig

MakeConfig = Callable[..., TrainConfig]

UNET = {
    "block_out_channels": [8, 16],
    "attention_levels": [False, True],
    "layers_per_block": 1,
    "head_dim": 8,
    "cross_attention_dim": 8,
    "norm_groups": 4,
}
VAE = {
    "latent_channels": 4,
    "block_out_channels": [4, 4, 8, 8],
    "layers_per_block": 1,
    "norm_groups": 4,
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three 80x96 pictures: smooth colours with an edge each."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:80, 0:96]
    for i in range(3):
        planes = [np.sin(x / (7 + i)) * 60 + 128, np.cos(y / (5 + i)) * 60 + 128, (x > 30 + 10 * i) * 120 + 60]
        Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def make_config(photos: Path, tmp_path: Path) -> MakeConfig:
    """Return a maker of tiny runs; keyword arguments replace values inside sections."""

    def make(stage: str = "pixel", **sections: object) -> TrainConfig:
        channels = {"pixel": 192, "latent": 4}.get(stage)
        network = VAE if stage == "vae16" else {**UNET, "in_channels": channels, "out_channels": channels}
        tree: dict[str, Any] = {
            "run": {"name": "test", "output": str(tmp_path), "seed": 3, "stage": stage},
            "data": {
                "folders": [str(photos)],
                "validation_folder": str(photos),
                "validation_images": 1,
                "validation_crop_px": 64,
                "crop_px": 64,
                "batch": 2,
                "workers": 0,
            },
            stage: {"network": network} if stage in ("pixel", "latent", "vae16") else {},
            "optimiser": {"lr": 1e-3, "warmup_images": 0},
            "loop": {"images": 8, "log_every": 2, "validate_every": 1000, "save_every": 1000},
        }
        for name, value in sections.items():
            tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
        return parse_config(tree)

    return make


@pytest.fixture(autouse=True)
def _small_and_single(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on one thread, as tiny networks gain nothing from more; 4 x 64 positions suffice to whiten 192 channels."""
    torch.set_num_threads(1)
    monkeypatch.setattr("gendr_train.loop.BEGIN_IMAGES", 4)
