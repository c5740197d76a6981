"""The marks that GenDR sets itself on a GPU, measured in one run: one image, large frames, many images, memory.

Role: run by hand, ``python benchmarks/marks.py --against diffusers``, wherever there is a GPU;
``speed`` looks closer at fewer things. What fails is named and the rest goes on. On a CPU only to see that it runs:
``--device cpu --arch mini --scale 0.1``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from coefficients import peak_bytes
from report import describe_machine, page, table
from speed_contenders import DIFFUSERS, Contender, Ours, Work, references
from speed_first import PARTS, first_image
from speed_networks import ARCHITECTURES, DTYPES, networks, photo
from speed_timing import interleave, peak_flops
from torch import Tensor

from gendr_core.config import GraphMode
from gendr_core.geometry import Extent
from gendr_core.model import fold_unet, fold_vae
from gendr_core.spec import UNET_FOLDS, VAE_FOLDS, Fold

FACTOR = 4
LEAST_EDGE = 64
GUIDANCE = {1: 1.0, 2: 1.5}
MANY = 100
GIB = 2**30
WARM_UPS = 3
"""Untimed calls beside the first one: CUDA chooses kernels, Triton compiles, graphs are recorded at their second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to run ours."""

    folds: tuple[Fold, ...] = ()
    """Beside those that every network is loaded with."""
    graphs: GraphMode = "off"


VARIANTS: Mapping[str, Variant] = {
    "ours": Variant(),
    "graphs": Variant(graphs="auto"),
    "fused": Variant(folds=("fused",)),
    "fused, graphs": Variant(folds=("fused",), graphs="auto"),
    "fp8 weights": Variant(folds=("fp8",)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A restoration, and what it is to reach at full size in bf16; None where nothing is asked."""

    name: str
    extent: Extent
    """Of the output."""
    most_ms: float | None = None
    most_gib: float | None = None
    """Of weights and activations together."""
    least_ratio: float | None = None
    """To the eager diffusers pipeline, which only takes part where this is given."""
    least_images_per_s: float | None = None
    passes: int = 1
    num_images: int = 1
    repeat: int = 20

    def work(self, graphs: GraphMode) -> Work:
        """Return the restoration: the example photo, as often as asked."""
        small = Extent(self.extent.height // FACTOR, self.extent.width // FACTOR)
        image = photo(small).expand(self.num_images, -1, -1, -1).contiguous()
        return Work(
            image=image,
            extent=self.extent,
            guidance=GUIDANCE[self.passes],
            attention="windows",
            graphs=graphs,
        )

    def scaled(self, scale: float) -> "Mark":
        """Return the same for a smaller frame and fewer images, of which no times are asked."""
        height, width = (
            max(LEAST_EDGE, int(edge * scale) // FACTOR * FACTOR) for edge in (self.extent.height, self.extent.width)
        )
        return replace(
            self,
            name=f"{self.name} as {width}x{height}",
            extent=Extent(height, width),
            num_images=max(1, int(self.num_images * scale)),
            most_ms=None,
            least_images_per_s=None,
        )


MARKS = (
    Mark(name="512x512", extent=Extent(512, 512), most_ms=12.0, least_ratio=3.0),
    Mark(name="512x512, two passes", extent=Extent(512, 512), passes=2, least_ratio=3.0),
    Mark(name="1024x1024", extent=Extent(1024, 1024), least_ratio=3.0, repeat=10),
    Mark(name="3840x2160", extent=Extent(2160, 3840), most_ms=450.0, most_gib=8.0, repeat=5),
    Mark(name="4096x4096", extent=Extent(4096, 4096), most_ms=700.0, repeat=3),
    Mark(
        name=f"{MANY} images of 512x512",
        extent=Extent(512, 512),
        num_images=MANY,
        least_images_per_s=120.0,
        repeat=3,
    ),
)
FIRST_IMAGE_S = 2.0
"""Most seconds from the start of a fresh process to its first image, gendr-mini."""


Way = tuple[Contender, GraphMode]
"""Who restores, and whether by graphs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """What one way of running reached of a mark."""

    mark: str
    way: str
    failure: str | None = None
    """Why there are no figures."""
    ms: float = 0.0
    """Median of a whole call, images on the processor in and out, in turns with the other ways."""
    peak_bytes: int = 0
    """Weights and the most that torch's allocator handed out besides."""
    ratio_to_diffusers: float | None = None
    images_per_s: float = 0.0
    rms_difference: float | None = None
    """To the reference's image in the same dtype, both without colour matching, values in 0 to 1."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description="Measure the marks that GenDR sets itself on a GPU.")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="full")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--against", choices=[DIFFUSERS], help="also time the reference; needs diffusers")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="of all edges, to try the script itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object per line")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page for benchmarks/results")
    return parser.parse_args(arguments)


def make(variant: Variant, chosen: argparse.Namespace) -> Way:
    """Return ours with networks of its own.

    Raises:
        OptionError: the variant does not run here.
    """
    made, dtype, device = networks(chosen.arch), DTYPES[chosen.dtype], chosen.device
    unet = fold_unet(replace(made.unet, dtype=dtype), (*UNET_FOLDS, *variant.folds), device=device)
    vae = made.vae and fold_vae(replace(made.vae, dtype=dtype), (*VAE_FOLDS, *variant.folds), device=device)
    return Ours("ours", unet, vae), variant.graphs


def ways(chosen: argparse.Namespace) -> tuple[dict[str, Way], dict[str, str]]:
    """Return every way to run that there is here, and of the others why they are not."""
    present: dict[str, Way] = {}
    missing: dict[str, str] = {}
    if chosen.against:
        (reference,) = references(chosen.arch, chosen.dtype, chosen.device, compiled=False)
        present[DIFFUSERS] = (reference, "off")
    for name, variant in VARIANTS.items():
        try:
            present[name] = make(variant, chosen)
        except (RuntimeError, ValueError) as error:
            missing[name] = _first_line(error)
    return present, missing


def measure(mark: Mark, present: Mapping[str, Way], device: str) -> list[Reached]:
    """Return what every way reaches."""
    calls, images, num_bytes = {}, dict[str, Tensor](), dict[str, int]()
    failed: list[Reached] = []
    for name, (contender, graphs) in present.items():
        if name == DIFFUSERS and mark.least_ratio is None:
            continue
        work = mark.work(graphs)
        call = partial(contender.restore, work)
        try:
            images[name] = contender.restore(work, color="none")
            num_bytes[name] = contender.weight_bytes + peak_bytes(call, device)
            for _ in range(WARM_UPS):
                call()
        except RuntimeError as error:
            failed.append(Reached(mark=mark.name, way=name, failure=_first_line(error)))
        else:
            calls[name] = call
    medians = interleave(calls, mark.repeat, device)
    reference = images.get(DIFFUSERS)
    return [
        *(
            Reached(
                mark=mark.name,
                way=name,
                ms=ms,
                peak_bytes=num_bytes[name],
                ratio_to_diffusers=medians[DIFFUSERS] / ms if DIFFUSERS in medians else None,
                images_per_s=mark.num_images * 1e3 / ms,
                rms_difference=None
                if reference is None
                else (images[name] - reference).double().square().mean().sqrt().item(),
            )
            for name, ms in medians.items()
        ),
        *failed,
    ]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def figures_table(reached: Sequence[Reached]) -> str:
    """Return all figures as a Markdown table."""
    header = ["", "way", "ms", "images/s", "GiB", "diffusers / this", "rms difference"]
    rows = [
        [
            entry.mark,
            entry.way,
            *(
                [entry.failure, "-", "-", "-", "-"]
                if entry.failure is not None
                else [
                    f"{entry.ms:.2f}",
                    f"{entry.images_per_s:.1f}",
                    f"{entry.peak_bytes / GIB:.2f}",
                    "-" if entry.ratio_to_diffusers is None else f"{entry.ratio_to_diffusers:.2f}",
                    "-" if entry.rms_difference is None else f"{entry.rms_difference:.1e}",
                ]
            ),
        ]
        for entry in reached
    ]
    return table(header, rows)


def marks_table(marks: Sequence[Mark], reached: Sequence[Reached]) -> str:
    """Return what is asked beside the best that any way of ours reached."""
    rows: list[list[str]] = []
    for mark in marks:
        ours = [x for x in reached if x.mark == mark.name and x.way != DIFFUSERS and x.failure is None]
        best = min(ours, key=lambda entry: entry.ms, default=None)
        asked = (
            (mark.most_ms, "at most {:g} ms", None if best is None else best.ms),
            (mark.most_gib, "at most {:g} GiB", None if best is None else best.peak_bytes / GIB),
            (mark.least_ratio, "{:g} times as fast as diffusers", best and best.ratio_to_diffusers),
            (mark.least_images_per_s, "{:g} images/s", None if best is None else best.images_per_s),
        )
        rows += [
            [mark.name, form.format(limit), "-" if value is None else f"{value:.2f}", "-" if best is None else best.way]
            for limit, form, value in asked
            if limit is not None
        ]
    return table(["mark", "asked", "reached", "by"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all marks, print them and write the files."""
    chosen = parse(arguments)
    machine = describe_machine(chosen.device, with_diffusers=chosen.against is not None)
    marks = [mark.scaled(chosen.scale) if chosen.scale != 1.0 else mark for mark in MARKS]
    present, missing = ways(chosen)
    reached: list[Reached] = []
    for mark in marks:
        reached += measure(mark, present, chosen.device)
        print(figures_table([entry for entry in reached if entry.mark == mark.name]), flush=True)
    rate = peak_flops(chosen.device, DTYPES[chosen.dtype])
    first = first_image(chosen.dtype, chosen.device)
    first_table = table(["s", *PARTS], [["gendr-mini", *(f"{first[part]:.2f}" for part in PARTS)]])
    sections = [
        f"{ARCHITECTURES[chosen.arch]}, {chosen.dtype}. {rate / 1e12:.0f} TFLOP/s reached beside it.",
        f"## Marks\n\n{marks_table(marks, reached)}",
        f"## All figures\n\n{figures_table(reached)}",
        f"## First image of a fresh process, at most {FIRST_IMAGE_S:g} s\n\n{first_table}",
        *(f"Not here: {name}: {reason}" for name, reason in missing.items()),
    ]
    scale = f" --scale {chosen.scale:g}" if chosen.scale != 1.0 else ""
    against = f" --against {chosen.against}" if chosen.against else ""
    command = f"python benchmarks/marks.py --arch {chosen.arch} --dtype {chosen.dtype} --device {chosen.device}"
    text = page("Marks", machine, "\n\n".join(sections), [command + against + scale])
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    if chosen.json:
        objects = [*map(asdict, reached), {"first_image_s": first, "peak_flops": rate}]
        lines = (json.dumps({**asdict(machine), **entry}) + "\n" for entry in objects)
        chosen.json.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
