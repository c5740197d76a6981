"""``gendr convert``: a relative's published weights, merged into their base model, as GenDR's files.

Role: the command line of ``convert``.
"""

import argparse
import json
from pathlib import Path

from ..convert import Conversion, Sources, convert, read_prompts
from ..relatives import REFUSED, RELATIVES, find_relative
from .options import DTYPES, add_common_options

SUMMARY = "Merge the published weights of a relative of GenDR with its base model into files that GenDR runs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument(
        "relative",
        metavar="RELATIVE",
        help=", ".join(relative.key for relative in RELATIVES) + "; why not: " + ", ".join(one.key for one in REFUSED),
    )
    parser.add_argument("--adapter", required=True, metavar="FILE", help="the file that the relative publishes")
    base = "of the base model: a diffusers folder or a .safetensors file, whole checkpoints included"
    parser.add_argument("--unet", required=True, metavar="PATH", help=f"UNet {base}")
    parser.add_argument("--vae", required=True, metavar="PATH", help=f"VAE {base}; for tvt its own vae.ckpt")
    parser.add_argument(
        "--prompt",
        required=True,
        metavar="FILE",
        help="a .safetensors file with prompt.positive and perhaps prompt.negative, [77, 1024] each",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the new files go; it exists")
    parser.add_argument(
        "--degradation",
        nargs=2,
        type=float,
        metavar=("BLUR", "NOISE"),
        help="s3diff only: of the images to restore, each from 0 (none) to 1",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        default="fp16",
        help="of the weights that are written; they are merged in fp32 (default fp16)",
    )
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Convert and print the files; return True.

    Raises:
        OptionError: the relative cannot be converted, or an option is wrong.
        CheckpointError: a file cannot be read or written, or does not fit the others.
    """
    relative = find_relative(options.relative)
    conversion = Conversion(
        relative=relative,
        sources=Sources(adapter=Path(options.adapter), unet=Path(options.unet), vae=Path(options.vae)),
        degradation=None if options.degradation is None else tuple(options.degradation),
        dtype=DTYPES[options.dtype],
    )
    written = convert(conversion, read_prompts(Path(options.prompt)), Path(options.output))
    files = [str(path) for path in written]
    print(json.dumps({"relative": relative.key, "files": files}, indent=2) if options.json else "\n".join(files))
    return True
