"""Token numbers, with a vocabulary of eight words."""

import json
from pathlib import Path

import pytest
from text_encoders import ARCH, END, START, WORDS, write_vocabulary

from gendr_core.errors import CheckpointError
from gendr_core.vocabulary import holds_vocabulary, tokenize

NUMBERS = {word: number for number, word in enumerate(WORDS)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A vocabulary in a folder that says, as SD1's does, that texts are filled up with their end."""
    return write_vocabulary(tmp_path / "words")


def _tokens(folder: Path, *texts: str) -> list[list[int]]:
    pytest.importorskip("transformers", reason='texts are encoded by transformers: pip install "gendr[text]"')
    return tokenize(folder, texts, ARCH)


def test_texts_are_filled_up_with_word_0_whatever_the_folder_says(folder: Path) -> None:
    assert _tokens(folder, "", "a B") == [[START, END, 0, 0, 0, 0, 0, 0, 0], [START, 1, 2, END, 0, 0, 0, 0, 0]]
    (folder / "tokenizer_config.json").unlink()
    assert _tokens(folder, "") == [[START, END, 0, 0, 0, 0, 0, 0, 0]]


def test_an_exclamation_mark_is_the_padding_as_in_diffusers(folder: Path) -> None:
    assert _tokens(folder, "a! b") == [[START, 1, 0, 2, END, 0, 0, 0, 0]]


def test_long_texts_are_cut_before_the_end_and_say_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fits, long = "a b a b a b a", "a b a b a b a b b"
    row = [START, 1, 2, 1, 2, 1, 2, 1, END]
    assert _tokens(folder, fits) == [row]
    assert not caplog.records
    assert _tokens(folder, long) == [row]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["the prompt 'a b a b a b a b b'... has 9 tokens, 7 count"]


def test_a_folder_needs_both_files(folder: Path) -> None:
    assert holds_vocabulary(folder)
    (folder / "merges.txt").unlink()
    assert not holds_vocabulary(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, got something else"),
        ("[" * 100_000, "expected JSON, got something else"),
        ("[]", r"expected CLIP's 8 words, of which !, .* are \[0, 6, 7\], got 0 words with \[None, None, None\]"),
        (json.dumps({word: number for number, word in enumerate(WORDS[::-1])}), r"got 8 words with \[7, 1, 0\]"),
        (json.dumps({**NUMBERS, "more": 8}), "got 9 words"),
        (json.dumps({**NUMBERS, "a": 5}), "got 8 words"),
        (json.dumps({**NUMBERS, "a": "4"}), "got 8 words"),
        (" " * (16 * 2**20 + 1), "expected at most 16,777,216 bytes"),
    ],
)
def test_words_that_are_not_the_encoders_are_refused(folder: Path, content: str, message: str) -> None:
    (folder / "vocab.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"^vocab\.json: .*{message}"):
        _tokens(folder, "a")


@pytest.mark.parametrize("line", ["a", "a b c", "a b", "x y"])
def test_damaged_merges_are_refused(folder: Path, line: str) -> None:
    (folder / "merges.txt").write_text(f"#version: 0.2\n{line}\n")
    with pytest.raises(CheckpointError, match=rf"^merges\.txt: expected two words .* in line 2, got '{line}'"):
        _tokens(folder, "a")
    (folder / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"^merges\.txt: the file cannot be read"):
        _tokens(folder, "a")
