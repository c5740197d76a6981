"""What every benchmark says besides its figures: the machine, and a page of Markdown.

Role: used by the scripts of this folder, which are run as files; knows nothing of what they measure.
"""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where and with what something is measured: enough to compare pages, nothing that names the computer."""

    date: str
    """UTC, ISO 8601."""
    commit: str
    """Of this checkout, ``-dirty`` where tracked files differ from it, ``unknown`` outside git."""
    processor: str
    cores: int
    """That this process may use."""
    gpu: str | None
    threads: int
    """That torch computes with."""
    python: str
    torch: str
    diffusers: str | None


def describe_machine(device: str, *, with_diffusers: bool) -> Machine:
    """Return where and with what this process runs.

    Args:
        device: ``cpu`` or ``cuda``; only the latter names the GPU.
        with_diffusers: whether diffusers takes part.
    """
    return Machine(
        date=datetime.now(timezone.utc).date().isoformat(),
        commit=_commit(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=torch.cuda.get_device_name() if device == "cuda" else None,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        diffusers=version("diffusers") if with_diffusers else None,
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    # No lock: asking for the commit must not write to the checkout.
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns, the first to the left and the others to the right."""
    widths = [max(3, *(len(row[column]) for row in (header, *rows))) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join([first.strip().ljust(widths[0]), *others])} |"

    rule = " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join([line(header), f"| {rule} |", *(line(row) for row in rows)])


def page(subject: str, machine: Machine, results: str, commands: Sequence[str]) -> str:
    """Return a Markdown page.

    Args:
        subject: what is measured, first words of the title.
        machine: where.
        results: the body, Markdown.
        commands: lines that measure it again.
    """
    facts: Mapping[str, object] = {
        "date": machine.date,
        "commit": machine.commit,
        "GPU": machine.gpu,
        "processor": f"{machine.processor}, cores: {machine.cores}, torch threads: {machine.threads}",
        "software": f"Python {machine.python}, torch {machine.torch}"
        + (f", diffusers {machine.diffusers}" if machine.diffusers else ""),
    }
    known = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)
    listing = "\n".join(commands)
    return f"# {subject} on {machine.gpu or machine.processor}\n\n{known}\n\n{results}\n\n```\n{listing}\n```\n"
