"""Damaged images from files: found, checked, and cut as their originals are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gendr_core.errors import ImageError, OptionError
from gendr_train.data.dataset import TrainingCrops
from gendr_train.schema import TrainConfig

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Path]:
    """Originals of 4x4 blocks of one colour, and the colours: a crop on the grid shrinks to its damaged version."""
    originals, damaged = tmp_path / "originals" / "sub", tmp_path / "damaged" / "sub"
    generator = np.random.default_rng(0)
    for folder in (originals, damaged):
        folder.mkdir(parents=True)
    for i in range(2):
        small = generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(small).save(damaged / f"{i}.png")
        Image.fromarray(small.repeat(4, axis=0).repeat(4, axis=1)).save(originals / f"{i}.webp", lossless=True)
    return tmp_path / "originals", tmp_path / "damaged"


def crops(make_config: MakeConfig, pairs: tuple[Path, Path], **data: object) -> TrainingCrops:
    section = {"folders": [str(pairs[0])], "damaged": str(pairs[1]), **data}
    config = make_config("pixel", data=section)
    return TrainingCrops(config.data, config.degradation, seed=1, start=0, stop=24)


@pytest.mark.parametrize("shuffle", [0.0, 1.0])
def test_both_get_the_same_cut(make_config: MakeConfig, pairs: tuple[Path, Path], shuffle: float) -> None:
    rows = crops(make_config, pairs, color_shuffle=shuffle)
    for item in (rows[i] for i in range(24)):
        assert item.damaged.shape == (3, 16, 16)
        assert torch.equal(item.original[:, ::4, ::4].to(torch.float32) / 255.0, item.damaged)


def test_a_missing_or_foreign_version_is_named(make_config: MakeConfig, pairs: tuple[Path, Path]) -> None:
    (pairs[1] / "sub" / "1.png").rename(pairs[1] / "sub" / "2.png")
    rows = crops(make_config, pairs)
    with pytest.raises(ImageError, match=r"damaged version of .*1\.webp, got none at .*1\.\*"):
        [rows[i] for i in range(2)]
    Image.new("RGB", (20, 20)).save(pairs[1] / "sub" / "1.png")
    with pytest.raises(ImageError, match="expected 20x24 pixels for an original of 80x96, got 20x20 in"):
        [rows[i] for i in range(2)]
    with pytest.raises(ImageError, match=r"set data\.damaged"):
        crops(make_config, pairs, damaged=str(pairs[1] / "absent"))


def test_options_that_cannot_go_together_are_refused(make_config: MakeConfig, pairs: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError, match=r"expected data\.damaged beside one folder"):
        crops(make_config, pairs, damage_on="device")
