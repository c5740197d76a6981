"""Memory: the planner's estimate beside the measured peak, over sizes, dtypes and modes.

Role: a part of ``memory``. Both figures leave out weights and the input image, which are there before a run begins:
nothing large that is known exactly blurs the ratio.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from runpy import run_path

import torch
from report import table

from gendr_core.config import MemoryOptions, RestoreOptions
from gendr_core.errors import OutOfMemoryError
from gendr_core.geometry import Extent
from gendr_core.model import GenDRUNet, GenDRVAE, load_unet, load_vae
from gendr_core.pipeline import restore
from gendr_core.plan import Plan
from gendr_core.planner import Planner, Task

MODELS = {
    "pixel": ("gendr-mini-pixel.safetensors", None),
    "pair": ("gendr-mini-unet16.safetensors", "gendr-mini-vae16.safetensors"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {
    "pixel": (Extent(width=96, height=64), Extent(width=300, height=190), Extent(width=512, height=512)),
    "pair": (Extent(width=96, height=64), Extent(width=300, height=190)),
}
SCALE = 4.0
MODES = {
    "windows": MemoryOptions(),
    "full attention": MemoryOptions(attention="full"),
    "tiles of 512": MemoryOptions(mode="tiles", tile_px=512),
    "tiles of 512, 2 at a time": MemoryOptions(mode="tiles", tile_px=512, tile_batch=2),
}

_cpu_peak: Callable[[Callable[[], object]], int] = run_path(
    str(Path(__file__).parents[1] / "tests" / "support" / "allocations.py")  # no package: the tests' own helper
)["allocated_peak"]


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Return the most bytes that torch's allocator of the device handed out during one call, after one before it."""
    if device == "cpu":
        return _cpu_peak(run)
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def plans(unet: GenDRUNet, vae: GenDRVAE | None, source: Extent) -> Iterator[tuple[str, Plan, RestoreOptions]]:
    """Yield the modes that do not come to the same, and what a budget just too small for the first one leads to."""
    seen: list[list[tuple[int, int]]] = []
    modes = dict(MODES)
    while modes:
        name = next(iter(modes))
        options = RestoreOptions(scale=SCALE, memory=modes.pop(name))
        try:
            plan = Planner(unet, vae, Task(source=source), options).plan()
        except OutOfMemoryError:  # the smaller budget: stages that run in one way only have no smaller plan
            continue
        if not seen:
            modes["windows, 1 byte less"] = MemoryOptions(budget_bytes=plan.peak_bytes - 1)
        figures = [(stage.flops, stage.activation_bytes) for stage in plan.stages.values()]
        if figures not in seen:
            seen.append(figures)
            yield name, plan, options


def estimates(device: str) -> str:
    """Return a Markdown section: estimate, measured peak and their ratio of every case."""
    rows: list[list[str]] = []
    ratios: list[float] = []
    for model, (unet_name, vae_name) in MODELS.items():
        for dtype_name, dtype in DTYPES.items():
            unet = load_unet(unet_name, device=device, dtype=dtype)
            vae = load_vae(vae_name, device=device, dtype=dtype) if vae_name else None
            for source in SIZES[model]:
                image = torch.rand(1, source.height, source.width, 3)
                for mode, plan, options in plans(unet, vae, source):
                    estimate = plan.peak_bytes - max(plan.weight_bytes.values())
                    measured = peak_bytes(partial(restore, image, unet, vae, options), device)
                    ratios.append(estimate / measured)
                    rows.append(
                        [f"{model} {dtype_name} {source} -> {plan.output}, {mode}", plan.peak_stage]
                        + [f"{number / 2**20:.2f}" for number in (estimate, measured)]
                        + [f"{ratios[-1]:.3f}"]
                    )
    listing = table(["MiB", "peak in", "estimate", "measured", "estimate / measured"], rows)
    return f"## Estimates\n\n{listing}\n\n{len(ratios)} cases, ratios from {min(ratios):.3f} to {max(ratios):.3f}."
