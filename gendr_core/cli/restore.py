"""``gendr restore``: image files in, restored image files out.

Role: joins ``files`` (what to read and write), ``image_io`` and ``pipeline.restore``. A file that fails does not
stop the ones after it.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from ..config import MAX_FEATHER_PX, RestoreOptions
from ..errors import OptionError
from ..finish import Guides
from ..host import Host, Meter
from ..image_io import read_image, write_image
from ..pipeline import restore
from ..samples import BitDepth
from ..tensors import luma
from .failures import FAILURES, report_failure
from .files import FORMATS, Job, Naming, check_alpha, check_format, check_targets, fitting_depth, plan_jobs
from .options import (
    Models,
    add_common_options,
    add_memory_options,
    add_model_options,
    add_restore_options,
    load_models,
    restore_options,
)

SUMMARY = "Restore and enlarge images in one diffusion step."
BIT_DEPTH_NAMES: dict[str, BitDepth | None] = {"auto": None, "8": 8, "16": 16, "32": 32}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileResult:
    """What happened to one file; sizes are [width, height] in pixels."""

    input: str
    output: str
    input_size: list[int] | None = None
    output_size: list[int] | None = None
    channels: int | None = None
    bit_depth: int | None = None
    """Of the output, per channel."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Of reading, restoring and handling."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Handling:
    """How results are stored and failures shown."""

    bit_depth: BitDepth | None
    """None keeps the input's."""
    quality: int
    guides: Guides
    """Pictures that the results depend on."""
    debug: bool
    """Whether failures show their traceback."""


class _Bar:
    """Progress of all files on one bar, which is shown on a terminal only."""

    def __init__(self, num_files: int, *, quiet: bool) -> None:
        self._files_done = 0
        self._bar: tqdm[Any] = tqdm(
            total=Meter.STEPS * num_files,
            bar_format="{l_bar}{bar}| {elapsed}<{remaining}",
            disable=quiet or not sys.stderr.isatty(),
        )

    def update(self, done: int, total: int) -> None:
        """Show that ``done`` of the ``total`` steps of the current file are finished."""
        del total
        self._bar.update(self._files_done * Meter.STEPS + done - self._bar.n)

    def finish_file(self) -> None:
        """Show that the current file is done with, whether it went well or not."""
        self.update(Meter.STEPS, Meter.STEPS)
        self._files_done += 1

    def say(self, line: str) -> None:
        """Print a line on stdout without tearing the bar."""
        self._bar.write(line, file=sys.stdout)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        self._bar.close()


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
    bar = _Bar(len(jobs), quiet=options.quiet)
    results: list[FileResult] = []
    try:
        for job in jobs:
            results.append(_attempt(job, models, settings, handling, bar))
            bar.finish_file()
            if not (options.quiet or options.json or results[-1].error):
                bar.say(_line(results[-1]))
    finally:
        bar.close()
    if options.json:
        seconds = {"load": round(models.load_s, 4), "total": round(perf_counter() - start, 4)}
        files = [asdict(result) for result in results]
        print(json.dumps({**models.describe(), "seconds": seconds, "files": files}, indent=2))
    return not any(result.error for result in results)


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
    return jobs, Handling(bit_depth=bit_depth, quality=options.quality, guides=guides, debug=options.debug)


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


def _attempt(job: Job, models: Models, settings: RestoreOptions, handling: Handling, bar: _Bar) -> FileResult:
    """Return what happened to one file; failures that are no fault of GenDR are printed and returned."""
    try:
        return _restore_file(job, models, settings, handling, bar)
    except FAILURES as error:
        message = report_failure(job.source, error, debug=handling.debug)
        return FileResult(input=str(job.source), output=str(job.target), error=message)


def _restore_file(job: Job, models: Models, settings: RestoreOptions, handling: Handling, bar: _Bar) -> FileResult:
    marks = [perf_counter()]
    file = read_image(job.source)
    check_alpha(job.target, file.image.shape[3])
    bit_depth = handling.bit_depth or fitting_depth(job.target, file.bit_depth)
    marks.append(perf_counter())
    host = Host(progress=bar)
    image = restore(file.image, models.unet, models.vae, settings, host=host, guides=handling.guides)
    marks.append(perf_counter())
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_image(job.target, image, bit_depth, icc=file.icc, quality=handling.quality)
    marks.append(perf_counter())
    seconds = (round(end - begin, 4) for begin, end in pairwise(marks))
    return FileResult(
        input=str(job.source),
        output=str(job.target),
        input_size=[file.image.shape[2], file.image.shape[1]],
        output_size=[image.shape[2], image.shape[1]],
        channels=image.shape[3],
        bit_depth=bit_depth,
        seconds=dict(zip(("read", "restore", "write"), seconds, strict=True)),
    )


def _line(result: FileResult) -> str:
    sizes = " -> ".join("x".join(map(str, size)) for size in (result.input_size, result.output_size) if size)
    return f"{result.input} -> {result.output}  {sizes}  {sum(result.seconds.values()):.2f} s"
