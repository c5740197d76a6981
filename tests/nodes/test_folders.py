import sys
from pathlib import Path

import pytest
from pack import Pack


def test_listing_takes_folders_suffixes_and_names_and_opens_nothing(
    pack: Pack, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gendr/a.PKL", "gendr/b.pth", "gendr/notes.txt", "gendr/c.ckpt", "loras/style.safetensors"):
        (models / name).write_bytes(b"")
    for name in (
        "loras/PiSA_SR.pkl",
        "loras/osediff.safetensors",
        "checkpoints/sd21.safetensors",
        "checkpoints/x.ckpt",
    ):
        (models / name).write_bytes(b"")
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a file is opened"))
    options = {part.id: getattr(part, "options", None) for part in pack.nodes["GenDR_Convert"].define_schema().inputs}
    assert options["file"] == ["a.PKL", "b.pth", "osediff.safetensors", "PiSA_SR.pkl"]
    assert options["unet"] == ["base.safetensors", "sd21.safetensors"]
    assert options["vae_file"] == ["base-vae.safetensors", "sd21.safetensors"]


def test_a_drive_that_is_gone_lists_nothing(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_folder: str) -> list[str]:
        raise OSError("the network name is no longer available")

    monkeypatch.setattr(sys.modules["folder_paths"], "get_filename_list", gone)
    folders = sys.modules[pack.host.__name__.replace(".host", ".folders")]
    assert folders.published_files() == folders.base_files("vae") == []


def test_what_tvt_brings_along_is_a_base(pack: Pack, models: Path) -> None:
    unet = "diffusion_pytorch_model.safetensors"
    for name in ("model_TVT.pkl", "vae.ckpt", unet, "other.ckpt"):
        (models / "gendr" / name).write_bytes(b"")
    folders = sys.modules[pack.host.__name__.replace(".host", ".folders")]
    assert "model_TVT.pkl" in folders.published_files()
    assert folders.base_files("diffusion_models") == ["base.safetensors", unet]
    assert folders.base_files("vae") == ["base-vae.safetensors", "vae.ckpt"]
    assert folders.base_path("vae", "vae.ckpt") == models / "gendr" / "vae.ckpt"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("TVT/model_TVT.pkl", "tvt"),
        ("tvt.safetensors", "tvt"),
        ("hotvtuber.safetensors", None),
        ("OSEDiff2.pkl", "osediff"),
    ],
)
def test_a_short_name_counts_as_a_word_only(pack: Pack, name: str, key: str | None) -> None:
    folders = sys.modules[pack.host.__name__.replace(".host", ".folders")]
    found = folders.named_after(name)
    assert (None if found is None else found.key) == key
