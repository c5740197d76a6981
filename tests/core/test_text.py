"""Prompt embeddings, with tiny encoders that transformers makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from weightfiles import UNET_SPEC, assert_same, prompt, unet_state

from gendr_core.checkpoint import read_unet, write_unet
from gendr_core.convert import read_prompts
from gendr_core.errors import CheckpointError, OptionError
from gendr_core.text import (
    EncoderFiles,
    check_model,
    encode_texts,
    find_encoder,
    write_model,
    write_prompts,
)
from gendr_core.textfile import TextArch

pytest.importorskip("transformers", reason='texts are encoded by transformers: pip install "gendr[text]"')

from text_encoders import (
    ARCH,
    END,
    START,
    clip,
    expected,
    openclip_state,
    plain_state,
    write_folder,
    write_state,
    write_vocabulary,
)

Layout = Callable[[Any], dict[str, torch.Tensor]]
A_B, EMPTY = [START, 1, 2, END], [START, END]

LAYOUTS: dict[str, Layout] = {
    "checkpoint": openclip_state,
    "sgm": lambda network: openclip_state(network, "conditioner.embedders.0.model."),
    "open_clip": lambda network: openclip_state(network, ""),
    "comfyui": lambda network: {f"text_model.{name}": tensor for name, tensor in plain_state(network).items()},
    "comfyui, as it is inside": lambda network: {
        f"clip_h.transformer.text_model.{name}": tensor for name, tensor in plain_state(network).items()
    },
    "transformers 5": plain_state,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder as diffusers writes it; for reading only."""
    return write_folder(tmp_path_factory.mktemp("model"), clip())


def encoded(path: Path, *texts: str, tokenizer: Path | None = None) -> list[torch.Tensor]:
    return encode_texts(find_encoder(path, tokenizer, ARCH), texts, ARCH)


def test_an_embedding_is_what_transformers_gives_for_tokens_filled_up_with_zero(folder: Path) -> None:
    positive, negative = encoded(folder, "a b", "")
    for one, other in zip((positive, negative), expected(clip(), A_B, EMPTY), strict=True):
        assert (one.shape, one.dtype, one.requires_grad) == ((ARCH.tokens, ARCH.width), torch.float32, False)
        assert torch.allclose(one, other, atol=1e-6)
    # SD1 fills up with the end of a text instead, and so says the folder's own configuration.
    ends = expected(clip(), EMPTY + [END] * (ARCH.tokens - 2))[0]
    assert not torch.allclose(negative, ends, atol=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layers", [ARCH.layers, ARCH.layers + 1])
def test_every_layout_gives_the_same_numbers_with_or_without_the_layer_that_sd2_leaves_out(
    tmp_path: Path, layout: str, layers: int
) -> None:
    network = clip(layers)
    path = write_state(tmp_path / "clip.safetensors", LAYOUTS[layout](network))
    found = encoded(path, "a b", "", tokenizer=write_vocabulary(tmp_path / "words"))
    for one, other in zip(found, expected(network, A_B, EMPTY), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_query_key_and_value_are_not_mixed_up(tmp_path: Path) -> None:
    state = openclip_state(clip())
    name = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"
    query, key, value = state[name].chunk(3)
    words = write_vocabulary(tmp_path / "words")
    right = encoded(write_state(tmp_path / "right.safetensors", state), "a b", tokenizer=words)[0]
    for order in ((key, query, value), (query, value, key)):
        path = write_state(tmp_path / "wrong.safetensors", {**state, name: torch.cat(order)})
        assert not torch.allclose(encoded(path, "a b", tokenizer=words)[0], right, atol=1e-3)


def test_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    network = clip()
    state = {name: tensor.half() for name, tensor in openclip_state(network).items()}
    path = write_state(tmp_path / "half.safetensors", state)
    found = encoded(path, "a b", tokenizer=write_vocabulary(tmp_path / "words"))[0]
    assert found.dtype == torch.float32
    rounded = network.half().float()
    assert torch.allclose(found, expected(rounded, A_B)[0], atol=1e-6)


def test_an_exclamation_mark_is_the_padding_as_in_diffusers(folder: Path) -> None:
    found = encoded(folder, "a ! b", "a !!")
    for one, other in zip(found, expected(clip(), [START, 1, 0, 2, END], [START, 1, 0, 0, END]), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_folders_and_files_are_found_with_the_vocabulary_beside_them(folder: Path, tmp_path: Path) -> None:
    weights, words = folder / "text_encoder" / "model.safetensors", folder / "tokenizer"
    for given in (folder, folder / "text_encoder", weights):
        assert find_encoder(given, None, ARCH) == EncoderFiles(weights=weights, vocabulary=words)
    other = write_vocabulary(tmp_path / "words")
    for given in (other, write_folder(tmp_path / "model", clip())):
        assert find_encoder(folder, given, ARCH).vocabulary.parent == (other.parent if given == other else given)


def test_a_file_alone_has_no_vocabulary(tmp_path: Path) -> None:
    path = write_state(tmp_path / "clip.safetensors", openclip_state(clip()))
    with pytest.raises(CheckpointError, match=r"clip\.safetensors: expected vocab\.json and .* --tokenizer.*sd1_token"):
        find_encoder(path, None, ARCH)
    with pytest.raises(CheckpointError, match=r"expected a folder with vocab\.json and merges\.txt, found none in "):
        find_encoder(path, tmp_path / "nowhere", ARCH)


def test_pickles_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(CheckpointError, match=r"expected text_encoder/model\.safetensors in the folder .* found none"):
        find_encoder(tmp_path)
    pickle = tmp_path / "text_encoder" / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"found only pytorch_model\.bin, a pickle"):
        find_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="got a pickle, which could run code"):
        find_encoder(pickle)
    with pytest.raises(CheckpointError, match="found no file or folder at"):
        find_encoder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "message"),
    [('{"hidden_act": "quick_gelu"}', "expected a text encoder with gelu.* got 'quick_gelu'"), ("{", "expected JSON")],
)
def test_a_folder_that_says_another_computation_is_refused(tmp_path: Path, config: str, message: str) -> None:
    write_folder(tmp_path, clip())
    (tmp_path / "text_encoder" / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        find_encoder(tmp_path, None, ARCH)


def test_without_transformers_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_encoder(folder, None, ARCH)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(OptionError, match=r'expected the package transformers .*pip install "gendr\[text\]"'):
        encode_texts(files, ("",), ARCH)


def test_a_prompt_file_is_what_convert_reads(tmp_path: Path) -> None:
    positive, negative = prompt(1), prompt(2)
    write_prompts(tmp_path / "prompt.safetensors", (positive, negative), ("a", ""))
    found = read_prompts(tmp_path / "prompt.safetensors")
    assert torch.equal(found.positive, positive)
    assert found.negative is not None
    assert torch.equal(found.negative, negative)
    with pytest.raises(CheckpointError, match=r"^prompt\.safetensors: the file cannot be written"):
        write_prompts(tmp_path / "nowhere" / "prompt.safetensors", (positive, negative), ("a", ""))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_keeps_all_but_its_prompts(tmp_path: Path, in_place: bool) -> None:
    source = tmp_path / "model.safetensors"
    state = {name: tensor.half() for name, tensor in unet_state().items()}
    write_unet(source, UNET_SPEC, state, prompt(1))
    before = source.read_bytes()
    target = source if in_place else tmp_path / "new.safetensors"
    write_model(source, target, (prompt(5), prompt(6)))
    found = read_unet(target)
    assert found.spec == UNET_SPEC
    assert_same(found.state, state)
    assert torch.equal(found.positive, prompt(5))
    assert found.negative is not None
    assert torch.equal(found.negative, prompt(6))
    assert in_place or source.read_bytes() == before
    assert sorted(load_file(target).keys() - state.keys()) == ["prompt.negative", "prompt.positive"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({source.name, target.name})


def test_a_model_of_another_width_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_unet(path, UNET_SPEC, unet_state(), prompt())
    check_model(path, TextArch(width=UNET_SPEC.arch.cross_attention_dim))
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: expected a UNet that takes .* 1024 wide, .* 8"):
        check_model(path)
    with pytest.raises(CheckpointError, match=r"expected a UNet .* got a text encoder"):
        check_model(write_state(tmp_path / "clip.safetensors", openclip_state(clip())))
