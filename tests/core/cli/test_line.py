import io
import itertools
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile
import torch
from command_line import Run, picture
from PIL import Image, ImageCms
from tqdm import tqdm

from gendr_core import cli
from gendr_core.cli import bar, groups, line
from gendr_core.errors import OutOfMemoryError
from gendr_core.image_io import read_image, write_image
from gendr_core.pipeline import restore


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder with a.png to f.png, each of a width of its own: 4 to 9 pixels."""
    folder = tmp_path / "many"
    folder.mkdir()
    for index, name in enumerate("abcdef"):
        write_image(folder / f"{name}.png", picture(width=4 + index))
    return folder


def told(text: str) -> list[str]:
    """Return the names, without their type, of the inputs in lines of stdout or stderr."""
    return [Path(text_line.removeprefix("gendr: error: ").split(".png")[0]).name for text_line in text.splitlines()]


def test_many_files_become_what_each_becomes_alone(run: Run, many: Path, tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    code, out, err = run("restore", many, "-o", together)
    assert (code, err) == (0, "")
    assert told(out) == list("abcdef")
    for source in sorted(many.iterdir()):
        assert run("restore", source, "-o", alone / source.name, "--quiet") == (0, "", "")
        assert (together / source.name).read_bytes() == (alone / source.name).read_bytes()


def test_a_failure_in_any_stage_is_told_in_its_place(
    run: Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (many / "b.png").write_bytes((many / "b.png").read_bytes()[:60])
    out_folder = tmp_path / "out"
    (out_folder / "e.png").mkdir(parents=True)

    def tight(image: torch.Tensor, *arguments: object, **services: object) -> torch.Tensor:
        if image.shape[2] == 7:
            raise OutOfMemoryError("expected room for d")
        if image.shape[2] == 9:
            raise MemoryError
        return restore(image, *arguments, **services)  # pyright: ignore[reportArgumentType] as they came

    monkeypatch.setattr(line, "restore", tight)
    code, out, err = run("restore", many, "-o", out_folder, "--overwrite")
    assert code == 1
    assert told(out) == ["a", "c"]
    assert told(err) == ["b", "d", "e", "f"]
    for message in ("expected a whole image file", "expected room for d", "cannot write", "gendr plan"):
        assert message in err
    assert sorted(path.name for path in out_folder.iterdir()) == ["a.png", "c.png", "e.png"]
    report = json.loads(run("restore", many, "-o", out_folder, "--overwrite", "--json")[1])
    assert [Path(file["input"]).stem for file in report["files"] if file["error"]] == ["b", "d", "e", "f"]
    assert [Path(file["input"]).stem for file in report["files"]] == list("abcdef")


def test_an_interrupt_keeps_whole_files_and_no_thread(
    run: Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(image: torch.Tensor, *arguments: object, **services: object) -> torch.Tensor:
        if image.shape[2] == 6:
            raise KeyboardInterrupt
        return restore(image, *arguments, **services)  # pyright: ignore[reportArgumentType] as they came

    monkeypatch.setattr(line, "restore", interrupted)
    code, out, err = run("restore", many, "-o", tmp_path / "out")
    assert (code, told(out), err) == (130, ["a", "b"], "gendr: interrupted\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("gendr")] == []


Threads = Callable[[str], list[str]]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """Tell which threads a function that ``restore`` imports has run in, file by file, without their numbers."""
    seen: dict[str, list[str]] = {"read_image": [], "restore": [], "write_image": []}

    def watch(name: str, function: Callable[..., object]) -> None:
        def watched(*arguments: object, **options: object) -> object:
            seen[name].append(threading.current_thread().name.split("_")[0])
            return function(*arguments, **options)

        monkeypatch.setattr(line, name, watched)

    for name, function in (("read_image", read_image), ("restore", restore), ("write_image", write_image)):
        watch(name, function)
    return lambda name: seen[name]


def test_files_are_read_and_written_while_others_are_restored(
    run: Run, many: Path, tmp_path: Path, threads: Threads
) -> None:
    assert run("restore", many, "-o", tmp_path / "out", "--quiet")[0] == 0
    assert threads("read_image") == ["MainThread"] + ["gendr-reader"] * 5
    assert threads("restore") == ["MainThread"] * 6
    assert threads("write_image") == ["gendr-writer"] * 5 + ["MainThread"]


def test_a_budget_on_the_processor_has_room_for_one_file(
    run: Run, many: Path, tmp_path: Path, threads: Threads
) -> None:
    assert run("restore", many, "-o", tmp_path / "out", "--quiet", "--budget", "1GiB")[0] == 0
    assert {*threads("read_image"), *threads("restore"), *threads("write_image")} == {"MainThread"}


def test_large_images_are_read_and_written_in_their_place(
    run: Run, many: Path, tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Inputs of 6 x 4 to 6 x 9 pixels count as RGBA; outputs have twice their edges, in RGB.
    monkeypatch.setattr(groups, "AHEAD_BYTES", 6 * 6 * 16)
    monkeypatch.setattr(line, "BEHIND_BYTES", 12 * 14 * 12)
    assert run("restore", many, "-o", tmp_path / "out", "--quiet")[0] == 0
    assert threads("read_image") == ["MainThread"] + ["gendr-reader"] * 2 + ["MainThread"] * 3
    assert threads("write_image") == ["gendr-writer"] * 4 + ["MainThread"] * 2


def test_what_a_header_does_not_tell_is_read_in_its_place(
    run: Run, many: Path, tmp_path: Path, threads: Threads
) -> None:
    (many / "b.png").rename(many / "b.jpg")  # Read by its content, whatever its name.
    (many / "c.png").write_bytes(b"")
    write_image(many / "d.tif", picture(), 16)
    (many / "d.png").unlink()
    others = [many / "g.pdf", many / "h"]
    for path in others:
        path.write_bytes(b"no image")
    code, out, err = run("restore", many, *others, "-o", tmp_path / "out")
    assert (code, len(out.splitlines())) == (1, 5)
    assert [text.split(":")[2].strip() for text in err.splitlines()] == [
        str(many / "c.png"),
        *map(str, others),
    ]
    assert threads("read_image") == ["MainThread"] * 4 + ["gendr-reader"] * 2 + ["MainThread"] * 2


def test_progress_ends_at_all_whatever_failed(
    run: Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("a", "f"):
        (many / f"{name}.png").write_bytes(b"")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("restore", many, "-o", tmp_path / "out", "--quiet", "--json")[0] == 1
    assert "%|" not in terminal.getvalue()
    assert run("restore", many, "-o", tmp_path / "again")[0] == 1
    assert "100%" in terminal.getvalue()


TOGETHER = ("--frame-batch", "3")


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Note the shape of every batch that is restored."""
    seen: list[tuple[int, ...]] = []

    def watched(image: torch.Tensor, *arguments: object, **services: object) -> torch.Tensor:
        seen.append(tuple(image.shape))
        return restore(image, *arguments, **services)  # pyright: ignore[reportArgumentType] as they came

    monkeypatch.setattr(line, "restore", watched)
    return seen


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """A folder with a.png to f.png, all of 9x6 pixels and no two the same."""
    folder = tmp_path / "alike"
    folder.mkdir()
    noise = torch.Generator().manual_seed(0)
    for name in "abcdef":
        write_image(folder / f"{name}.png", torch.rand(1, 6, 9, 3, generator=noise))
    return folder


def names(report: str) -> list[str]:
    """Return the inputs in a report, without folder and type."""
    return [Path(file["input"]).stem for file in json.loads(report)["files"]]


@pytest.mark.parametrize("unet", ["gendr-mini-pixel.safetensors", "gendr-mini-unet16.safetensors"])
def test_mixed_files_together_are_what_they_are_alone(
    unet: str, run: Run, tmp_path: Path, shapes: list[tuple[int, ...]]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    noise = torch.Generator().manual_seed(0)
    kinds = [(20, 30, 3), (30, 20, 3), (20, 30, 1), (20, 30, 4)]
    for index, name in enumerate("abcdefghijklmn"):
        write_image(folder / f"{name}.png", torch.rand(1, *kinds[index % 4], generator=noise))
    weights = Path(cli.__file__).parents[1] / "weights"
    models = ["--unet", weights / unet]
    models += [] if "pixel" in unet else ["--vae", weights / "gendr-mini-vae16.safetensors"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    code, out, err = run("restore", folder, "-o", together, *models, *TOGETHER, "--json")
    assert (code, err, names(out)) == (0, "", list("abcdefghijklmn"))
    assert shapes == [(3, *kinds[0]), (3, *kinds[1]), (3, *kinds[2]), (3, *kinds[3]), (1, *kinds[0]), (1, *kinds[1])]
    assert run("restore", folder, "-o", alone, *models, "--quiet") == (0, "", "")
    for source in sorted(folder.iterdir()):
        own, expected = (read_image(out_folder / source.name).image for out_folder in (together, alone))
        assert own.shape == expected.shape
        assert (own - expected).abs().max() <= 1.01 / 255.0


def test_each_file_of_a_group_keeps_what_is_its_own(run: Run, alike: Path, tmp_path: Path) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(alike / "b.png", read_image(alike / "b.png").image, 16, icc=icc)
    out = tmp_path / "out"
    assert run("restore", alike, "-o", out, *TOGETHER, "--color-reference", alike / "a.png", "--quiet")[0] == 0
    files = [read_image(path) for path in sorted(out.iterdir())]
    assert [file.bit_depth for file in files] == [8, 16, 8, 8, 8, 8]
    assert [file.icc for file in files] == [None, icc, None, None, None, None]


def test_files_of_a_group_share_its_time(
    run: Run, alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(line, "perf_counter", lambda: float(next(ticks)))
    # With a budget no thread looks at the clock beside this one.
    report = json.loads(run("restore", alike, "-o", tmp_path / "out", *TOGETHER, "--budget", "1GiB", "--json")[1])
    assert [file["seconds"] for file in report["files"]] == [{"read": 1.0, "restore": 0.3333, "write": 1.0}] * 6


def test_files_that_cannot_be_read_leave_their_group(
    run: Run, alike: Path, tmp_path: Path, shapes: list[tuple[int, ...]]
) -> None:
    (alike / "b.png").write_bytes((alike / "b.png").read_bytes()[:60])  # Its header is whole.
    broken = picture()
    broken[0, 3, 3, 1] = torch.nan
    tifffile.imwrite(alike / "c.tif", broken[0].numpy(), photometric="rgb")
    code, out, err = run("restore", alike, "-o", tmp_path / "out", *TOGETHER, "--json")
    assert (code, names(out)) == (1, ["a", "b", "c", "c", "d", "e", "f"])
    assert [file["error"] is None for file in json.loads(out)["files"]] == [True, False, True, False, True, True, True]
    for message in ("b.png: expected a whole image file", "c.tif: expected finite values"):
        assert message in err
    assert [shape[0] for shape in shapes] == [2, 3]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png", "d.png", "e.png", "f.png"]


def test_images_unlike_their_headers_go_with_their_like(
    run: Run, alike: Path, tmp_path: Path, shapes: list[tuple[int, ...]]
) -> None:
    exif = Image.Exif()
    exif[274] = 6  # Lies on its side.
    with Image.open(alike / "b.png") as image:
        image.save(alike / "b.png", exif=exif)
    code, out, err = run("restore", alike, "-o", tmp_path / "out", *TOGETHER, "--json")
    assert (code, err, names(out)) == (0, "", list("abcdef"))
    assert shapes == [(2, 6, 9, 3), (1, 9, 6, 3), (3, 6, 9, 3)]
    assert [file["output_size"] for file in json.loads(out)["files"]] == [[18, 12], [12, 18], *[[18, 12]] * 4]


def test_one_that_cannot_be_restored_fails_alone(
    run: Run, alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(alike / "e.png", torch.zeros(1, 6, 9, 3))
    (tmp_path / "out" / "b.png").mkdir(parents=True)  # Nor can this be written.

    def tight(image: torch.Tensor, *arguments: object, **services: object) -> torch.Tensor:
        if bool((image.amax((1, 2, 3)) == 0.0).any()):
            raise OutOfMemoryError("expected room for black")
        return restore(image, *arguments, **services)  # pyright: ignore[reportArgumentType] as they came

    monkeypatch.setattr(line, "restore", tight)
    code, out, err = run("restore", alike, "-o", tmp_path / "out", *TOGETHER, "--overwrite")
    assert (code, told(out), told(err)) == (1, ["a", "c", "d", "f"], ["b", "e"])
    assert "e.png: expected room for black" in err
    assert caplog.messages == ["3 together failed, going on one by one: expected room for black"]
    report = run("restore", alike, "-o", tmp_path / "out", *TOGETHER, "--overwrite", "--json")[1]
    assert [file["error"] is None for file in json.loads(report)["files"]] == [True, False, True, True, False, True]


def test_a_fault_in_a_group_is_not_explained(
    run: Run, alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(line, "restore", faulty)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run("restore", alike, "-o", tmp_path / "out", *TOGETHER)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_between_groups_keeps_whole_files_and_no_thread(
    run: Run, alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def interrupted(image: torch.Tensor, *arguments: object, **services: object) -> torch.Tensor:
        batches.append(len(image))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return restore(image, *arguments, **services)  # pyright: ignore[reportArgumentType] as they came

    monkeypatch.setattr(line, "restore", interrupted)
    code, out, err = run("restore", alike, "-o", tmp_path / "out", *TOGETHER)
    assert (code, told(out), err, batches) == (130, ["a", "b", "c"], "gendr: interrupted\n", [3, 3])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png"]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("gendr")] == []


def test_groups_are_read_and_written_while_others_are_restored(
    run: Run, alike: Path, tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("restore", alike, "-o", tmp_path / "out", "--quiet", *TOGETHER)[0] == 0
    assert threads("read_image") == ["MainThread"] * 3 + ["gendr-reader"] * 3
    assert threads("restore") == ["MainThread"] * 2
    assert threads("write_image") == ["gendr-writer"] * 3 + ["MainThread"] * 3
    monkeypatch.setattr(line, "BEHIND_BYTES", 3 * (12 * 18 * 12) - 1)
    assert run("restore", alike, "-o", tmp_path / "again", "--quiet", *TOGETHER)[0] == 0
    assert threads("write_image")[6:] == ["MainThread"] * 6


def test_progress_counts_the_files_of_a_group(
    run: Run, alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    places: list[int] = []

    class Watched(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            moved = super().update(n)
            places.append(round(self.n))
            return moved

    (alike / "e.png").write_bytes(b"")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(bar, "tqdm", Watched)
    assert run("restore", alike, "-o", tmp_path / "out", *TOGETHER)[0] == 1
    # Of the six, e.png is broken and so alone.
    assert places == sorted(places)
    assert {0, 3000, 5000, 6000} <= set(places)
    assert places[-1] == 6000
