"""Speed of one restoration: ours, as it is and specialised, beside the diffusers reference on the same weights.

Role: run by hand, ``python benchmarks/speed.py --against diffusers``; benchmarks/README.md explains the figures. The
parts live in the ``speed_*`` scripts beside this one, which only settles what runs and writes the page. Not covered:
reading and writing images, and the quality of what comes out.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from report import describe_machine, page, table
from speed_contenders import contenders, fused
from speed_first import PARTS, first_image, photo_seconds
from speed_measure import SCALE, Result, Setting, at_rate, exact_images, measure
from speed_networks import ARCHITECTURES, DTYPES
from speed_report import results

from gendr_core.config import ATTENTION_RANGES, GRAPH_MODES

DEVICES = ("cpu", "cuda")
KERNELS = ("torch", "fused")
DEFAULT_SIZE = 512
FILES = ("json", "markdown")
"""Options that say where the figures go, not what is measured."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description="Time one restoration, ours beside the diffusers reference.")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="which networks; both one after the other if not given")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help=f"output edges in pixels, the input is N/{SCALE}; {DEFAULT_SIZE}, or none beside the last two options",
    )
    parser.add_argument("--passes", type=int, nargs="+", choices=(1, 2), default=[1], help="of the UNet, 2 guided")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="of weights and activations")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--attention", choices=ATTENTION_RANGES, default="windows", help="what ours sees")
    parser.add_argument("--graphs", choices=GRAPH_MODES, default="off", help="CUDA graphs of ours, specialised")
    parser.add_argument("--kernels", choices=KERNELS, default="torch", help="fused: ours once more, with fused norms")
    parser.add_argument("--against", choices=["diffusers"], help="also time the reference; needs diffusers")
    parser.add_argument("--compile", action="store_true", help="time the reference through torch.compile, too")
    parser.add_argument("--errors", action="store_true", help="distances to the reference in fp32; run once, slow")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="timed calls of each contender")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object per line and setting")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page for benchmarks/results")
    parser.add_argument("--first-image", action="store_true", help="gendr-mini in a fresh process, to the first image")
    parser.add_argument("--photo", type=float, metavar="MP", help="gendr-mini on a photo of so many megapixels, x2")
    chosen = parser.parse_args(arguments)
    alone = chosen.first_image or chosen.photo is not None
    chosen.size = chosen.size or ([] if alone else [DEFAULT_SIZE])
    if chosen.repeat < 1 or any(size < SCALE for size in chosen.size):
        parser.error(f"expected --size >= {SCALE} and --repeat >= 1, got {chosen.size} and {chosen.repeat}")
    if (chosen.compile or chosen.errors) and not chosen.against:
        parser.error("expected --against diffusers beside --compile and --errors: they are about the reference")
    if chosen.kernels == "fused" and chosen.device != "cuda":
        parser.error(f"expected --device cuda beside --kernels fused, got {chosen.device}")
    if chosen.photo is not None and chosen.photo <= 0.0:
        parser.error(f"expected --photo above 0, got {chosen.photo}")
    return chosen


def command(chosen: argparse.Namespace) -> str:
    """Return the command that measures this again."""
    words = ["python benchmarks/speed.py"]
    for name, value in vars(chosen).items():
        if name in FILES or value is None or value is False or value == []:
            continue
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [str(entry) for entry in (value if isinstance(value, list) else [value])]
    return " ".join(words)


def settings(chosen: argparse.Namespace, arch: str) -> list[Setting]:
    """Return what is measured of one architecture."""
    return [
        Setting(
            arch=arch,
            size=size,
            passes=passes,
            dtype=chosen.dtype,
            device=chosen.device,
            attention=chosen.attention,
            graphs=chosen.graphs,
            kernels=chosen.kernels,
            against=chosen.against,
            compiled=chosen.compile,
            errors=chosen.errors,
            repeat=chosen.repeat,
        )
        for size, passes in product(chosen.size, chosen.passes)
    ]


def compare(wanted: Sequence[Setting]) -> list[tuple[Setting, Result]]:
    """Return the settings, all of one architecture, dtype and device, and what each gives."""
    any_of = wanted[0]
    # Before the others are made: networks in fp32 take twice their memory. In fp32 it would be the reference again.
    exact = exact_images(wanted) if any_of.errors and any_of.dtype != "fp32" else {}
    present = contenders(any_of.arch, any_of.dtype, any_of.device, against=any_of.against, compiled=any_of.compiled)
    present += fused(any_of.arch, any_of.dtype, any_of.device) if any_of.kernels == "fused" else []
    measured = [(setting, measure(setting, present, exact.get(setting))) for setting in wanted]
    # What the machine reached once it can reach; on a busy one not every setting sees it.
    rate = max(result.peak_flops for _, result in measured)
    return [(setting, at_rate(result, rate)) for setting, result in measured]


def others(chosen: argparse.Namespace) -> tuple[str, list[Mapping[str, Any]]]:
    """Return sections and JSON objects of what is measured besides the comparison."""
    parts: list[str] = []
    objects: list[Mapping[str, Any]] = []
    kind = {"dtype": chosen.dtype, "device": chosen.device}
    if chosen.first_image:
        seconds = first_image(**kind)
        listing = table(["median s", *PARTS], [["128x128 to 512x512", *(f"{seconds[part]:.2f}" for part in PARTS)]])
        parts.append(f"## First image of a fresh process\n\ngendr-mini, {chosen.dtype}.\n\n{listing}")
        objects.append({**kind, "first_image_s": seconds})
    if chosen.photo is not None:
        taken = photo_seconds(chosen.photo, **kind)
        size = f"{taken['width']:g}x{taken['height']:g}"
        listing = table(["photo", "s"], [[f"{size}, x2", f"{taken['seconds']:.1f}"]])
        parts.append(f"## A photo of {chosen.photo:g} megapixels\n\ngendr-mini, {chosen.dtype}, one call.\n\n{listing}")
        objects.append({**kind, "photo_megapixels": chosen.photo, "photo_s": taken["seconds"]})
    return "\n\n".join(parts), objects


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it and write the files."""
    chosen = parse(arguments)
    machine = describe_machine(chosen.device, with_diffusers=chosen.against == "diffusers")
    rest, objects = others(chosen)
    architectures = [chosen.arch] if chosen.arch else list(ARCHITECTURES)
    measured: list[tuple[Setting, Result]] = []
    for arch in architectures if chosen.size else []:
        measured += compare(settings(chosen, arch))
    sections = [results(measured)] if measured else []
    text = page("Speed", machine, "\n\n".join([*sections, *([rest] if rest else [])]), [command(chosen)])
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    if chosen.json:
        objects = [*({**asdict(setting), **asdict(result)} for setting, result in measured), *objects]
        lines = (json.dumps({**asdict(machine), **entry}) + "\n" for entry in objects)
        chosen.json.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
