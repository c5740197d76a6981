"""CLIP's words: the two files that hold them, checked, and texts as token numbers.

Role: between ``text`` and ``transformers``, an optional package that is imported when a text is given. Its tokenizer
breaks in many ways on files that are not what it expects, so they are compared with what it will ask of them first.
"""

import json
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, cast

from .errors import CheckpointError
from .textfile import TextArch

VOCABULARY = ("vocab.json", "merges.txt")
PADDING, START, END = "!", "<|startoftext|>", "<|endoftext|>"
"""As SD2.1's tokenizer says; its padding is word 0, and so is an exclamation mark in a text."""
MAX_BYTES = 16 * 2**20
"""CLIP's files have 1.1 and 0.5 MB."""

_log = getLogger(__name__)


def holds_vocabulary(folder: Path) -> bool:
    """Return whether a folder has both files."""
    return all((folder / name).is_file() for name in VOCABULARY)


def tokenize(folder: Path, texts: Sequence[str], arch: TextArch) -> list[list[int]]:
    """Return the token numbers of each text: start, tokens, end, then 0, ``arch.tokens`` in all.

    What is too long is cut before the end, with a warning.

    Args:
        folder: with both files; what else lies there has no part in it.
        texts: may be empty texts.
        arch: says how many words there are, and how many tokens a text has.

    Raises:
        CheckpointError: the files are damaged, or another encoder's.
    """
    words = _read_words(folder, arch)
    _check_merges(folder, words)
    import transformers

    # The same in all versions; since version 5 it is another name of CLIPTokenizer, which stubs do not know.
    tokenizer = cast("Any", transformers).CLIPTokenizerFast.from_pretrained(
        str(folder), pad_token=PADDING, bos_token=START, eos_token=END, unk_token=END, local_files_only=True
    )
    rows: list[list[int]] = []
    for text in texts:
        row: list[int] = tokenizer(text, verbose=False).input_ids
        if len(row) > arch.tokens:
            _log.warning("the prompt %.40r... has %d tokens, %d count", text, len(row) - 2, arch.tokens - 2)
            row = [*row[: arch.tokens - 1], words[END]]
        rows.append(row + [words[PADDING]] * (arch.tokens - len(row)))
    return rows


def _read_words(folder: Path, arch: TextArch) -> dict[str, int]:
    """Return the number of every word."""
    parsed: object = None
    try:
        parsed = json.loads(_read(folder / VOCABULARY[0]))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{VOCABULARY[0]}: expected JSON, got something else ({error}): get it again") from error
    words = cast("dict[str, int]", parsed) if isinstance(parsed, dict) else {}
    signs = [words.get(sign) for sign in (PADDING, START, END)]
    wanted = [0, arch.words - 2, arch.words - 1]
    if sorted(words.values(), key=str) != sorted(range(arch.words), key=str) or signs != wanted:
        raise CheckpointError(
            f"{VOCABULARY[0]}: expected CLIP's {arch.words:,} words, of which {PADDING}, {START} and {END} are"
            f" {wanted}, got {len(words):,} words with {signs}: choose the tokenizer folder of SD2.1"
        )
    return words


def _check_merges(folder: Path, words: dict[str, int]) -> None:
    """Raise unless every line after the first names two words that are one word together."""
    for number, line in enumerate(_read(folder / VOCABULARY[1]).split("\n")[1:], start=2):
        pair = line.split()
        if pair and (len(pair) != 2 or not {*pair, "".join(pair)} <= words.keys()):
            raise CheckpointError(
                f"{VOCABULARY[1]}: expected two words of {VOCABULARY[0]} that make a third in line {number}, got"
                f" {line!r:.60}: choose the tokenizer folder of SD2.1"
            )


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path.name}: expected at most {MAX_BYTES:,} bytes, got more: get it again")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path.name}: the file cannot be read ({error}): get it again") from error
