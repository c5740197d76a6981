"""``gendr restore``: image files in, restored image files out.

Role: joins ``files`` (what to read and write), ``image_io`` and ``pipeline.restore``; of several files, ``overlap``
reads the next and writes the last while one is restored. A file that fails does not stop the ones after it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter

from PIL import Image
from torch import Tensor

from ..config import MAX_FEATHER_PX, RestoreOptions
from ..errors import OptionError
from ..finish import Guides
from ..host import Host
from ..image_io import BIT_DEPTHS, read_image, write_image
from ..pipeline import restore
from ..samples import BitDepth
from ..tensors import luma
from .bar import Bar
from .failures import FAILURES, report_failure
from .files import (
    FORMATS,
    TIFF_SUFFIXES,
    Job,
    Naming,
    check_alpha,
    check_format,
    check_targets,
    fitting_depth,
    plan_jobs,
)
from .options import (
    Models,
    add_common_options,
    add_memory_options,
    add_model_options,
    add_restore_options,
    load_models,
    restore_options,
)
from .overlap import Stages, run_line

SUMMARY = "Restore and enlarge images in one diffusion step."
BIT_DEPTH_NAMES: dict[str, BitDepth | None] = {"auto": None, "8": 8, "16": 16, "32": 32}
AHEAD_BYTES, BEHIND_BYTES = 64 << 20, 192 << 20
"""Largest image, as float32, that stands read or waits to be written while another is restored: 4 megapixels, taken for
RGBA, and 16 in RGB. With what decoders and encoders take beside them they stay within the GiB that a plan leaves free
(``memory.reserve_bytes``)."""


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
    lines: bool
    """Whether successes are told on stdout, too."""


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
    bar = Bar(len(jobs), quiet=options.quiet)
    files = _Files(jobs, models, settings, handling, bar)
    try:
        run_line(jobs, files.stages())
        bar.finish()
    finally:
        bar.close()
    if options.json:
        seconds = {"load": round(models.load_s, 4), "total": round(perf_counter() - start, 4)}
        results = [asdict(result) for result in files.results]
        print(json.dumps({**models.describe(), "seconds": seconds, "files": results}, indent=2))
    return not any(result.error for result in files.results)


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


def _is_small(path: Path) -> bool:
    """Tell by its header whether an image may be read ahead; of TIFF, which Pillow does not know all of, none may."""
    suffix = path.suffix.lower()
    form = Image.registered_extensions().get(suffix)
    if form not in Image.OPEN or suffix not in BIT_DEPTHS or suffix in TIFF_SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            width, height = Image.OPEN[form][0](file, str(path)).size  # Why not Image.open: see image_io.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # What is wrong with it is told in its place.
    return width * height * 4 * 4 <= AHEAD_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class _InHand:
    """A file between two stages."""

    image: Tensor
    """[1, H, W, C] in 0 to 1: the input, later the result."""
    icc: bytes | None
    bit_depth: BitDepth
    """Of the output."""
    input_size: list[int]
    seconds: dict[str, float]


class _Files:
    """The stages of a file, and what happened to those that ended."""

    def __init__(
        self, jobs: Sequence[Job], models: Models, settings: RestoreOptions, handling: Handling, bar: Bar
    ) -> None:
        self.results: list[FileResult] = []
        self._places = {job: index for index, job in enumerate(jobs)}
        self._models, self._settings, self._handling, self._bar = models, settings, handling, bar

    def stages(self) -> Stages[Job, _InHand, _InHand]:
        # A budget that the user names counts all that there is beside the image, unless it is that of a GPU.
        overlaps = self._settings.memory.budget_bytes is None or self._models.device.type == "cuda"
        return Stages(
            read=self._read,
            work=self._restore,
            write=self._write,
            fail=self._fail,
            failures=FAILURES,
            reads_ahead=lambda job: overlaps and _is_small(job.source),
            writes_behind=lambda result: overlaps and result.image.nbytes <= BEHIND_BYTES,
        )

    def _read(self, job: Job) -> _InHand:
        start = perf_counter()
        file = read_image(job.source)
        _, height, width, channels = file.image.shape
        check_alpha(job.target, channels)
        return _InHand(
            image=file.image,
            icc=file.icc,
            bit_depth=self._handling.bit_depth or fitting_depth(job.target, file.bit_depth),
            input_size=[width, height],
            seconds={"read": _since(start)},
        )

    def _restore(self, job: Job, file: _InHand) -> _InHand:
        self._bar.begin_file(self._places[job])
        start = perf_counter()
        unet, vae = self._models.unet, self._models.vae
        host = Host(progress=self._bar)
        image = restore(file.image, unet, vae, self._settings, host=host, guides=self._handling.guides)
        return replace(file, image=image, seconds={**file.seconds, "restore": _since(start)})

    def _write(self, job: Job, result: _InHand) -> None:
        start = perf_counter()
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_image(job.target, result.image, result.bit_depth, icc=result.icc, quality=self._handling.quality)
        _, height, width, channels = result.image.shape
        self.results.append(
            FileResult(
                input=str(job.source),
                output=str(job.target),
                input_size=result.input_size,
                output_size=[width, height],
                channels=channels,
                bit_depth=result.bit_depth,
                seconds={**result.seconds, "write": _since(start)},
            )
        )
        if self._handling.lines:
            self._bar.say(_line(self.results[-1]))

    def _fail(self, job: Job, error: Exception) -> None:
        """Note and print a failure that is no fault of GenDR."""
        message = report_failure(job.source, error, debug=self._handling.debug)
        self.results.append(FileResult(input=str(job.source), output=str(job.target), error=message))


def _since(start: float) -> float:
    return round(perf_counter() - start, 4)


def _line(result: FileResult) -> str:
    sizes = " -> ".join("x".join(map(str, size)) for size in (result.input_size, result.output_size) if size)
    return f"{result.input} -> {result.output}  {sizes}  {sum(result.seconds.values()):.2f} s"
