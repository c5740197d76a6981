import json
import pickle
from pathlib import Path

import pytest
from command_line import UNET16, VAE16, Run

from gendr_core.hub import load_catalog
from gendr_core.model import DEFAULT_UNET


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package lies in no ComfyUI."""
    monkeypatch.setattr("gendr_core.cli.places.comfyui_around", lambda _: None)


@pytest.fixture
def comfyui(weights: Path, tmp_path: Path) -> Path:
    """A ComfyUI with a VAE that GenDR runs, one that it does not, a relative's file, and notes."""
    models = tmp_path / "ComfyUI" / "models"
    for kind in ("vae", "diffusion_models", "gendr"):
        (models / kind).mkdir(parents=True)
    (models / "vae" / "mine.safetensors").write_bytes((weights / VAE16).read_bytes())
    (models / "vae" / "broken.safetensors").write_bytes(b"nothing")
    (models / "gendr" / "pisa_sr.pkl").write_bytes(pickle.dumps({"never": "opened"}))
    (models / "vae" / "put_vae_here.txt").touch()
    return models.parent


def test_models_lists_what_is_bundled_and_what_could_be_had(run: Run) -> None:
    code, out, err = run("models")
    assert (code, err) == (0, "")
    for name in (DEFAULT_UNET, UNET16, VAE16, *load_catalog()):
        assert name in out
    assert "HYPIR Software License Agreement, NOT for commercial use" in out
    assert "to be fetched by hand" in out
    assert "3.80 GB" in out


def test_models_finds_what_lies_in_comfyui(run: Run, comfyui: Path) -> None:
    _, out, _ = run("models", "--comfyui", comfyui)
    assert f"{comfyui / 'models' / 'vae' / 'mine.safetensors'}" in out
    assert "pisa_sr.pkl  looks like pisa-sr, a pickle" in out
    assert "broken.safetensors" not in out
    assert "put_vae_here" not in out
    assert "and 1 files of other models" in out
    assert "broken.safetensors" in run("models", "--comfyui", comfyui, "--all")[1]


def test_models_as_json(run: Run, comfyui: Path) -> None:
    report = json.loads(run("models", "--comfyui", comfyui, "--folder", comfyui / "models" / "gendr", "--json")[1])
    found = {Path(each["path"]).name: each for each in report["installed"]}
    assert found.keys() == {DEFAULT_UNET, UNET16, VAE16, "mine.safetensors", "pisa_sr.pkl"}
    assert (found["mine.safetensors"]["kind"], found["mine.safetensors"]["problem"]) == ("vae16", None)
    assert found[DEFAULT_UNET]["place"] == "bundled"
    assert found["pisa_sr.pkl"]["num_bytes"] == (comfyui / "models" / "gendr" / "pisa_sr.pkl").stat().st_size
    assert report["others"] == 1
    available = {each["name"]: each for each in report["available"]}
    assert available.keys() == load_catalog().keys()
    assert [name for name, each in available.items() if each["installed"]] == ["pisa-sr"]
    assert available["osediff"]["by_hand"]
    assert available["s3diff"]["bytes"] == 138118948 + 9424338
    assert available["hypir-sd2"]["license"]["non_commercial"]


def test_models_looks_where_it_is_told(run: Run, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "unet.safetensors").write_bytes((weights / UNET16).read_bytes())
    assert "unet.safetensors" in run("models", "--folder", tmp_path / "mine")[1]
    code, _, err = run("models", "--comfyui", tmp_path)
    assert code == 1
    assert "expected the folder of a ComfyUI" in err
