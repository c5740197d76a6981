import builtins
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gendr_core.errors import OptionError
from gendr_core.hub import RemoteFile, comfyui_around, comfyui_folders, plain_folder

VAE = RemoteFile(path="a.safetensors", folder="vae", name="mine.safetensors")


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A ComfyUI that was just installed."""
    root = tmp_path / "ComfyUI"
    (root / "models" / "vae").mkdir(parents=True)
    (root / "folder_paths.py").touch()
    return root


def test_without_a_yaml_file_comfyuis_own_folders_are_taken(comfyui: Path) -> None:
    folders = comfyui_folders(comfyui)
    models = comfyui / "models"
    assert folders.target(VAE) == models / "vae" / "mine.safetensors"
    assert folders.of("diffusion_models") == (models / "diffusion_models", models / "unet")
    assert folders.of("text_encoders") == (models / "text_encoders", models / "clip")
    assert folders.of("anything") == (models / "anything",)


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected the folder of a ComfyUI"):
        comfyui_folders(tmp_path)


def test_extra_paths_are_read_as_comfyui_reads_them(comfyui: Path, tmp_path: Path) -> None:
    (comfyui / "extra_model_paths.yaml").write_text(
        f"""
webui:
  base_path: {tmp_path}/webui/
  checkpoints: models/Stable-diffusion
  vae: models/VAE
  unet: |
    models/unet-a
    models/unet-b
shared:
  base_path: ../shared
  is_default: true
  vae: vae
  clip: clip
plain:
  vae: here/vae
empty:
"""
    )
    folders = comfyui_folders(comfyui)
    models = comfyui / "models"
    # A default one comes first and takes new files; the others come last.
    assert folders.of("vae") == (
        tmp_path / "shared" / "vae",
        models / "vae",
        tmp_path / "webui" / "models" / "VAE",
        comfyui / "here" / "vae",
    )
    assert folders.target(VAE) == tmp_path / "shared" / "vae" / "mine.safetensors"
    assert folders.of("diffusion_models") == (
        models / "diffusion_models",
        models / "unet",
        tmp_path / "webui" / "models" / "unet-a",
        tmp_path / "webui" / "models" / "unet-b",
    )
    assert folders.of("text_encoders")[0] == tmp_path / "shared" / "clip"
    assert folders.of("checkpoints") == (models / "checkpoints", tmp_path / "webui" / "models" / "Stable-diffusion")


def test_variables_and_home_are_filled_in(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDR_TEST_DISK", str(tmp_path / "disk"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (comfyui / "extra_model_paths.yaml").write_text(
        "a:\n  base_path: $GENDR_TEST_DISK/x\n  vae: v\nb:\n  base_path: ~/y\n  vae: v\n"
    )
    assert comfyui_folders(comfyui).of("vae")[1:] == (tmp_path / "disk" / "x" / "v", tmp_path / "home" / "y" / "v")


def test_a_default_folder_that_is_known_moves_to_the_front(comfyui: Path) -> None:
    (comfyui / "extra_model_paths.yaml").write_text("a:\n  vae: models/vae\n  unet: models/unet\n  is_default: true\n")
    folders = comfyui_folders(comfyui)
    assert folders.of("vae") == (comfyui / "models" / "vae",)
    assert folders.of("diffusion_models") == (comfyui / "models" / "unet", comfyui / "models" / "diffusion_models")


@pytest.mark.parametrize("text", ["a: [", "\t- x", "\x00"])
def test_a_broken_yaml_file_is_named(text: str, comfyui: Path) -> None:
    (comfyui / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(OptionError, match=r"extra_model_paths.yaml cannot be read as YAML"):
        comfyui_folders(comfyui)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: 3\n", "a:\n  vae: 3\n  base_path:\n"])
def test_a_yaml_file_that_says_nothing_of_folders_changes_nothing(text: str, comfyui: Path) -> None:
    (comfyui / "extra_model_paths.yaml").write_text(text)
    assert comfyui_folders(comfyui).of("vae") == (comfyui / "models" / "vae",)


def test_a_missing_yaml_reader_is_named(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (comfyui / "extra_model_paths.yaml").write_text("a:\n  vae: v\n")
    original = builtins.__import__

    def without_yaml(name: str, globals: Mapping[str, object] | None = None, *rest: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return original(name, globals, *rest)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    with pytest.raises(OptionError, match=r'PyYAML is missing: pip install "gendr\[hub\]"'):
        comfyui_folders(comfyui)


def test_files_are_found_below_and_behind_links_but_not_hidden_ones(comfyui: Path, tmp_path: Path) -> None:
    vae = comfyui / "models" / "vae"
    (vae / "sub").mkdir()
    (tmp_path / "disk").mkdir()
    for path in (
        vae / "b.safetensors",
        vae / "sub" / "c.safetensors",
        vae / ".hidden.part",
        tmp_path / "disk" / "d.sft",
    ):
        path.touch()
    try:
        (vae / "linked").symlink_to(tmp_path / "disk", target_is_directory=True)
    except OSError:
        pytest.skip("this system allows no links")
    found = [path.relative_to(vae).as_posix() for path in comfyui_folders(comfyui).files("vae")]
    assert sorted(found) == ["b.safetensors", "linked/d.sft", "sub/c.safetensors"]


def test_one_folder_takes_files_of_every_kind(tmp_path: Path) -> None:
    folders = plain_folder(tmp_path)
    assert folders.of("vae") == folders.of("checkpoints") == (tmp_path,)
    assert folders.target(VAE) == tmp_path / "mine.safetensors"
    assert list(plain_folder(tmp_path / "gone").files("vae")) == []


def test_the_comfyui_around_a_file_is_found(comfyui: Path, tmp_path: Path) -> None:
    assert comfyui_around(comfyui / "custom_nodes" / "gendr" / "gendr_core" / "x.py") == comfyui
    assert comfyui_around(tmp_path / "custom_nodes" / "x.py") is None
    assert comfyui_around(Path(os.sep) / "x.py") is None
