import json
from pathlib import Path

import pytest
import torch
from command_line import UNET16, VAE16, Run

from gendr_core.checkpoint import inspect, read_unet
from gendr_core.model import DEFAULT_UNET


def test_a_model_is_baked_and_its_error_told(run: Run, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "baked.safetensors"
    code, out, err = run("bake", DEFAULT_UNET, "-o", target, "--photos", photos, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["file"], report["kind"], report["dtype"]) == (str(target), "unet", "fp16")
    assert report["folds"] == ["ends", "feed_forward", "norms", "prompt", "qkv", "scale", "time"]
    assert [each["image"] for each in report["differences"]] == ["a.png", "b.jpg"]
    assert not report["synthetic"]
    assert report["lowest_psnr_db"] == min(each["psnr_db"] for each in report["differences"]) > 50
    assert 0 < report["max_difference"] < 0.01
    assert report["after"]["parameters"] == inspect(target).num_parameters < report["before"]["parameters"]
    assert report["after"]["bytes"] == target.stat().st_size < report["before"]["bytes"]


def test_the_baked_model_restores_the_same_image(run: Run, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "baked.safetensors"
    assert run("bake", DEFAULT_UNET, "-o", target, "--dtype", "fp32")[0] == 0
    for name, model in (("plain.png", DEFAULT_UNET), ("ours.png", target)):
        assert run("restore", photos / "a.png", "--unet", model, "-o", tmp_path / name, "--quiet")[0] == 0
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "ours.png").read_bytes()
    assert run("inspect", target)[0] == 0


def test_without_photos_the_text_says_that_the_image_is_synthetic(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "baked.safetensors"
    code, out, _ = run("bake", DEFAULT_UNET, "-o", target, "--dtype", "fp32")
    assert code == 0
    assert "error       on a synthetic image, for want of --photos:\n            equal, at most 0 of 1" in out
    assert out.startswith(f"{target}\nfolded      ends, feed_forward, norms, prompt, qkv, scale, time\n")
    report = json.loads(run("bake", DEFAULT_UNET, "-o", target, "--dtype", "fp8", "--overwrite", "--json")[1])
    assert report["synthetic"]
    assert report["lowest_psnr_db"] > 20
    assert set(inspect(target).dtypes) == {"F8_E4M3", "F32", "BF16"}


def test_models_on_latents_and_their_vaes(run: Run, photos: Path, tmp_path: Path) -> None:
    unet, vae = tmp_path / "unet.safetensors", tmp_path / "vae.safetensors"
    assert run("bake", UNET16, "-o", unet, "--photos", photos)[0] == 0
    code, out, _ = run("bake", VAE16, "-o", vae, "--photos", photos, "--json")
    assert code == 0
    assert json.loads(out)["folds"] == ["ends", "norms", "qkv", "scale"]
    assert run("restore", photos / "a.png", "--unet", unet, "--vae", vae, "-o", tmp_path / "a.png")[0] == 0
    code, _, err = run("bake", unet, "-o", tmp_path / "again.safetensors")
    assert code == 1
    assert "expected --vae FILE with the VAE that unet.safetensors was trained with" in err
    assert run("bake", unet, "--vae", vae, "-o", tmp_path / "again.safetensors", "--photos", photos)[0] == 0


def test_nothing_is_overwritten_unasked_and_the_source_never(run: Run, weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "baked.safetensors"
    target.write_bytes(b"mine")
    code, _, err = run("bake", DEFAULT_UNET, "-o", target)
    assert (code, err) == (1, "gendr: error: baked.safetensors exists already: choose another name, or --overwrite\n")
    assert target.read_bytes() == b"mine"
    source = weights / DEFAULT_UNET
    before = source.read_bytes()
    code, _, err = run("bake", source, "-o", source, "--overwrite")
    assert code == 1
    assert f"expected another name to write to, got {DEFAULT_UNET}, which is read" in err
    assert source.read_bytes() == before
    assert run("bake", DEFAULT_UNET, "-o", target, "--overwrite")[0] == 0
    assert read_unet(target, folded=True).positive.dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "model.ckpt"), "expected a name that ends in .safetensors or .sft, got 'model.ckpt'"),
        (("-o", "nowhere/x.safetensors"), "expected a folder to write to, found none at"),
        (("-o", "x.safetensors", "--photos", "gone"), "expected a folder of images after --photos, found none at"),
        (("-o", "x.safetensors", "--photos", "weights"), "expected images"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    placed = [tmp_path / word if not word.startswith("-") else word for word in arguments]
    code, out, err = run("bake", DEFAULT_UNET, *placed)
    assert (code, out) == (1, "")
    assert message in err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_file_that_is_no_model_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").write_bytes(b"")
    code, _, err = run("bake", tmp_path / "empty.safetensors", "-o", tmp_path / "x.safetensors")
    assert code == 1
    assert "empty.safetensors: expected a safetensors file, got an empty file" in err
