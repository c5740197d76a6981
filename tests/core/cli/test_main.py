from pathlib import Path

import pytest
from command_line import Run

from gendr_core import cli
from gendr_core.cli import failures, line


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("gendr ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["upscale"],
        ["restore", "a.png"],
        ["restore", "a.png", "-o", "b.png", "--scale", "2", "--longest-edge", "9"],
        ["restore", "a.png", "-o", "b.png", "--color", "sepia"],
        ["plan", "--size", "640"],
        ["plan", "--size", "0x480"],
    ],
)
def test_wrong_usage_leaves_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: gendr" in capsys.readouterr().err


def test_interrupt_leaves_with_130(run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(line, "restore", interrupted)
    code, out, err = run("restore", photos, "-o", tmp_path / "out")
    assert (code, out, err) == (130, "", "gendr: interrupted\n")
    assert not (tmp_path / "out").exists()


def test_faults_of_gendr_are_not_explained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures.explain(RuntimeError("shape mismatch")) is None

    def broken(*_: object) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(cli.restore, "load_models", broken)
    monkeypatch.setattr(cli.restore, "plan_jobs", lambda *_: [])
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run("restore", "x.png", "-o", "y.png")


def test_debug_shows_the_traceback(run: Run) -> None:
    code, _, err = run("inspect", "nowhere.safetensors")
    assert code == 1
    assert err.startswith("gendr: error: expected a weight file")
    assert "Traceback" not in err
    assert "Traceback" in run("inspect", "nowhere.safetensors", "--debug")[2]
