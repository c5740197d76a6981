"""Memory: what the planner expects beside what is taken, whether seams show, and what bands and size cost in time.

Role: run by hand, ``python benchmarks/memory.py --parts estimates,seams``; benchmarks/README.md explains the figures.
The parts live in the ``memory_*`` scripts beside this one, which only settles what runs and writes the page.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from memory_estimates import estimates
from memory_large import full, huge
from memory_seams import seams
from memory_times import bands, linear
from report import describe_machine, page

Part = Callable[[str], str]
"""Measures on a device and returns Markdown."""

PARTS: Mapping[str, Part] = {
    "estimates": estimates,
    "seams": seams,
    "linear": linear,
    "bands": bands,
    "full": full,
    "huge": huge,
}
CPU_ONLY = ("full", "huge")
"""These are about the memory of a process."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description="Measure the memory that restorations take, seams and times.")
    parser.add_argument(
        "--parts", default=",".join(PARTS), metavar="NAMES", help="separated by commas; all if not given"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="a page for benchmarks/results, added to if it exists"
    )
    chosen = parser.parse_args(arguments)
    chosen.parts = chosen.parts.split(",")
    unknown = sorted(set(chosen.parts) - set(PARTS))
    if unknown:
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(unknown)}")
    if chosen.device != "cpu" and not set(CPU_ONLY).isdisjoint(chosen.parts):
        parser.error(f"expected --device cpu for {' and '.join(CPU_ONLY)}, got {chosen.device}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it and add it to the file."""
    chosen = parse(arguments)
    machine = describe_machine(chosen.device, with_diffusers=False)
    torch.manual_seed(0)
    results = "\n\n".join(PARTS[name](chosen.device) for name in chosen.parts)
    command = f"python benchmarks/memory.py --parts {','.join(chosen.parts)} --device {chosen.device}"
    text = page(f"Memory ({', '.join(chosen.parts)})", machine, results, [command])
    print(text)
    if chosen.markdown:
        before = chosen.markdown.read_text(encoding="utf-8") + "\n" if chosen.markdown.exists() else ""
        chosen.markdown.write_text(before + text, encoding="utf-8")


if __name__ == "__main__":
    main()
