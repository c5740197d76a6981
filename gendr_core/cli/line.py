"""What happens to the files of ``restore``: read, restored, written, and what becomes of each.

Role: joins ``image_io`` and ``pipeline.restore``; ``overlap`` reads the next files and writes the last while others are
restored. A file that fails does not stop the ones after it, nor those that are restored with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from time import perf_counter

import torch
from torch import Tensor

from ..config import RestoreOptions
from ..finish import Guides
from ..host import Host
from ..image_io import read_image, write_image
from ..pipeline import restore
from ..samples import BitDepth
from .bar import Bar
from .failures import FAILURES, report_failure
from .files import Job, check_alpha, fitting_depth
from .groups import BEHIND_BYTES, may_be_read_ahead
from .options import Models
from .overlap import Stages


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
    """Of reading, restoring and writing. Of files that were restored together each has an equal share of the time."""
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


@dataclass(kw_only=True, slots=True)
class _InHand:
    """A file between two stages."""

    image: Tensor
    """[1, H, W, C] in 0 to 1: the input, later the result; a view where several are restored together."""
    icc: bytes | None
    bit_depth: BitDepth
    """Of the output."""
    input_size: list[int]
    seconds: dict[str, float]


class Files:
    """The stages of a file, and what happened to those that ended."""

    def __init__(
        self,
        groups: Sequence[Sequence[Job]],
        models: Models,
        settings: RestoreOptions,
        handling: Handling,
        bar: Bar,
    ) -> None:
        """Begin with no results.

        Args:
            groups: the jobs as they go through the line.
            models: the networks.
            settings: of every restoration.
            handling: of every file.
            bar: told where the work is.
        """
        self.results: dict[Job, FileResult] = {}
        self._places = {job: index for index, job in enumerate(chain.from_iterable(groups))}
        self._models, self._settings, self._handling, self._bar = models, settings, handling, bar

    def stages(self) -> Stages[Job, _InHand, _InHand]:
        """Return what ``run_line`` does with each job."""
        # A budget that the user names counts all that there is beside the image, unless it is that of a GPU.
        overlaps = self._settings.memory.budget_bytes is None or self._models.device.type == "cuda"
        return Stages(
            read=self._read,
            alike=lambda file: file.image.shape,
            work=self._restore,
            write=self._write,
            fail=self._fail,
            failures=FAILURES,
            reads_ahead=lambda jobs: overlaps and may_be_read_ahead(jobs),
            writes_behind=lambda results: overlaps and sum(file.image.nbytes for file in results) <= BEHIND_BYTES,
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

    def _restore(self, jobs: Sequence[Job], files: Sequence[_InHand]) -> list[_InHand]:
        self._bar.begin(self._places[jobs[0]], len(jobs))
        start = perf_counter()
        image = files[0].image
        if len(files) > 1:
            image = torch.cat([file.image for file in files])
            for file, own in zip(files, torch.split(image, 1), strict=True):
                file.image = own  # So that no image is there twice.
        unet, vae = self._models.unet, self._models.vae
        host = Host(progress=self._bar)
        restored = restore(image, unet, vae, self._settings, host=host, guides=self._handling.guides)
        seconds = {"restore": round(_since(start) / len(files), 4)}
        return [
            replace(file, image=result, seconds={**file.seconds, **seconds})
            for file, result in zip(files, torch.split(restored, 1), strict=True)
        ]

    def _write(self, job: Job, result: _InHand) -> None:
        start = perf_counter()
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_image(job.target, result.image, result.bit_depth, icc=result.icc, quality=self._handling.quality)
        _, height, width, channels = result.image.shape
        self.results[job] = FileResult(
            input=str(job.source),
            output=str(job.target),
            input_size=result.input_size,
            output_size=[width, height],
            channels=channels,
            bit_depth=result.bit_depth,
            seconds={**result.seconds, "write": _since(start)},
        )
        if self._handling.lines:
            self._bar.say(_line(self.results[job]))

    def _fail(self, job: Job, error: Exception) -> None:
        """Note and print a failure that is no fault of GenDR."""
        message = report_failure(job.source, error, debug=self._handling.debug)
        self.results[job] = FileResult(input=str(job.source), output=str(job.target), error=message)


def _since(start: float) -> float:
    return round(perf_counter() - start, 4)


def _line(result: FileResult) -> str:
    sizes = " -> ".join("x".join(map(str, size)) for size in (result.input_size, result.output_size) if size)
    return f"{result.input} -> {result.output}  {sizes}  {sum(result.seconds.values()):.2f} s"
