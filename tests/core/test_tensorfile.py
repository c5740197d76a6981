"""Tensors of weight files: what is broken is counted and listed, and no write leaves half a file."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from weightfiles import (
    PLAIN_UNET,
    UNET_SPEC,
    VAE_SPEC,
    assert_same,
    assert_unchanged_folder,
    prompt,
    unet_state,
    vae_state,
)

from gendr_core.checkpoint import read_unet, read_vae, write_unet, write_vae
from gendr_core.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file name in an empty folder."""
    return tmp_path / "model.safetensors"


def test_strided_and_trainable_weights_are_written(path: Path) -> None:
    state = {
        name: torch.nn.Parameter(t.transpose(0, -1).contiguous().transpose(0, -1)) for name, t in vae_state().items()
    }
    assert not all(tensor.is_contiguous() for tensor in state.values())
    write_vae(path, VAE_SPEC, state)
    assert_same(read_vae(path).state, vae_state())


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_a_written_file_has_the_mode_of_any_new_file(path: Path) -> None:
    other = path.with_name("other")
    other.touch()
    write_vae(path, VAE_SPEC, vae_state())
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


WRONG_PROMPTS: dict[str, tuple[dict[str, Tensor], str]] = {
    "batched": ({"positive": prompt()[None]}, r"positive prompt of shape \[tokens, 8\], got \[1, 3, 8\]"),
    "width": ({"positive": torch.zeros(3, 7)}, r"positive prompt of shape \[tokens, 8\], got \[3, 7\]"),
    "empty": ({"positive": torch.zeros(0, 8)}, r"positive prompt of shape \[tokens, 8\], got \[0, 8\]"),
    "tokens": (
        {"positive": prompt(), "negative": prompt()[:2]},
        r"negative prompt of the positive one's shape \[3, 8\], got \[2, 8\]",
    ),
    "integers": (
        {"positive": torch.zeros(3, 8, dtype=torch.int64)},
        "expected prompt.positive as float32, float16 or bfloat16, got torch.int64",
    ),
    "nan": ({"positive": prompt() * torch.nan}, "prompt.positive hold NaN or infinite values"),
}


@pytest.mark.parametrize(("prompts", "message"), WRONG_PROMPTS.values(), ids=WRONG_PROMPTS.keys())
def test_wrong_prompts(path: Path, prompts: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_unet(path, UNET_SPEC, unet_state(), prompts["positive"], prompts.get("negative"))
    assert_unchanged_folder(path, None)
    save_file({**unet_state(PLAIN_UNET), **{f"prompt.{name}": tensor for name, tensor in prompts.items()}}, path)
    with pytest.raises(CheckpointError, match=f"{message}|got 1 of I64"):
        read_unet(path)


Change = Callable[[dict[str, Tensor]], object]
BROKEN: dict[str, tuple[Change, str]] = {
    "one missing": (
        lambda s: s.pop("conv_out.bias"),
        r"does not fit its network of \d+ tensors; 1 missing: conv_out.bias\. It is",
    ),
    "many missing": (
        lambda s: [s.pop(name) for name in list(s) if name.startswith("up_blocks.0.")],
        r"\d\d missing: up_blocks\.0\.[^ ]+(, up_blocks[^ ]+){4} and \d+ more\. It is",
    ),
    "extra": (
        lambda s: s.update({f"extra.{i}": torch.zeros(1) for i in range(7)}),
        "7 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more",
    ),
    "shape": (
        lambda s: s.update({"conv_out.bias": torch.zeros(5), "conv_in.bias": torch.zeros(6)}),
        r"2 of the wrong shape: conv_in.bias is \[6\] instead of \[8\], conv_out.bias is \[5\] instead of \[4\]",
    ),
    "mixed": (
        lambda s: (s.pop("conv_in.bias"), s.update({"conv_inn.bias": torch.zeros(8)})),
        "1 missing: conv_in.bias; 1 unexpected: conv_inn.bias",
    ),
    "nan": (
        lambda s: s.update({"conv_in.bias": torch.full((8,), torch.nan)}),
        "conv_in.bias hold NaN or infinite values",
    ),
    "infinite": (
        lambda s: s.update({"conv_in.bias": torch.tensor([0.0] * 7 + [-torch.inf])}),
        "conv_in.bias hold NaN or infinite values",
    ),
    "dtype": (
        lambda s: s.update(
            {"conv_in.bias": torch.zeros(8, dtype=torch.float8_e4m3fn), "conv_out.bias": torch.zeros(4).double()}
        ),
        "of F16, BF16, F32, got 1 of F64, 1 of F8_E4M3|as float32, float16 or bfloat16, got torch.float",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_weights_are_counted_and_listed(path: Path, change: Change, message: str) -> None:
    write_unet(path, UNET_SPEC, unet_state(), prompt())
    before = path.read_bytes()
    state = unet_state()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        write_unet(path, UNET_SPEC, state, prompt())
    assert_unchanged_folder(path, before)
    metadata = {"gendr": json.loads(before[8 : 8 + int.from_bytes(before[:8], "little")])["__metadata__"]["gendr"]}
    save_file({**state, "prompt.positive": prompt()}, path, metadata)
    with pytest.raises(CheckpointError, match=message):
        read_unet(path)


def test_only_safetensors_names_are_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ends in .safetensors or .sft, got '.ckpt'"):
        write_vae(tmp_path / "model.ckpt", VAE_SPEC, vae_state())
    with pytest.raises(CheckpointError, match=r"the file cannot be written: [A-Z]"):
        write_vae(tmp_path / "nowhere" / "model.safetensors", VAE_SPEC, vae_state())
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vae(path, VAE_SPEC, vae_state())
    before = path.read_bytes()

    def half_a_file(tensors: dict[str, Tensor], filename: Path, metadata: dict[str, str]) -> None:
        del tensors, metadata
        filename.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("gendr_core.tensorfile.save_file", half_a_file)
    with pytest.raises(KeyboardInterrupt):
        write_vae(path, VAE_SPEC, vae_state())
    assert_unchanged_folder(path, before)
