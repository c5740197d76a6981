"""Which files go through the networks together, told by their headers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import picture
from hypothesis import given
from hypothesis import strategies as st
from networks import tiny_unet

from gendr_core.cli import groups
from gendr_core.cli.files import Job
from gendr_core.cli.groups import Header, group_jobs, may_be_read_ahead, read_header
from gendr_core.cli.options import Models
from gendr_core.config import MemoryOptions, RestoreOptions
from gendr_core.geometry import Extent
from gendr_core.image_io import write_image

MODELS = Models(
    unet=tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8", scale=2.0),
    vae=None,
    unet_path=Path("unet.safetensors"),
    vae_path=None,
    device=torch.device("cpu"),
    load_s=0.0,
)
ON_CUDA = replace(MODELS, device=torch.device("cuda"))
KINDS = ((3, 6, 9), (3, 9, 6), (1, 6, 9), (4, 6, 9))
"""Channels, height and width."""


def jobs_of(folder: Path, names: list[str]) -> list[Job]:
    return [Job(source=folder / name, target=folder / "out" / f"{index}.png") for index, name in enumerate(names)]


def asked(size: int) -> RestoreOptions:
    return RestoreOptions(memory=MemoryOptions(frame_batch=size))


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 PNG files called by their kind and number, three of each kind."""
    folder = tmp_path_factory.mktemp("alike")
    for kind, shape in enumerate(KINDS):
        for number in range(3):
            write_image(folder / f"{kind}{number}.png", picture(*shape))
    return folder


@given(order=st.permutations(range(12)), size=st.integers(1, 4))
def test_alike_files_fill_groups_in_the_order_of_their_first(alike: Path, order: list[int], size: int) -> None:
    jobs = jobs_of(alike, [f"{index // 3}{index % 3}.png" for index in order])
    found = group_jobs(jobs, MODELS, asked(size))
    assert sorted(jobs.index(job) for group in found for job in group) == list(range(12))
    firsts = [jobs.index(group[0]) for group in found]
    assert firsts == sorted(firsts)
    for kind in range(4):
        of_kind = [group for group in found if group[0].source.name.startswith(str(kind))]
        assert {job.source.name[0] for group in of_kind for job in group} == {str(kind)}
        members = [job for group in of_kind for job in group]
        assert members == [job for job in jobs if job.source.name.startswith(str(kind))]
        assert [len(group) for group in of_kind] == {1: [1, 1, 1], 2: [2, 1]}.get(size, [3])


def test_what_headers_do_not_tell_stays_alone(tmp_path: Path) -> None:
    for number in range(2):
        write_image(tmp_path / f"{number}.tif", picture())
        write_image(tmp_path / f"{number}.png", picture())
        (tmp_path / f"broken{number}.png").write_bytes(b"")
        (tmp_path / f"{number}.pdf").write_bytes(b"no image")
    names = ["0.tif", "1.tif", "0.png", "broken0.png", "broken1.png", "0.pdf", "1.pdf", "1.png"]
    found = group_jobs(jobs_of(tmp_path, names), MODELS, asked(9))
    assert [[job.source.name for job in group] for group in found] == [
        *(["0.tif"], ["1.tif"], ["0.png", "1.png"]),
        *(["broken0.png"], ["broken1.png"], ["0.pdf"], ["1.pdf"]),
    ]


def test_without_reason_no_header_is_read(alike: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(groups, "read_header")
    jobs = jobs_of(alike, ["00.png", "01.png"])
    for models, options in ((MODELS, RestoreOptions()), (MODELS, asked(1)), (ON_CUDA, asked(1))):
        assert group_jobs(jobs, models, options) == [[jobs[0]], [jobs[1]]]


@pytest.mark.parametrize(("edge", "sizes"), [(18, [12]), (144, [12]), (576, [4, 4, 4]), (900, [1] * 12)])
def test_on_cuda_a_megapixel_goes_together(edge: int, sizes: list[int], alike: Path) -> None:
    """One frame of 9 x 6 pixels fills 64 x 64, 192 x 128, 576 x 384 or 960 x 640."""
    jobs = jobs_of(alike, ["00.png", "01.png", "02.png"] * 4)
    found = group_jobs(jobs, ON_CUDA, RestoreOptions(longest_edge=edge))
    assert [len(group) for group in found] == sizes


def test_a_group_is_no_more_than_may_wait(alike: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(alike, ["00.png", "01.png", "02.png"] * 2)
    # Inputs count as RGBA; outputs have twice their edges and the channels that they have.
    monkeypatch.setattr(groups, "AHEAD_BYTES", 5 * (6 * 9 * 16) - 1)
    assert [len(group) for group in group_jobs(jobs, MODELS, asked(6))] == [4, 2]
    monkeypatch.setattr(groups, "BEHIND_BYTES", 3 * (12 * 18 * 12))
    assert [len(group) for group in group_jobs(jobs, MODELS, asked(6))] == [3, 3]
    monkeypatch.setattr(groups, "AHEAD_BYTES", 6 * 9 * 16 - 1)
    assert [len(group) for group in group_jobs(jobs, MODELS, asked(6))] == [1] * 6
    assert not may_be_read_ahead(jobs[:1])
    monkeypatch.setattr(groups, "AHEAD_BYTES", 6 * 9 * 16)
    assert may_be_read_ahead(jobs[:1])


def test_an_output_beyond_all_bounds_is_nothing_to_group(alike: Path) -> None:
    jobs = jobs_of(alike, ["00.png", "01.png"])
    options = RestoreOptions(longest_edge=40000, memory=MemoryOptions(frame_batch=2))
    assert group_jobs(jobs, MODELS, options) == [[jobs[0]], [jobs[1]]]


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 16), (3, 8), (3, 16), (4, 8), (4, 16)])
def test_headers_promise_what_is_read(channels: int, bits: int, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    write_image(path, picture(channels), 8 if bits == 8 else 16)
    assert read_header(path) == Header(Extent(6, 9), channels)


def test_palettes_with_transparency_have_alpha(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("P", (9, 6))
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert read_header(tmp_path / "opaque.png") == Header(Extent(6, 9), 3)
    assert read_header(tmp_path / "clear.png") == Header(Extent(6, 9), 4)
