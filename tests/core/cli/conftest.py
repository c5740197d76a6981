"""The command as a function, in a package with tiny bundled weights."""

from pathlib import Path

import pytest
from command_line import Run, picture, write_bundle

from gendr_core import cli, model
from gendr_core.image_io import write_image


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights written once."""
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder)
    return folder


@pytest.fixture
def weights(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of bundled weights, a copy that a test may damage."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(model, "WEIGHTS_DIR", folder)
    return folder


@pytest.fixture
def run(weights: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    assert weights.is_dir()

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two images of 9x6 pixels and two files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    write_image(folder / "a.png", picture())
    write_image(folder / "b.jpg", picture())
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    return folder
