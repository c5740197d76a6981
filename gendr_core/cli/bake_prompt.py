"""``gendr bake-prompt``: texts to fixed prompt embeddings, in a file of their own or in a UNet's.

Role: the command line of ``text``.
"""

import argparse
import json
from pathlib import Path

from ..errors import OptionError
from ..model import resolve_weights
from ..text import check_model, encode_texts, find_encoder, write_model, write_prompts
from .files import check_weight_target
from .options import add_common_options

SUMMARY = "Compute prompt embeddings with the text encoder of SD2.x, for gendr convert or straight into a UNet file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument(
        "--encoder",
        required=True,
        metavar="PATH",
        type=Path,
        help="text encoder of SD2.x: a diffusers folder or a .safetensors file, whole SD2.1 checkpoints included",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        type=Path,
        help="with vocab.json and merges.txt, where they do not lie beside the encoder; ComfyUI's comfy/sd1_tokenizer"
        " will do",
    )
    parser.add_argument("--positive", default="", metavar="TEXT", help="what pictures should look like (default empty)")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what guidance leads away from (default empty)")
    parser.add_argument("--into", metavar="MODEL", help="write this UNet again with the prompts, not a prompt file")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", type=Path, help="the .safetensors file to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE, which may be MODEL itself")
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Encode both texts and print the file; return True.

    Raises:
        OptionError: the output is in the way or cannot be, or transformers is not installed.
        CheckpointError: a file cannot be read or written, or is not what it should be.
    """
    texts: tuple[str, str] = (options.positive, options.negative)
    target: Path = options.output
    check_weight_target(target, overwrite=options.overwrite)
    model = None if options.into is None else resolve_weights(options.into)
    if model is not None:
        check_model(model)
    files = find_encoder(options.encoder, options.tokenizer)
    if target.exists() and target.samefile(files.weights):
        raise OptionError(f"expected another name to write to than that of the text encoder itself, got {target.name}")
    positive, negative = encode_texts(files, texts)
    if model is None:
        write_prompts(target, (positive, negative), texts)
    else:
        write_model(model, target, (positive, negative))
    report = {
        "file": str(target),
        "into": None if model is None else str(model),
        "shape": list(positive.shape),
        "positive": texts[0],
        "negative": texts[1],
    }
    print(json.dumps(report, indent=2) if options.json else str(target))
    return True
