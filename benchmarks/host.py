"""GenDR in a real ComfyUI: what it adds to the start, what a node costs beside the core, how soon it stops, what stays.

Role: run by hand, ``COMFYUI_PATH=... python benchmarks/host.py``, in an environment that ComfyUI runs in;
benchmarks/README.md explains the figures. The parts live in the ``host_*`` scripts beside this one, which only settles
what runs and writes the page.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from host_memory import frames, habits, queue, restart
from host_runs import cancel, overhead
from host_server import Part, comfyui_version
from host_start import start
from report import describe_machine, page

PARTS: Mapping[str, Callable[[Path], Part]] = {
    "start": start,
    "overhead": overhead,
    "cancel": cancel,
    "queue": queue,
    "habits": habits,
    "restart": restart,
    "frames": frames,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description="Measure GenDR's nodes in a real ComfyUI.")
    parser.add_argument(
        "--parts", default=",".join(PARTS), metavar="NAMES", help="separated by commas; all if not given"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure as one JSON object")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="a page for benchmarks/results, added to if it exists"
    )
    chosen = parser.parse_args(arguments)
    chosen.parts = chosen.parts.split(",")
    unknown = sorted(set(chosen.parts) - set(PARTS))
    if unknown:
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(unknown)}")
    if "COMFYUI_PATH" not in os.environ:
        parser.error("expected COMFYUI_PATH to name a ComfyUI, got nothing: set it")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it and write the files."""
    chosen = parse(arguments)
    comfyui, machine = Path(os.environ["COMFYUI_PATH"]), describe_machine("cpu", with_diffusers=False)
    found = {name: PARTS[name](comfyui) for name in chosen.parts}
    tables = "\n\n".join(f"## {part.title}\n\n{part.markdown}" for part in found.values())
    load = f"load of the machine at the end: {os.getloadavg()[0]:.1f}"
    results = f"ComfyUI {comfyui_version(comfyui)} with --cpu; {load}.\n\n{tables}"
    command = f"COMFYUI_PATH=... python benchmarks/host.py --parts {','.join(chosen.parts)}"
    text = page(f"ComfyUI ({', '.join(chosen.parts)})", machine, results, [command])
    print(text)
    if chosen.markdown:
        before = chosen.markdown.read_text(encoding="utf-8") + "\n" if chosen.markdown.exists() else ""
        chosen.markdown.write_text(before + text, encoding="utf-8")
    if chosen.json:
        figures = {name: part.figures for name, part in found.items()}
        chosen.json.write_text(json.dumps({**asdict(machine), **figures}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
