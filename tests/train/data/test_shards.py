"""Tar shards: webdataset's layout, the images of folders, and a row that can be entered anywhere."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gendr_core.errors import ImageError
from gendr_train.data.dataset import TrainingCrops, training_batches
from gendr_train.data.images import FolderImages, decode_rgb, find_images
from gendr_train.data.shards import ShardImages, find_shards
from gendr_train.degradations import Degradation
from gendr_train.schema import DataConfig


def _write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def _png(level: int, side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (level, 255 - level, 90)).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three shards with 3, 5 and 2 images of 64x64; even ones have captions."""
    folder = tmp_path_factory.mktemp("shards")
    number = 0
    for shard, count in enumerate((3, 5, 2)):
        members: dict[str, bytes] = {}
        for _ in range(count):
            members[f"some/{number:03}.PNG"] = _png(number)
            if number % 2 == 0:
                members[f"some/{number:03}.txt"] = f" picture\n{number} ".encode()
            members[f"some/{number:03}.json"] = b"{}"
            number += 1
        _write_tar(folder / f"part-{shard:02}.tar", members)
    return folder


def _images(shards: Path, seed: int = 1, shuffle_images: int = 4) -> ShardImages:
    return ShardImages(find_shards([str(shards)]), seed, shuffle_images=shuffle_images)


def _crops(shards: Path, start: int, **changes: object) -> TrainingCrops:
    data = DataConfig(**{"shards": (str(shards),), "crop_px": 64, "batch": 2, "workers": 0, **changes})  # type: ignore[arg-type]
    return TrainingCrops(data, Degradation(), seed=1, start=start, stop=25)


def test_members_and_captions_are_read(shards: Path) -> None:
    images = _images(shards)
    assert len(images) == 10
    for index in range(10):
        encoded, caption = images.read(index)
        assert encoded == _png(index)
        assert caption == (f"picture {index}" if index % 2 == 0 else "")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**40), shuffle_images=st.integers(1, 12), epoch=st.integers(0, 5))
def test_every_round_sees_every_image_once(shards: Path, seed: int, shuffle_images: int, epoch: int) -> None:
    images = _images(shards, seed, shuffle_images)
    assert sorted(images.at(10 * epoch + i) for i in range(10)) == list(range(10))


def test_the_order_depends_on_seed_and_place_only(shards: Path) -> None:
    straight = [_images(shards).at(position) for position in range(40)]
    images = _images(shards)
    assert [images.at(position) for position in reversed(range(40))] == straight[::-1]
    assert straight[:10] != straight[10:20]
    assert straight != [_images(shards, seed=2).at(position) for position in range(40)]


def test_a_resumed_row_is_the_unbroken_one(shards: Path) -> None:
    unbroken = _crops(shards, 0)
    for start in (1, 9, 10, 13):
        for index in range(5):
            one, same = unbroken[start + index], _crops(shards, start)[index]
            assert torch.equal(one.original, same.original)
            assert torch.equal(one.damaged, same.damaged)
            assert (int(one.position), one.caption) == (start + index, same.caption)


def test_worker_processes_give_the_same_batches(shards: Path) -> None:
    here, there = (
        list(
            training_batches(
                DataConfig(shards=(str(shards),), crop_px=64, batch=3, workers=workers),
                Degradation(),
                seed=2,
                start=4,
                stop=14,
            )
        )
        for workers in (0, 2)
    )
    assert len(here) == len(there) == 3
    for one, same in zip(here, there, strict=True):
        assert torch.equal(one.damaged, same.damaged)
        assert one.position.tolist() == same.position.tolist()
        assert one.caption == same.caption


def test_shards_and_folders_hold_the_same_images(photos: Path, tmp_path: Path) -> None:
    folder = FolderImages(find_images([str(photos)]), 0)
    members = {path.name: path.read_bytes() for path in sorted(photos.glob("*.png"))}
    tar = ShardImages([_write_tar(tmp_path / "photos.tar", members)], 0)
    assert len(tar) == len(folder) == 3
    for index in range(3):
        one, same = (decode_rgb(source.read(index)[0], source.name(index)) for source in (folder, tar))
        assert torch.equal(one, same)


def test_shards_are_named_in_braces_or_by_folder(shards: Path, tmp_path: Path) -> None:
    braces = find_shards([str(shards / "part-{01..02}.tar")])
    assert [path.name for path in braces] == ["part-01.tar", "part-02.tar"]
    assert len(find_shards([str(shards)])) == 3
    for absent in (tmp_path, tmp_path / "absent.tar"):
        with pytest.raises(ImageError, match="tar file or a folder of tar files, got"):
            find_shards([str(absent)])


def test_shards_of_no_use_are_named(tmp_path: Path) -> None:
    for name, members, message in (
        ("empty", {"a/": b""}, "images in .*empty.tar, got none"),
        ("texts", {"a.txt": b"x"}, "one image .* got 0 for a"),
        ("twins", {"a.png": b"x", "a.jpg": b"y"}, "got 2 for a"),
        ("again", {"a.png": b"x", "a.PNG": b"y"}, "unlike members"),
    ):
        with pytest.raises(ImageError, match=message):
            ShardImages([_write_tar(tmp_path / f"{name}.tar", members)], 0)
    (tmp_path / "no.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ImageError, match=r"uncompressed tar file .* got .*no\.tar"):
        ShardImages([tmp_path / "no.tar"], 0)
    small = _write_tar(tmp_path / "small.tar", {"a.png": _png(1, side=32)})
    with pytest.raises(ImageError, match=r"at least 64 pixels a side, got 32x32 in .*small\.tar at byte 512"):
        _crops(small, 0)[0]
