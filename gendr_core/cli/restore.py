"""``gendr restore``: image files in, restored image files out.

Role: settles what is asked before the first image is read: ``files`` says what to read and write, ``groups`` which of
them go through the networks together, and ``line`` takes them through.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

from ..config import MAX_FEATHER_PX, RestoreOptions
from ..errors import OptionError
from ..finish import Guides
from ..image_io import read_image
from ..samples import BitDepth
from ..tensors import luma
from .bar import Bar
from .files import FORMATS, Job, Naming, check_format, check_targets, plan_jobs
from .groups import group_jobs
from .line import Files, Handling
from .options import (
    add_common_options,
    add_memory_options,
    add_model_options,
    add_restore_options,
    load_models,
    restore_options,
)
from .overlap import run_line

SUMMARY = "Restore and enlarge images in one diffusion step."
BIT_DEPTH_NAMES: dict[str, BitDepth | None] = {"auto": None, "8": 8, "16": 16, "32": 32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument("inputs", nargs="+", metavar="IN", help="an image file, a folder of them, or a glob pattern")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="a file for a single image, else a folder (made)",
    )
    add_restore_options(parser)
    _add_guides(parser)
    add_memory_options(parser)
    add_model_options(parser)
    group = parser.add_argument_group("output files")
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    group.add_argument(
        "--format", choices=FORMATS, default="auto", help="type of files in a folder (auto: PNG, or TIFF for TIFF)"
    )
    group.add_argument("--suffix", default="", help="text added to the names of files in a folder")
    group.add_argument(
        "--bit-depth",
        choices=BIT_DEPTH_NAMES,
        default="auto",
        help="bits per channel (auto: the input's, where the type can)",
    )
    group.add_argument("--quality", type=int, default=95, metavar="Q", help="1 to 100 for JPEG and WebP (default 95)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no lines on stdout")
    add_common_options(parser)


def _add_guides(parser: argparse.ArgumentParser) -> None:
    """Add the files beside the images, and what is to be done with them."""
    group = parser.add_argument_group("guides")
    group.add_argument(
        "--mask", type=Path, metavar="FILE", help="for a single image: what is white is restored, what is black is kept"
    )
    group.add_argument(
        "--feather",
        type=int,
        default=RestoreOptions().feather_px,
        metavar="PIXELS",
        help=f"how far the border of the mask is smoothed, 0 to {MAX_FEATHER_PX} output pixels (default %(default)s)",
    )
    group.add_argument(
        "--color-reference", type=Path, metavar="FILE", help="image whose colours are taken (default: the input)"
    )


def run(options: argparse.Namespace) -> bool:
    """Restore every file; return whether all went well.

    Raises:
        GenDRError: something is wrong before the first file: options, outputs in the way, or the model.
    """
    start = perf_counter()
    settings = replace(restore_options(options), feather_px=options.feather)
    jobs, handling = _settle(options)
    models = load_models(options)
    groups = group_jobs(jobs, models, settings)
    bar = Bar(len(jobs), quiet=options.quiet)
    files = Files(groups, models, settings, handling, bar)
    try:
        run_line(groups, files.stages())
        bar.finish()
    finally:
        bar.close()
    if options.json:
        seconds = {"load": round(models.load_s, 4), "total": round(perf_counter() - start, 4)}
        results = [asdict(files.results[job]) for job in jobs]
        print(json.dumps({**models.describe(), "seconds": seconds, "files": results}, indent=2))
    return not any(result.error for result in files.results.values())


def _settle(options: argparse.Namespace) -> tuple[list[Job], Handling]:
    """Return what will be done, after checking all that can be checked without reading an image to restore."""
    if not 1 <= options.quality <= 100:
        raise OptionError(f"expected --quality from 1 to 100, got {options.quality}")
    jobs = plan_jobs(options.inputs, options.output, Naming(suffix=options.suffix, format=options.format))
    bit_depth = BIT_DEPTH_NAMES[options.bit_depth]
    for job in jobs:
        check_format(job.target, bit_depth)
    check_targets([job.target for job in jobs], overwrite=options.overwrite)
    guides = _read_guides(options, len(jobs))
    lines = not (options.quiet or options.json)
    return jobs, Handling(bit_depth=bit_depth, quality=options.quality, guides=guides, debug=options.debug, lines=lines)


def _read_guides(options: argparse.Namespace, num_jobs: int) -> Guides:
    """Return what ``_add_guides`` names; of a mask in colours the luma counts, its alpha does not.

    Raises:
        OptionError: there is a mask, and more than one image.
        ImageError: a file cannot be read.
    """
    mask = reference = None
    if options.mask is not None:
        if num_jobs != 1:
            raise OptionError(f"expected a single image with --mask, got {num_jobs}: restore them one by one")
        planes = read_image(options.mask).image.permute(0, 3, 1, 2)
        mask = (planes if planes.shape[1] == 1 else luma(planes[:, :3]))[:, 0]
    if options.color_reference is not None:
        reference = read_image(options.color_reference).image
    return Guides(mask=mask, color_reference=reference)
