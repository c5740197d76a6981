"""The preview shows the first items of the row, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gendr_train.data.dataset import TrainingCrops
from gendr_train.degradations import SecondOrder
from gendr_train.errors import TrainingError
from gendr_train.preview import GAP_PX, write_preview
from gendr_train.schema import DataConfig


def test_originals_stand_beside_their_damage(photos: Path, tmp_path: Path) -> None:
    data = DataConfig(folders=(str(photos),), crop_px=64, batch=1, workers=0, damage_on="device")
    path = tmp_path / "new" / "preview.png"
    write_preview(data, SecondOrder(), seed=2, images=3, path=path)
    assert [file.name for file in path.parent.iterdir()] == ["preview.png"]
    with Image.open(path) as picture:
        pixels = torch.as_tensor(np.array(picture)).permute(2, 0, 1)
    assert pixels.shape == (3, 3 * 64 + 2 * GAP_PX, 128)
    crops = TrainingCrops(data, SecondOrder(), seed=2, start=0, stop=3)
    for i in range(3):
        row = pixels[:, i * (64 + GAP_PX) :][:, :64]
        assert torch.equal(row[:, :, :64], crops[i].original)
        assert not torch.equal(row[:, :, 64:], crops[i].original)


def test_pairs_fill_rows_and_the_rest_is_white(photos: Path, tmp_path: Path) -> None:
    data = DataConfig(folders=(str(photos),), crop_px=64, batch=1, workers=0)
    write_preview(data, SecondOrder(), seed=2, images=7, path=tmp_path / "preview.png")
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.size == (2 * 128 + GAP_PX, 4 * 64 + 3 * GAP_PX)
        assert np.array(picture)[-64:, -128:].min() == 255


def test_what_cannot_be_shown_or_written_is_said(photos: Path, tmp_path: Path) -> None:
    data = DataConfig(folders=(str(photos),), crop_px=64, batch=1, workers=0)
    with pytest.raises(TrainingError, match="at least 1 image to show, got 0"):
        write_preview(data, SecondOrder(), seed=2, images=0, path=tmp_path / "preview.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="place to write a picture"):
        write_preview(data, SecondOrder(), seed=2, images=1, path=tmp_path / "file" / "preview.png")
