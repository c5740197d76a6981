import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import UNET16, VAE16, Run
from relative_files import UNET_ARCH, base_unet, base_vae, prompts, write_published
from safetensors.torch import save_file
from weightfiles import PLAIN_UNET, prompt, unet_state

from gendr_core.checkpoint import write_unet
from gendr_core.model import DEFAULT_UNET
from gendr_core.spec import ModelSpec

Report = dict[str, Any]


def _inspect(run: Run, path: object) -> Report:
    return json.loads(run("inspect", path, "--json")[1])


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_inspect(run: Run, weights: Path) -> None:
    code, out, err = run("inspect", VAE16)
    assert (code, err) == (0, "")
    assert "vae16" in out
    report = _inspect(run, weights / DEFAULT_UNET)
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
    assert json.loads(out)["what"] == "a safetensors file, damaged or cut short"


def test_what_takes_a_file_and_how_much_memory_that_needs_are_said(run: Run) -> None:
    out = run("inspect", UNET16)[1].splitlines()
    rows = [line[13:] for line in out if line[:13].strip() in ("taken by", "") and line.strip()]
    assert rows[0] == f"gendr restore --unet {UNET16} --vae VAE"
    assert rows[1] == "node Load GenDR UNet, with Load GenDR VAE16"
    assert rows[2] == "in fp32 on cpu, with the VAE of SD2.1, input image left out"
    assert sum(line.startswith(("1 megapixel ", "8 megapixels ")) for line in out) == 2


@pytest.mark.parametrize("megapixels", [1, 8])
def test_memory_is_what_gendr_plan_says(run: Run, megapixels: int) -> None:
    needs = {need["megapixels"]: need for need in _inspect(run, DEFAULT_UNET)["memory"]["needs"]}
    size, output = {1: ("512x512", "1024x1024"), 8: ("1920x1080", "3840x2160")}[megapixels]
    plan = ("plan", "--unet", DEFAULT_UNET, "--size", size, "--device", "cpu", "--json", "--budget")
    need = needs[megapixels]
    assert need["output"] == output
    # A prompt of 3 tokens and one pass in both.
    assert json.loads(run(*plan, "1000GiB")[1])["peak_bytes"] == need["peak_bytes"]
    assert 0 < need["least_bytes"] <= need["peak_bytes"]
    assert json.loads(run(*plan, str(need["least_bytes"]))[1])["peak_bytes"] == need["least_bytes"]
    code, out, _ = run(*plan, str(need["least_bytes"] - 1))
    # Matching colours and resizing have no smaller way, and no budget either.
    assert code == 1 or json.loads(out)["peak_bytes"] >= need["least_bytes"]


def test_a_vae_is_taken_with_a_full_size_unet(run: Run) -> None:
    memory = _inspect(run, VAE16)["memory"]
    assert "with a full-size UNet" in memory["assumed"]
    assert memory["needs"][0]["peak_bytes"] > 4 * 865_000_000


def test_base_models_name_convert_and_comfyui(run: Run, tmp_path: Path) -> None:
    unet, vae = (_write(tmp_path / name, state()) for name, state in (("u.sft", base_unet), ("v.sft", base_vae)))
    report = _inspect(run, unet)
    assert report["takers"] == ["gendr convert RELATIVE --unet u.sft", "ComfyUI: Load Diffusion Model"]
    assert report["memory"]["assumed"].startswith("once GenDR can run it, in fp32 on cpu, with the VAE of SD2.1")
    assert _inspect(run, vae)["takers"] == ["ComfyUI: Load VAE"]
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in base_unet().items()}
    whole |= {f"first_stage_model.{name}": tensor for name, tensor in base_vae().items()}
    report = _inspect(run, _write(tmp_path / "c.sft", whole))
    assert report["takers"] == ["gendr convert RELATIVE --unet c.sft --vae c.sft", "ComfyUI: Load Checkpoint"]
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in base_unet().items()}
    assert _inspect(run, _write(tmp_path / "f8.sft", eight))["takers"] == ["ComfyUI: Load Diffusion Model"]


def test_a_unet_without_prompt_is_told_to_be_given_one(run: Run, tmp_path: Path) -> None:
    path = _write(tmp_path / "u.sft", unet_state(PLAIN_UNET))
    assert _inspect(run, path)["takers"] == ["gendr bake-prompt --into u.sft"]
    with_one = _write(tmp_path / "p.sft", {**unet_state(PLAIN_UNET), "prompt.positive": prompt()})
    assert _inspect(run, with_one)["takers"][0] == "gendr restore --unet p.sft --vae VAE"


@pytest.mark.parametrize("key", ["osediff", "pisa-sr", "hypir-sd2", "s3diff"])
def test_files_of_relatives_name_convert(run: Run, tmp_path: Path, key: str) -> None:
    path = write_published(tmp_path / "adapter.safetensors", key)
    code, out, _ = run("inspect", path, "--json")
    assert code == 1
    assert json.loads(out)["takers"] == [f"gendr convert {key} --adapter adapter.safetensors"]


def test_prompts_name_convert(run: Run, tmp_path: Path) -> None:
    path = _write(tmp_path / "p.sft", prompts())
    report = _inspect(run, path)
    assert (report["what"], report["takers"]) == ("prompts for a UNet", ["gendr convert RELATIVE --prompt p.sft"])


@pytest.mark.parametrize(
    ("names", "what", "taker"),
    [
        (("transformer_blocks.0.x", "transformer.transformer_blocks.1.x"), "a file of TSD-SR, which GenDR", None),
        (("double_blocks.0.x",), "a diffusion transformer", "ComfyUI: Load Diffusion Model, or Load Checkpoint"),
        (("a.lora_up.weight",), "a LoRA", "ComfyUI: Load LoRA, beside its base model"),
        (("control_model.x",), "a ControlNet", "ComfyUI: Load ControlNet Model"),
        (("encoder.block.0.x", "shared.weight"), "a text encoder: T5, of SD3, FLUX", "ComfyUI: Load CLIP"),
        (("text_model.embeddings.token_embedding.weight",), "a text encoder: a CLIP of width 3", "ComfyUI: Load CLIP"),
        (("down_blocks.0.x", "up_blocks.0.x", "add_embedding.x"), "a UNet with extra conditioning", CORE := "ComfyUI:"),
        (("down_blocks.0.x", "up_blocks.0.x"), "a UNet of another shape than SD2.1's", CORE),
        (("encoder.down_blocks.0.x", "decoder.up_blocks.0.x"), "a VAE that is none of GenDR's", "ComfyUI: Load VAE"),
        (("x",), "a network that GenDR does not know", None),
    ],
)
def test_other_files_are_named_with_what_takes_them(
    run: Run, tmp_path: Path, names: tuple[str, ...], what: str, taker: str | None
) -> None:
    path = _write(tmp_path / "x.sft", {name: torch.zeros(3, 3) for name in names})
    code, out, err = run("inspect", path, "--json")
    report = json.loads(out)
    assert (code, report["problem"] in err) == (1, True)
    assert report["what"].startswith(what)
    assert (report["takers"] or [None])[-1] == taker or report["takers"][-1].startswith(str(taker))
    assert report["memory"] is None


def test_an_sd1_unet_is_named(run: Run, tmp_path: Path) -> None:
    state = {**base_unet()}
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    state[name] = torch.zeros(UNET_ARCH.block_out_channels[-1], 768)
    report = _inspect(run, _write(tmp_path / "sd1.sft", state))
    assert (report["what"], report["takers"]) == ("a UNet of SD1.x", ["ComfyUI: Load Diffusion Model"])


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("empty.safetensors", b"", "an empty file"),
        ("page.safetensors", b"<!DOCTYPE html><html>", "a web page, saved in place of a file"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a note of git LFS"),
        ("model.gguf", b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file"),
        ("model.safetensors", b"PK\x03\x04 and more", "a zip archive, as torch.save writes"),
        ("model.safetensors", b"\x01\x02\x03", "a file of an unknown format"),
        ("huge.safetensors", (2**40).to_bytes(8, "little") + b'{"x":', "a safetensors file, damaged or cut short"),
        (
            "model.ckpt",
            (2).to_bytes(8, "little") + b"{}",
            "a safetensors file under the name of a pickle: rename it to",
        ),
    ],
)
def test_files_that_are_no_safetensors_are_named(
    run: Run, tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code, out, _ = run("inspect", tmp_path / name, "--json")
    report = json.loads(out)
    assert (code, report["kind"], report["memory"], report["takers"]) == (1, "unreadable", None, [])
    assert report["what"].startswith(what)


@pytest.mark.parametrize(
    ("name", "what", "takers"),
    [
        ("osediff.pkl", "; by its name that of OSEDiff", ["gendr convert osediff --adapter osediff.pkl"]),
        ("model_TVT.pkl", "; by its name that of TVT", ["gendr convert tvt --adapter model_TVT.pkl"]),
        ("vae.ckpt", "; by its name that of TVT", ["gendr convert tvt --vae vae.ckpt"]),
        ("other.pth", "", ["gendr convert RELATIVE --adapter other.pth, if a relative published it"]),
    ],
)
def test_pickles_are_not_opened_but_known_by_name(
    run: Run, tmp_path: Path, name: str, what: str, takers: list[str]
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 would run code")
    report = _inspect(run, tmp_path / name)
    assert report["what"].startswith(f"a pickle, which is not opened here{what}")
    assert report["takers"] == takers


def test_memory_of_a_model_with_an_unheard_of_scale_is_for_the_same_sizes(run: Run, tmp_path: Path) -> None:
    for scale in (1e-300, 3.0):
        path = tmp_path / f"{scale}.safetensors"
        write_unet(path, ModelSpec(arch=PLAIN_UNET, scale=scale), unet_state(PLAIN_UNET), prompt())
        outputs = [need["output"] for need in _inspect(run, path)["memory"]["needs"]]
        assert outputs == ["1024x1024", "3840x2160"]
