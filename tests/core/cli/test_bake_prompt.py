import json
from pathlib import Path

import pytest
import torch
from command_line import Run
from weightfiles import UNET_SPEC, prompt, unet_state

from gendr_core import text
from gendr_core.checkpoint import read_unet, write_unet
from gendr_core.convert import read_prompts
from gendr_core.textfile import TextArch

pytest.importorskip("transformers", reason='texts are encoded by transformers: pip install "gendr[text]"')

from text_encoders import ARCH, END, START, clip, expected, openclip_state, write_folder, write_state, write_vocabulary


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny encoder, taken for SD2's, as wide as the tiny UNets expect."""
    arch = TextArch(**{name: getattr(ARCH, name) for name in ("layers", "heads", "hidden", "tokens", "words")}, width=8)
    for function in (text.find_encoder, text.check_model, text.encode_texts):
        monkeypatch.setattr(function, "__defaults__", (*(function.__defaults__ or ())[:-1], arch))
    return write_folder(tmp_path / "sd2", clip(width=8))


def test_the_prompts_are_written_for_convert(run: Run, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "prompts.safetensors"
    command = ("bake-prompt", "--encoder", folder, "-o", target)
    assert run(*command, "--positive", "a b") == (0, f"{target}\n", "")
    found = read_prompts(target)
    positive, negative = expected(clip(width=8), [START, 1, 2, END], [START, END])
    assert torch.allclose(found.positive, positive, atol=1e-6)
    assert found.negative is not None
    assert torch.allclose(found.negative, negative, atol=1e-6)
    code, _, err = run(*command)
    assert (code, err) == (1, "gendr: error: prompts.safetensors exists already: choose another name, or --overwrite\n")
    report = json.loads(run(*command, "--overwrite", "--negative", "b", "--json")[1])
    assert report == {
        "file": str(target),
        "into": None,
        "shape": [ARCH.tokens, 8],
        "positive": "",
        "negative": "b",
    }
    assert torch.allclose(read_prompts(target).positive, negative, atol=1e-6)


def test_a_model_gets_the_prompts(run: Run, folder: Path, tmp_path: Path) -> None:
    model, target = tmp_path / "model.safetensors", tmp_path / "new.safetensors"
    write_unet(model, UNET_SPEC, unet_state(), prompt())
    before = model.read_bytes()
    command = ("bake-prompt", "--encoder", folder, "--positive", "a b", "--into", model, "-o")
    assert run(*command, target) == (0, f"{target}\n", "")
    assert model.read_bytes() == before
    code, _, err = run(*command, model)
    assert code == 1
    assert "model.safetensors exists already" in err
    assert model.read_bytes() == before
    assert run(*command, model, "--overwrite")[0] == 0
    positive = expected(clip(width=8), [START, 1, 2, END])[0]
    for path in (target, model):
        found = read_unet(path)
        assert found.spec == UNET_SPEC
        assert torch.allclose(found.positive, positive, atol=1e-6)
    assert model.read_bytes() == target.read_bytes()


def test_a_file_needs_a_vocabulary_and_is_never_written_over(run: Run, folder: Path, tmp_path: Path) -> None:
    assert folder.is_dir()
    encoder = write_state(tmp_path / "sd21.safetensors", openclip_state(clip(width=8)))
    before = encoder.read_bytes()
    command = ("bake-prompt", "--encoder", encoder, "-o")
    code, _, err = run(*command, tmp_path / "prompts.safetensors")
    assert code == 1
    assert err.startswith("gendr: error: sd21.safetensors: expected vocab.json and merges.txt beside the text encoder")
    words = ("--tokenizer", write_vocabulary(tmp_path / "words"))
    assert run(*command, tmp_path / "prompts.safetensors", *words)[0] == 0
    code, _, err = run(*command, encoder, *words, "--overwrite")
    assert code == 1
    assert "expected another name to write to than that of the text encoder itself" in err
    assert encoder.read_bytes() == before


def test_the_encoder_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    encoder = write_folder(tmp_path / "other", clip())
    code, out, err = run("bake-prompt", "--encoder", encoder, "-o", tmp_path / "prompts.safetensors")
    assert (code, out) == (1, "")
    assert err.startswith("gendr: error: model.safetensors: expected the text encoder of SD2.x, 1024 wide, got one of")
    assert not (tmp_path / "prompts.safetensors").exists()
