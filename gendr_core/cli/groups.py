"""Which files of a run go through the networks together: small ones whose images are alike, by their headers.

Role: ``restore`` settles it before the first image is decoded; ``planner`` says how many frames run together, and
``line`` reads and restores them. A header is a promise: which images are alike indeed shows when they are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..config import RestoreOptions
from ..errors import OptionError
from ..geometry import Extent, output_extent, pad_multiple, padding_to_multiple, partition
from ..image_io import BIT_DEPTHS
from ..planner import frames_together
from .files import TIFF_SUFFIXES, Job
from .options import Models

AHEAD_BYTES, BEHIND_BYTES = 64 << 20, 192 << 20
"""Most of images, as float32, that stand read or wait to be written while others are restored: 4 megapixels, taken for
RGBA, and 16 in RGB. With what decoders and encoders take beside them they stay within the GiB that a plan leaves free
(``memory.reserve_bytes``). A group of several never has more."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image promises."""

    extent: Extent
    """As stored, not turned upright."""
    channels: int

    @property
    def input_bytes(self) -> int:
        """Most that the image takes when it is read."""
        return 4 * torch.float32.itemsize * self.extent.area


def read_header(path: Path) -> Header | None:
    """Return what the header of an image tells; None of TIFF, which Pillow does not know all of, and of no image."""
    suffix = path.suffix.lower()
    form = Image.registered_extensions().get(suffix)
    if form not in Image.OPEN or suffix not in BIT_DEPTHS or suffix in TIFF_SUFFIXES:
        return None
    try:
        with path.open("rb") as file:
            opened = Image.OPEN[form][0](file, str(path))  # Why not Image.open: see image_io.
            width, height = opened.size
            gray = opened.mode in ("1", "L", "I", "I;16")
            return Header(Extent(height, width), 4 if opened.has_transparency_data else 1 if gray else 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # What is wrong with it is told in its place.


def may_be_read_ahead(group: Sequence[Job]) -> bool:
    """Tell by its header whether an image may be read while others are restored; several may, or they were no group."""
    if len(group) > 1:
        return True
    header = read_header(group[0].source)
    return header is not None and header.input_bytes <= AHEAD_BYTES


def group_jobs(jobs: Sequence[Job], models: Models, options: RestoreOptions) -> list[list[Job]]:
    """Return the jobs in groups that are restored together, one or more each, in the order of their first jobs."""
    if frames_together(Extent(1, 1), options.memory, models.device.type) == 1:
        return [[job] for job in jobs]  # However small they are: no header needs to be read for that.
    alike: dict[Header | Job, list[Job]] = {}
    for job in jobs:
        alike.setdefault(read_header(job.source) or job, []).append(job)
    groups: list[list[Job]] = []
    for promise, members in alike.items():
        most = _most_together(promise, models, options) if isinstance(promise, Header) else 1
        groups += [members[span.places] for span in partition(len(members), most)]
    order = {job: index for index, job in enumerate(jobs)}
    return sorted(groups, key=lambda group: order[group[0]])


def _most_together(header: Header, models: Models, options: RestoreOptions) -> int:
    """Return how many images like this go through the networks together, and may wait before and behind them."""
    spec = models.unet.spec
    try:
        output = output_extent(header.extent, options, spec.scale)
    except OptionError:
        return 1  # Told in its place.
    padded = padding_to_multiple(output, pad_multiple(spec)).around(output)
    output_bytes = header.channels * torch.float32.itemsize * output.area
    waiting = min(AHEAD_BYTES // header.input_bytes, BEHIND_BYTES // output_bytes)
    return max(1, min(frames_together(padded, options.memory, models.device.type), waiting))
