"""``gendr inspect``: what a weight file is, and whether it can be used.

Role: prints what ``checkpoint.inspect`` reports.
"""

import argparse
import json
import sys
from dataclasses import asdict

from ..checkpoint import FileReport, inspect
from ..model import resolve_weights
from .options import add_common_options

SUMMARY = "Say what a weight file is; exit code 1 when GenDR cannot use it. The weights themselves are not read."


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
    if options.json:
        print(json.dumps({"file": str(path), **asdict(report)}, indent=2))
    else:
        print("\n".join(f"{name:<12} {value}" for name, value in _rows(str(path), report)))
    if report.problem is not None:
        print(f"gendr: error: {report.problem}", file=sys.stderr)
    return report.problem is None


def _rows(file: str, report: FileReport) -> list[tuple[str, str]]:
    rows = [
        ("file", file),
        ("kind", report.kind),
        ("layout", report.layout or "-"),
        ("format", "-" if report.format_version is None else str(report.format_version)),
        ("parameters", f"{report.num_parameters:,} ({', '.join(report.dtypes) or '-'})"),
        ("size", f"{report.num_bytes:,} bytes in {report.num_tensors} tensors"),
    ]
    if report.spec is not None:
        rows += [(name, str(value)) for name, value in asdict(report.spec).items() if value != ""]
    return rows
