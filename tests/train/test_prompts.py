"""Prompts and captions, with a text encoder of one tiny layer made on the spot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gendr_train import prompts as prompts_module
from gendr_train.errors import TrainingError
from gendr_train.prompts import Prompts, TextEncoder
from gendr_train.rng import Draws
from gendr_train.sections import PromptConfig

CPU = torch.device("cpu")
DIM, TOKENS = 8, 7
WORDS = ["!", "a</w>", "b</w>", "a", "b", "<|startoftext|>", "<|endoftext|>"]


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as diffusers has it, with CLIP's own tokenizer over two words."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("sd")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    said = {"model_max_length": TOKENS, "pad_token": "!", "unk_token": WORDS[-1]}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(said))
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=DIM,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=5,
        eos_token_id=6,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def _copy(source: Path, target: Path) -> Path:
    for file in (file for file in source.rglob("*") if file.is_file()):
        to = target / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(file.read_bytes())
    return target


def _draws(*positions: int) -> Draws:
    return Draws(5, positions, CPU)


def test_an_embedding_is_the_last_hidden_state_of_the_padded_tokens(encoder_folder: Path) -> None:
    from transformers import CLIPTextModel

    network: Any = CLIPTextModel.from_pretrained(encoder_folder / "text_encoder")
    expected = network(torch.tensor([[5, 1, 2, 6, 0, 0, 0], [5, 6, 0, 0, 0, 0, 0]]))[0]
    embedded = TextEncoder.load(str(encoder_folder), DIM).encode(("a b", ""), CPU)
    assert embedded.shape == (2, TOKENS, DIM)
    assert torch.allclose(embedded, expected, atol=1e-6)
    assert not embedded.requires_grad


def test_long_captions_are_cut(encoder_folder: Path) -> None:
    encoder = TextEncoder.load(str(encoder_folder), DIM)
    assert torch.equal(encoder.encode(("a b a b a b a b",), CPU), encoder.encode(("a b a b a",), CPU))


def test_half_precision_files_of_older_names_give_the_same(encoder_folder: Path, tmp_path: Path) -> None:
    folder = _copy(encoder_folder, tmp_path / "old")
    file = folder / "text_encoder" / "model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": value.half() for name, value in load_file(file).items()
    }
    save_file({**weights, "text_model.embeddings.position_ids": torch.arange(TOKENS)[None]}, file, {"format": "pt"})
    new, old = (TextEncoder.load(str(f), DIM).encode(("a b",), CPU) for f in (encoder_folder, folder))
    assert old.dtype == torch.float32
    assert torch.allclose(new, old, atol=5e-3)


def test_known_captions_are_not_encoded_again(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "CACHED", 2)
    encoder = TextEncoder.load(str(encoder_folder), DIM)
    seen: list[int] = []
    encoder._network.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    first = encoder.encode(("a", "b", "a"), CPU)
    assert torch.equal(first[0], first[2])
    assert torch.equal(encoder.encode(("b", "a"), CPU), first[:2].flip(0))
    assert seen == [2]
    more = encoder.encode(("", "a b", "b a", "b"), CPU)  # More at once than are kept.
    assert torch.allclose(more[3], first[1], atol=1e-6)
    encoder.encode(("a",), CPU)
    assert seen == [2, 3, 1]


def test_an_empty_caption_is_the_positive_prompt(encoder_folder: Path) -> None:
    config = PromptConfig(text_encoder=str(encoder_folder), positive="a b", negative="b")
    prompts = Prompts(config, DIM, stored=(torch.zeros(1, DIM), None))
    embedded = prompts.embed(["", "b", "a"])
    assert torch.allclose(embedded[0], prompts.positive, atol=1e-6)
    assert torch.allclose(embedded[1], prompts.negative, atol=1e-6)
    assert not torch.allclose(embedded[2], prompts.positive, atol=1e-2)


def test_without_an_encoder_two_seeded_tokens_stand_for_all_captions() -> None:
    torch.manual_seed(1)
    prompts = Prompts(PromptConfig(), DIM)
    torch.manual_seed(1)
    assert torch.equal(prompts.positive, torch.randn(1, DIM))
    assert torch.equal(prompts.negative, torch.randn(1, DIM))
    assert torch.equal(prompts.embed(["a cat", ""]), prompts.positive.expand(2, 1, DIM))
    assert not list(prompts.parameters())


@pytest.mark.parametrize("with_negative", [False, True])
def test_stored_prompts_are_kept(with_negative: bool) -> None:
    stored = torch.randn(3, DIM).half(), (torch.randn(3, DIM).half() if with_negative else None)
    prompts = Prompts(PromptConfig(), DIM, stored=stored)
    assert torch.equal(prompts.positive, stored[0].float())
    assert prompts.negative.shape == (3, DIM)
    assert stored[1] is None or torch.equal(prompts.negative, stored[1].float())


def test_prompts_are_part_of_the_state() -> None:
    one, other = Prompts(PromptConfig(), DIM), Prompts(PromptConfig(), DIM)
    assert not torch.equal(one.positive, other.positive)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.positive, other.positive)
    assert torch.equal(one.negative, other.negative)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6, 1.0])
def test_captions_are_dropped_at_the_given_rate(rate: float) -> None:
    prompts = Prompts(PromptConfig(dropout=rate), DIM)
    count = 2000
    given = prompts.conditions([""] * count, _draws(*range(count)))
    is_negative = (given == prompts.negative).flatten(1).all(1)
    assert torch.equal(given[~is_negative], prompts.positive.expand(int((~is_negative).sum()), 1, DIM))
    allowed = 4.0 * (rate * (1.0 - rate) / count) ** 0.5
    assert float(is_negative.float().mean()) == pytest.approx(rate, abs=allowed)


def test_which_are_dropped_does_not_depend_on_the_batch() -> None:
    prompts = Prompts(PromptConfig(dropout=0.5), DIM)
    together = prompts.conditions([""] * 8, _draws(*range(8)))
    apart = [prompts.conditions([""] * 2, _draws(i, i + 1)) for i in range(0, 8, 2)]
    assert torch.equal(together, torch.cat(apart))
    assert len(together.unique(dim=0)) == 2


def test_wrong_text_encoders_are_refused(encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"expected embeddings of width 16 .* got 8"):
        TextEncoder.load(str(encoder_folder), 16)
    lacking = _copy(encoder_folder, tmp_path / "lacking")
    file = lacking / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(TrainingError, match=r"expected a whole text_encoder .* without .*q_proj"):
        TextEncoder.load(str(lacking), DIM)
    empty = _copy(encoder_folder / "text_encoder", tmp_path / "empty" / "text_encoder").parent
    with pytest.raises(TrainingError, match=r"expected a .*tokenizer"):
        TextEncoder.load(str(empty), DIM)
    with pytest.raises(TrainingError, match="expected a model with tokenizer and text_encoder"):
        TextEncoder.load(str(tmp_path), DIM)
