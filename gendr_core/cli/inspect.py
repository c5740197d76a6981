"""``gendr inspect``: what a weight file is, what takes it, and how much memory that needs.

Role: prints what ``checkpoint.inspect``, ``uses`` and ``forecast`` say.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from ..checkpoint import FileReport, inspect
from ..errors import CheckpointError
from ..header import Header, read_header
from ..memory import format_bytes
from ..model import resolve_weights
from ..spec import ModelSpec
from .forecast import Forecast, forecast
from .options import add_common_options
from .uses import Use, unet_arch_of, use_of

SUMMARY = (
    "Say what a weight file is, what takes it and how much memory that needs; exit code 1 when GenDR cannot run it as"
    " it is. The weights themselves are not read."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument("file", metavar="FILE", help="a path, or the name of a bundled file")
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Print the report; return whether the file can be used.

    Raises:
        CheckpointError: there is no such file.
    """
    path = resolve_weights(options.file)
    report = inspect(path)
    header = _header(path)
    use = use_of(path, header, report)
    memory = None if header is None else _memory(header, report)
    if options.json:
        needs = None if memory is None else asdict(memory)
        print(json.dumps({"file": str(path), **asdict(report), **asdict(use), "memory": needs}, indent=2))
    else:
        print("\n".join(f"{name:<12} {value}" for name, value in _rows(str(path), report, use, memory)))
    if report.problem is not None:
        print(f"gendr: error: {report.problem}", file=sys.stderr)
    return report.problem is None


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except CheckpointError:
        return None


def _memory(header: Header, report: FileReport) -> Forecast | None:
    """Return the memory of a file that GenDR runs, and of one that only lacks what ``convert`` gives it."""
    if report.spec is not None:
        return forecast(report.spec, header)
    if report.kind not in ("unet", "checkpoint") or report.format_version is not None:
        return None
    arch = unet_arch_of(header)
    if arch is None or arch.in_channels != arch.out_channels:
        return None
    found = forecast(ModelSpec(arch=arch), header)
    ready = report.problem is None
    return found if found is None or ready else replace(found, assumed=f"once GenDR can run it, {found.assumed}")


def _rows(file: str, report: FileReport, use: Use, memory: Forecast | None) -> list[tuple[str, str]]:
    rows = [
        ("file", file),
        ("what", use.what),
        ("kind", report.kind),
        ("layout", report.layout or "-"),
        ("format", "-" if report.format_version is None else str(report.format_version)),
        ("folded", ", ".join(report.folds) or "-"),
        ("parameters", f"{report.num_parameters:,} ({', '.join(report.dtypes) or '-'})"),
        ("size", f"{report.num_bytes:,} bytes in {report.num_tensors} tensors"),
    ]
    rows += [("taken by" if index == 0 else "", taker) for index, taker in enumerate(use.takers or ("nothing known",))]
    if memory is not None:
        rows += [
            (
                f"{need.megapixels} megapixel{'s' if need.megapixels > 1 else ''}",
                f"{format_bytes(need.peak_bytes)}, at least {format_bytes(need.least_bytes)} ({need.output})",
            )
            for need in memory.needs
        ]
        rows.append(("", memory.assumed))
    if report.spec is not None:
        rows += [(name, str(value)) for name, value in asdict(report.spec).items() if value != ""]
    return rows
