"""Training crops: a function of (seed, index) and of nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gendr_core.errors import ImageError
from gendr_train.data.damage import damage_batch
from gendr_train.data.dataset import TrainingCrops, training_batches
from gendr_train.data.images import FolderImages, decode_rgb, find_images, read_rgb
from gendr_train.degradations import Degradation, SecondOrder
from gendr_train.schema import DataConfig


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
    images = FolderImages(find_images([str(photos)]), 1)
    for start in (0, 3, 6):
        assert sorted(images.at(start + i) for i in range(3)) == [0, 1, 2]


def test_shapes_and_types(photos: Path) -> None:
    item = _crops(photos)[0]
    assert (item.original.shape, item.original.dtype) == ((3, 64, 64), torch.uint8)
    assert (item.damaged.shape, item.damaged.dtype) == ((3, 16, 16), torch.float32)


def test_the_row_is_the_one_that_earlier_runs_saw(photos: Path) -> None:
    # Recorded before folders became one of two sources: a change here changes what every config means.
    items = [_crops(photos)[i] for i in range(4)]
    assert [int(item.original.sum()) for item in items] == [1732928, 1625472, 1469184, 1600448]


def test_items_know_their_place_and_caption(photos: Path, tmp_path: Path) -> None:
    for name in "ab":
        Image.open(photos / "0.png").save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("  a red\n door ", encoding="utf-8")
    batches = list(training_batches(_data(tmp_path), Degradation(), seed=1, start=4, stop=8))
    assert [batch.position.tolist() for batch in batches] == [[4, 5], [6, 7]]
    assert [sorted(batch.caption) for batch in batches] == [["", "a red door"]] * 2
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ImageError, match=r"caption in UTF-8, got .*a\.txt"):
        list(training_batches(_data(tmp_path), Degradation(), seed=1, start=4, stop=8))


def _symmetries(folder: Path, *, turns: bool) -> set[bytes]:
    crops = _crops(folder, turns=turns)
    return {crops[i].original.numpy().tobytes() for i in range(60)}


def test_flips_and_turns(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy())).save(tmp_path / "a.png")
    mirrored = {picture.numpy().tobytes(), picture.flip(2).contiguous().numpy().tobytes()}
    assert _symmetries(tmp_path, turns=False) == mirrored
    every = _symmetries(tmp_path, turns=True)
    assert len(every) == 8
    assert every > mirrored


def test_large_images_are_shrunk_to_a_short_side(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (400, 200), (10, 90, 200)).save(path)
    for short, shape in ((100, (3, 100, 200)), (200, (3, 200, 400)), (300, (3, 200, 400)), (None, (3, 200, 400))):
        image = decode_rgb(path.read_bytes(), "a.png", short)
        assert image.shape == shape
        assert image[:, 0, 0].tolist() == [10, 90, 200]


def test_small_images_are_refused_or_left_out(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.open(photos / "0.png").save(tmp_path / "large.png")
    Image.new("RGB", (80, 32)).save(tmp_path / "small.png")
    with pytest.raises(ImageError, match=r"at least 64 pixels a side, got 80x32 in .*small\.png"):
        [_crops(tmp_path)[i] for i in range(2)]
    crops = _crops(tmp_path, skip_small=True)
    assert all(crops[i].original.any() for i in range(6))
    assert caplog.text.count("left out") == 1
    assert torch.equal(crops[5].original, _crops(tmp_path, skip_small=True, start=5)[0].original)
    (tmp_path / "large.png").unlink()
    with pytest.raises(ImageError, match="got none"):
        _crops(tmp_path, skip_small=True)[0]


def test_damage_on_the_device_is_that_of_the_workers_but_for_jpeg(photos: Path) -> None:
    options = {"seed": 1, "start": 3, "stop": 5}
    (there,) = training_batches(_data(photos), SecondOrder(), **options)
    (here,) = training_batches(_data(photos, damage_on="device"), SecondOrder(), **options)
    assert here.damaged.shape == (2, 3, 0, 0)
    assert torch.equal(here.original, there.original)
    damaged = damage_batch(here.original, here.position, SecondOrder(), 1)
    assert float((damaged - there.damaged).abs().mean()) * 255.0 < 3.0


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
