"""Training crops: a function of (seed, index) and of nothing else."""

from pathlib import Path

import pytest
import torch

from gendr_core.errors import ImageError
from gendr_train.data.dataset import TrainingCrops, find_images, read_rgb, training_batches
from gendr_train.schema import DataConfig, Degradation


def _data(photos: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"folders": (str(photos),), "crop_px": 64, "batch": 2, "workers": 0, **changes})  # type: ignore[arg-type]


def _crops(photos: Path, seed: int = 1, start: int = 0, **changes: object) -> TrainingCrops:
    return TrainingCrops(_data(photos, **changes), Degradation(), seed=seed, start=start, stop=20)


def test_items_depend_on_seed_and_index_only(photos: Path) -> None:
    straight = [_crops(photos)[i] for i in range(8)]
    crops = _crops(photos, cache=False)
    backwards = [crops[i] for i in reversed(range(8))][::-1]
    for one, same in zip(straight, backwards, strict=True):
        assert torch.equal(one.original, same.original)
        assert torch.equal(one.damaged, same.damaged)
    assert not torch.equal(straight[0].damaged, _crops(photos, seed=2)[0].damaged)


def test_a_late_start_goes_on_where_an_early_one_would_be(photos: Path) -> None:
    late = _crops(photos, start=7)
    assert len(late) == 13
    assert torch.equal(late[0].damaged, _crops(photos)[7].damaged)


def test_every_image_is_seen_once_per_round(photos: Path) -> None:
    crops = _crops(photos)
    for start in (0, 3, 6):
        assert sorted(crops._file_at(start + i) for i in range(3)) == [0, 1, 2]


def test_shapes_and_types(photos: Path) -> None:
    item = _crops(photos)[0]
    assert (item.original.shape, item.original.dtype) == ((3, 64, 64), torch.uint8)
    assert (item.damaged.shape, item.damaged.dtype) == ((3, 16, 16), torch.float32)


def test_shuffled_colours_are_the_same_planes_in_another_order(photos: Path) -> None:
    plain, shuffled = _crops(photos), _crops(photos, color_shuffle=1.0)
    orders: set[tuple[int, ...]] = set()
    for i in range(12):
        before, after = plain[i].original, shuffled[i].original
        matches = [[j for j in range(3) if torch.equal(plane, before[j])] for plane in after]
        assert all(matches)
        orders.add(tuple(match[0] for match in matches))
    assert len(orders) > 2


def test_a_worker_process_gives_the_same_batches(photos: Path) -> None:
    options = {"seed": 1, "start": 2, "stop": 9}
    here = list(training_batches(_data(photos), Degradation(), **options))
    there = list(training_batches(_data(photos, workers=1), Degradation(), **options))
    assert len(here) == len(there) == 3
    for one, same in zip(here, there, strict=True):
        assert torch.equal(one.original, same.original)
        assert torch.equal(one.damaged, same.damaged)


def test_folders_and_files_of_no_use_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="expected a folder of images, got"):
        find_images([str(tmp_path / "absent")])
    with pytest.raises(ImageError, match="got none"):
        find_images([str(tmp_path)])
    with pytest.raises(ImageError, match="at least 128 pixels a side, got 96x80"):
        read_rgb(photos / "0.png", 128)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="readable image"):
        read_rgb(tmp_path / "broken.png", 1)
