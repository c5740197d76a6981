import json
from pathlib import Path

from command_line import VAE16, Run

from gendr_core import cli
from gendr_core.model import DEFAULT_UNET


def test_doctor(run: Run) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    assert "problem" not in out
    assert "64x64 -> 128x128" in out
    report = json.loads(run("doctor", "--json")[1])
    assert report["ok"]
    assert {"gendr", "python", "torch", "numpy", "device cpu", DEFAULT_UNET, "self-test"} <= {
        check["name"] for check in report["checks"]
    }


def test_doctor_finds_problems(run: Run, weights: Path) -> None:
    (weights / VAE16).write_bytes(b"damaged")
    code, out, _ = run("doctor")
    assert code == 1
    assert "problem  " + VAE16 in out
    (weights / DEFAULT_UNET).unlink()
    code, out, _ = run("doctor")
    assert code == 1
    assert "problem  " + DEFAULT_UNET in out
    assert "problem  self-test" in out


def test_packages_that_are_missing() -> None:
    assert not cli.doctor._package("no-such-package", needed=True, purpose="").ok
    assert cli.doctor._package("no-such-package", needed=False, purpose="TIFF").ok
