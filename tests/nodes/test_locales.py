"""Texts of the nodes in every language that the pack speaks: complete, and English as the schemas have it.

English is written anew by ``pytest tests/nodes/test_locales.py --rewrite``; what then fails is still to be translated.
"""

import json
import re
from typing import Any

import pytest
from pack import ROOT, Pack

FOLDER = ROOT / "locales"
LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de", "es")
NAMES = re.compile(
    r"gendr-mini[a-z0-9-]*|\.safetensors|models/[a-z_]+|GenDR|SD2\.x|CLIP|KSampler|RGBA|GiB|TFLOP"
    "|(?:wavelet|adain|lab|ycbcr|none|windows|full|auto|whole|tiles)(?= ?[:\uff1a])"
)
"""What no language translates: files, folders, values of widgets, names of other things."""


def english(pack: Pack) -> dict[str, Any]:
    """Return the texts of the schemas in the form of a host's ``nodeDefs.json``."""
    texts = {}
    for node_id, node in pack.nodes.items():
        schema = node.define_schema()
        texts[node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                part.id: {"name": part.display_name or part.id, "tooltip": part.tooltip} for part in schema.inputs
            },
            "outputs": {
                str(index): {"name": part.display_name, "tooltip": part.tooltip}
                for index, part in enumerate(schema.outputs)
            },
        }
    return texts


def flat(texts: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Return every text by the keys that lead to it."""
    found: dict[tuple[str, ...], str] = {}
    for key, value in texts.items():
        found |= flat(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


def read(language: str) -> dict[tuple[str, ...], str]:
    """Return the texts of a language."""
    return flat(json.loads((FOLDER / language / "nodeDefs.json").read_text(encoding="utf-8")))


def test_english_is_what_the_schemas_say(pack: Pack, rewrite: bool) -> None:
    if rewrite:
        text = json.dumps(english(pack), indent=2, ensure_ascii=False)
        (FOLDER / "en" / "nodeDefs.json").write_text(text + "\n", encoding="utf-8")
    assert read("en") == flat(english(pack))


def test_the_languages_are_those_promised() -> None:
    assert {folder.name for folder in FOLDER.iterdir()} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_text_is_there_and_translated(language: str) -> None:
    original, translated = read("en"), read(language)
    assert list(translated) == list(original)
    assert all(text.strip() == text != "" for text in translated.values())
    # Sentences differ in every language; names of sockets may be the same word.
    same = [key for key, text in translated.items() if text == original[key] and key[-1] in ("description", "tooltip")]
    assert same == []


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_what_is_a_name_stays_as_it_is(language: str) -> None:
    original, translated = read("en"), read(language)
    for key, text in original.items():
        if key[-1] != "name":
            assert set(NAMES.findall(text)) <= set(NAMES.findall(translated[key])), key


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_numbers_are_kept(language: str) -> None:
    original, translated = read("en"), read(language)
    for key, text in original.items():
        assert sorted(re.findall(r"\d+", text)) == sorted(re.findall(r"\d+", translated[key])), key
