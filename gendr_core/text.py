"""Texts to prompt embeddings with the text encoder of SD2.x, and into files.

Role: beside ``convert``, which reads the prompt files that are written here; ``textfile`` knows the encoder's tensors,
``vocabulary`` its words. Here and there ``transformers`` is used, an optional package, imported when a text is encoded.

As in diffusers' SD2.1: a text is its start, its tokens and its end, then token 0 up to 77 in all, where SD1.x repeats
the end. The embedding is the hidden state after 23 of the 24 layers of OpenCLIP ViT-H/14, normalised as the last is.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .checkpoint import SpecOverrides, inspect, read_unet, write_unet
from .errors import CheckpointError, OptionError, errors_about
from .header import PICKLE_SUFFIXES, Shape, read_header
from .layouts import PROMPT_NAMES
from .spec import ModelSpec
from .tensorfile import check_dtypes, read_tensors, write_tensors
from .textfile import SD2, Piece, TextArch, locate_encoder
from .vocabulary import VOCABULARY, holds_vocabulary, tokenize

PACKAGE = "transformers"
WEIGHTS = ("model.safetensors", "model.fp16.safetensors")
"""What a folder calls an encoder's weights, the more exact one first."""
ACTIVATION = "gelu"
TEXTS_KEY = "texts"
"""Metadata of a prompt file: the texts that it was made of, as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderFiles:
    """What encoding reads."""

    weights: Path
    """A .safetensors file."""
    vocabulary: Path
    """A folder with ``VOCABULARY``."""


def find_encoder(path: Path, tokenizer: Path | None = None, arch: TextArch = SD2) -> EncoderFiles:
    """Return the files that a user means by a file, or by a folder as diffusers writes it; no tensor is read.

    Args:
        path: a .safetensors file with a text encoder, a whole checkpoint, or the folder of either.
        tokenizer: a folder with a vocabulary; None looks in ``path`` and beside it.
        arch: the encoder that is expected.

    Raises:
        CheckpointError: there is no encoder, another one, or no vocabulary for it.
    """
    weights = _find_weights(path)
    _locate(weights, arch)
    folder = weights.parent
    places = [folder, folder / "tokenizer", folder.parent / "tokenizer"]
    for place in places if tokenizer is None else [tokenizer, tokenizer / "tokenizer"]:
        if holds_vocabulary(place):
            return EncoderFiles(weights=weights, vocabulary=place)
    wanted = " and ".join(VOCABULARY)
    if tokenizer is not None:
        raise CheckpointError(f"expected a folder with {wanted}, found none in {tokenizer}: check the path")
    raise CheckpointError(
        f"{weights.name}: expected {wanted} beside the text encoder, found none, and a weight file does not hold a"
        " vocabulary: give a folder with them as --tokenizer, such as the tokenizer folder of SD2.1, or ComfyUI's own"
        " comfy/sd1_tokenizer, which has the same words"
    )


def _find_weights(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"expected a text encoder, found no file or folder at {path}: check the path")
    folders = [path / "text_encoder", path]
    for folder in folders:
        for name in WEIGHTS:
            if (folder / name).is_file():
                _check_config(folder / "config.json")
                return folder / name
    pickles = [file.name for each in folders for file in each.glob("*") if file.suffix.lower() in PICKLE_SUFFIXES]
    instead = f"only {pickles[0]}, a pickle, which could run code" if pickles else "none"
    raise CheckpointError(
        f"expected text_encoder/{WEIGHTS[0]} in the folder {path.name}, found {instead}: choose the folder of a whole"
        " SD2.1 model or of its text encoder, or a .safetensors file"
    )


def _check_config(path: Path) -> None:
    """Raise where a folder's own description says that shapes like SD2's are used in another way."""
    if not path.is_file():
        return
    try:
        config: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: expected JSON, got something else ({error}): get it again") from error
    said = cast("dict[str, object]", config).get("hidden_act", ACTIVATION) if isinstance(config, dict) else ACTIVATION
    if said != ACTIVATION:
        raise CheckpointError(
            f"{path.name}: expected a text encoder with {ACTIVATION}, as that of SD2.x, got {said!r:.40}: choose"
            " another one"
        )


def encode_texts(files: EncoderFiles, texts: Sequence[str], arch: TextArch = SD2) -> list[Tensor]:
    """Return the embedding of each text, [tokens, width] float32 on the CPU; texts that are too long are cut.

    Args:
        files: from ``find_encoder``.
        texts: may be empty texts.
        arch: the encoder that is expected.

    Raises:
        CheckpointError: a file cannot be read, or is another encoder's.
        OptionError: transformers is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise OptionError(f'expected the package {PACKAGE} to encode texts, found none: pip install "gendr[text]"')
    rows = tokenize(files.vocabulary, texts, arch)
    network = _load(files.weights, arch)
    places = torch.arange(arch.tokens)[None]
    with torch.no_grad():
        # No mask for the padding: SD2 was trained with it in sight.
        return [
            cast("Any", network)(input_ids=torch.tensor([row]), position_ids=places).last_hidden_state[0]
            for row in rows
        ]


def _load(path: Path, arch: TextArch) -> nn.Module:
    """Return the encoder in float32."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=arch.words,
        hidden_size=arch.width,
        intermediate_size=arch.hidden,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        max_position_embeddings=arch.tokens,
        hidden_act=ACTIVATION,
        pad_token_id=0,
        bos_token_id=arch.words - 2,
        eos_token_id=arch.words - 1,
    )
    with torch.device("meta"):
        network = cast("nn.Module", cast("Any", CLIPTextModel)(config))
    state = _read_encoder(path, arch)
    # Versions before 5 put all of it in one more module.
    outer = "text_model." if any(name.startswith("text_model.") for name in network.state_dict()) else ""
    network.load_state_dict({outer + name: tensor for name, tensor in state.items()}, assign=True)
    return network.requires_grad_(False).train(False)


def _locate(path: Path, arch: TextArch) -> tuple[dict[str, Piece], dict[str, Shape]]:
    """Return where the encoder's tensors lie in a file, and the shapes of those that it lies in."""
    with errors_about(path):
        header = read_header(path)
        pieces = locate_encoder(header.shapes, arch)
        sources = {piece.source for piece in pieces.values()}
        check_dtypes(header, sources)
        return pieces, {source: header.shapes[source] for source in sources}


def _read_encoder(path: Path, arch: TextArch) -> dict[str, Tensor]:
    """Return the encoder's weights in float32 under the names of transformers."""
    pieces, shapes = _locate(path, arch)
    with errors_about(path):
        stored = read_tensors(path, {source: source for source in shapes}, shapes)
    return {name: _cut(stored[source], third).float().contiguous() for name, (source, third) in pieces.items()}


def _cut(tensor: Tensor, third: int | None) -> Tensor:
    return tensor if third is None else tensor.chunk(3)[third]


def write_prompts(path: Path, prompts: tuple[Tensor, Tensor], texts: tuple[str, str]) -> None:
    """Write a prompt file that ``convert.read_prompts`` reads.

    Args:
        path: ends in .safetensors or .sft; an existing file is replaced.
        prompts: positive and negative embedding [tokens, width].
        texts: what they were made of, kept in the metadata.

    Raises:
        CheckpointError: the file cannot be written.
    """
    words = json.dumps(dict(zip(("positive", "negative"), texts, strict=True)))
    with errors_about(path):
        write_tensors(path, dict(zip(PROMPT_NAMES, prompts, strict=True)), {TEXTS_KEY: words})


def check_model(path: Path, arch: TextArch = SD2) -> None:
    """Check by its header that a UNet file can take prompts of this encoder.

    Raises:
        CheckpointError: it holds no UNet, or one that takes prompts of another width or has its own baked in.
    """
    report = inspect(path)
    if report.kind != "unet":
        raise CheckpointError(report.problem or f"{path.name}: expected a UNet alone, got a {report.kind}: choose one")
    if report.folds:
        raise CheckpointError(f"{path.name}: expected a plain UNet, got a baked one: name the file it was baked from")
    if isinstance(report.spec, ModelSpec) and report.spec.arch.cross_attention_dim != arch.width:
        raise CheckpointError(
            f"{path.name}: expected a UNet that takes prompts of SD2's text encoder, {arch.width} wide, got one for"
            f" {report.spec.arch.cross_attention_dim}: it runs with the prompt that it was trained with"
        )


def write_model(source: Path, target: Path, prompts: tuple[Tensor, Tensor]) -> None:
    """Write a UNet file again with other prompts; its weights stay as they are, bit by bit.

    Args:
        source: a UNet file that ``checkpoint.read_unet`` reads, with or without prompts of its own.
        target: ends in .safetensors or .sft; an existing file is replaced once all is written, ``source`` too.
        prompts: positive and negative embedding [tokens, width].

    Raises:
        CheckpointError: a file cannot be read or written, or the prompts do not fit.
    """
    positive, negative = prompts
    found = read_unet(source, SpecOverrides(positive=positive, negative=negative))
    state = found.state
    if target.exists() and target.samefile(source):
        # Some systems refuse to replace a file that is mapped.
        state = {name: tensor.clone() for name, tensor in state.items()}
        found.state.clear()
    write_unet(target, found.spec, state, positive, negative)
