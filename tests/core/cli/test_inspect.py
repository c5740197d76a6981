import json
from pathlib import Path

from command_line import VAE16, Run

from gendr_core.model import DEFAULT_UNET


def test_inspect(run: Run, weights: Path) -> None:
    code, out, err = run("inspect", VAE16)
    assert (code, err) == (0, "")
    assert "vae16" in out
    report = json.loads(run("inspect", weights / DEFAULT_UNET, "--json")[1])
    assert report["kind"] == "unet"
    assert report["spec"]["arch"]["block_out_channels"] == [8, 16]
    assert report["problem"] is None


def test_inspect_tells_why_a_file_cannot_be_used(run: Run, weights: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    half.write_bytes((weights / VAE16).read_bytes()[:500])
    code, out, err = run("inspect", half, "--json")
    assert code == 1
    assert err.startswith("gendr: error: half.safetensors: ")
    assert json.loads(out)["problem"] in err
