"""Memory: peaks of whole processes, for the full-size networks and for 268 million pixels.

Role: two parts of ``memory``, which starts this script again for each contender: a process has one peak only. What the
system counts is the resident set: weights, tensors, the interpreter, libraries and what allocators hold on to.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import torch
import torch.nn.functional as F
from memory_seams import picture, untiled
from report import table
from speed_networks import random_unet, random_vae

from gendr_core.config import MemoryOptions, RestoreOptions
from gendr_core.cost import measure
from gendr_core.geometry import Extent
from gendr_core.image_io import read_image, write_image
from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.pipeline import restore
from gendr_core.planner import Planner, Task
from gendr_core.sketch import UNetKind, VAEKind, meta_tensor, sketched_unet, sketched_vae
from gendr_core.spec import PROMPT_TOKENS, ModelSpec, UNetArch, VAEArch, VAESpec

GIB = 2**30
ROOT = Path(__file__).parents[1]
FULL_SOURCE, FULL_BUDGET, FULL_LIMIT = Extent(512, 512), 5 * GIB, 6 * GIB
HUGE_SOURCE, TINY_SOURCE = Extent(4096, 4096), Extent(16, 16)
SCALE = 4
LEAST_PSNR_DB = 25.0
PATIENCE_S, POLL_S = 1800.0, 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A process that ended by itself."""

    seconds: float
    peak_bytes: int
    """Of its resident set."""
    report: dict[str, Any]
    """What it printed, JSON."""


def resident_peak(pid: int) -> int:
    """Return the most bytes that a running process had resident so far; 0 for one that has just ended. Linux only.

    Not ``ru_maxrss``: that begins with what the parent had when it started the process.
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def run_process(*command: str) -> Run | None:
    """Return what became of ``python command...``, None where it was killed: out of memory, or out of patience.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as printed:
        begin = perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, *command], stdout=printed, cwd=ROOT, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_peak(process.pid))
            if perf_counter() - begin > PATIENCE_S:
                process.kill()
            sleep(POLL_S)
        seconds = perf_counter() - begin
        printed.seek(0)
        text = printed.read().decode()
    if process.returncode < 0:
        return None
    if process.returncode:
        raise RuntimeError(f"expected success of {command}, got exit code {process.returncode}: {text[-2000:]}")
    return Run(seconds=seconds, peak_bytes=peak, report=json.loads(text))


def full_models(device: str) -> tuple[GenDRUNet, GenDRVAE]:
    """Return the full-size networks in bf16, with random weights or, on the meta device, without."""
    unet, vae, dtype = ModelSpec(arch=UNetArch()), VAESpec(arch=VAEArch()), torch.bfloat16
    if device != "meta":
        return random_unet(unet, device, dtype), random_vae(vae, device, dtype)
    sketch = sketched_unet(UNetKind(unet, dtype, frozenset()), PROMPT_TOKENS, guidable=False)
    return sketch, sketched_vae(VAEKind(vae, dtype, frozenset()))


def full_estimates() -> dict[str, int]:
    """Return the bytes that either contender is expected to need, weights included."""
    unet, vae = full_models("meta")
    options = RestoreOptions(scale=SCALE, memory=MemoryOptions(budget_bytes=FULL_BUDGET))
    plan = Planner(unet, vae, Task(source=FULL_SOURCE), options, device_type="cpu").plan()
    pixels = meta_tensor(1, 3, plan.padded.height, plan.padded.width)
    _, cost = measure(lambda: untiled(pixels, unet, vae), held=[pixels])
    return {"banded": plan.peak_bytes, "untiled": cost.peak_bytes + max(plan.weight_bytes.values())}


@torch.inference_mode()
def run_full(contender: str) -> None:
    """Restore one image with the full-size networks and print how long that took, as JSON."""
    torch.manual_seed(0)
    unet, vae = full_models("cpu")
    options = RestoreOptions(scale=SCALE, memory=MemoryOptions(budget_bytes=FULL_BUDGET))
    image = torch.rand(1, FULL_SOURCE.height, FULL_SOURCE.width, 3)
    begin = perf_counter()
    if contender == "banded":
        result = restore(image, unet, vae, options)
    else:
        pixels = F.interpolate(image.permute(0, 3, 1, 2), scale_factor=SCALE, mode="bicubic") * 2.0 - 1.0
        result = untiled(pixels, unet, vae)
    seconds = perf_counter() - begin
    print(json.dumps({"restore_s": seconds, "finite": bool(result.isfinite().all()), "std": result.std().item()}))


def full(device: str) -> str:
    """Return a Markdown section: the process peak of the full-size networks, planned and untiled."""
    del device
    expected = full_estimates()
    rows: list[list[str]] = []
    for contender in ("banded", "untiled"):
        run = run_process(str(Path(__file__)), contender)
        measured = ["-", "-", "-"]
        if run is not None:
            measured = [f"{run.peak_bytes / GIB:.2f}", f"{run.report['restore_s']:.0f}", str(run.report["finite"])]
        rows.append([contender, f"{expected[contender] / GIB:.2f}", *measured])
    listing = table(["", "estimate, GiB", "process peak, GiB", "seconds", "finite"], rows)
    output = Extent(FULL_SOURCE.height * SCALE, FULL_SOURCE.width * SCALE)
    return (
        f"## Full size\n\nUNet16 and VAE16, random weights, bf16, {FULL_SOURCE} -> {output}, budget"
        f" {FULL_BUDGET / GIB:g} GiB, limit of the process {FULL_LIMIT / GIB:g} GiB. A dash: killed, for memory or"
        f" after {PATIENCE_S:.0f} s.\n\n{listing}"
    )


def huge(device: str) -> str:
    """Return a Markdown section: 16384x16384 from file to file with the command line."""
    del device
    with tempfile.TemporaryDirectory() as folder:
        source, target, tiny = (Path(folder) / name for name in ("in.png", "out.png", "tiny.png"))
        write_image(source, picture(HUGE_SOURCE), 8)
        write_image(tiny, picture(TINY_SOURCE), 8)
        size = f"{HUGE_SOURCE.width}x{HUGE_SOURCE.height}"
        plan = run_process("-m", "gendr_core", "plan", "--size", size, "--device", "cpu", "--json")
        commands = ("-m", "gendr_core", "restore", "--device", "cpu", "--overwrite", "--json")
        start = run_process(*commands, str(tiny), "-o", str(target))
        run = run_process(*commands, str(source), "-o", str(target))
        if plan is None or start is None or run is None:
            raise RuntimeError("expected the command line to end by itself, got a process that was killed")
        result = read_image(target).image
        file_bytes = target.stat().st_size
    small = F.avg_pool2d(result.permute(0, 3, 1, 2), SCALE).permute(0, 2, 3, 1)
    psnr_db = -10.0 * (small - picture(HUGE_SOURCE)).square().mean().log10().item()
    image_bytes = 3 * 4 * HUGE_SOURCE.area
    expected = plan.report["peak_bytes"] + image_bytes + start.peak_bytes
    seconds = run.report["files"][0]["seconds"]
    rows = [
        ["plan's peak, GiB", f"{plan.report['peak_bytes'] / GIB:.2f}"],
        ["input image in memory, GiB", f"{image_bytes / GIB:.2f}"],
        ["peak of the same command on 16x16, GiB", f"{start.peak_bytes / GIB:.2f}"],
        ["sum of these, GiB", f"{expected / GIB:.2f}"],
        ["process peak, GiB", f"{run.peak_bytes / GIB:.2f}"],
        ["sum / process peak", f"{expected / run.peak_bytes:.3f}"],
        *([f"{name}, s", f"{time:.0f}"] for name, time in seconds.items()),
        ["process, s", f"{run.seconds:.0f}"],
        ["output", f"{result.shape[2]}x{result.shape[1]}, {file_bytes / 2**20:.0f} MiB"],
        ["standard deviation of the output", f"{result.std().item():.3f}"],
        [f"PSNR to the input after area downscale, dB (at least {LEAST_PSNR_DB:g})", f"{psnr_db:.1f}"],
    ]
    text = f"gendr-mini-pixel, fp32, file to file with `gendr restore`. The plan: {plan.report['summary']}."
    return f"## Huge\n\n{text}\n\n{table(['', 'figure'], rows)}"


if __name__ == "__main__":
    run_full(sys.argv[1])
