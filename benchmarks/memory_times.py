"""Memory: what bands cost in time beside the untiled networks, and whether time grows in proportion to pixels.

Role: a part of ``memory``. Contenders take turns, as in ``speed``, whose clocks and networks these are.
"""

from functools import partial
from statistics import median

import torch
from memory_estimates import DTYPES
from report import table
from speed_contenders import Ours
from speed_networks import random_vae
from speed_timing import STAGES, StageClock, interleave, tapped
from torch import Tensor

from gendr_core.config import MemoryOptions, RestoreOptions
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.model import DEFAULT_UNET, GenDRUNet, load_unet
from gendr_core.pipeline import restore
from gendr_core.spec import VAEArch, VAESpec

EDGES = (1024, 2048, 4096, 8192)
"""Of the output: 1 to 64 megapixels of 2^20 pixels."""
ROUNDS = 3
SCALE = 4
VAE_EDGE = 512


@torch.inference_mode()
def linear(device: str) -> str:
    """Return a Markdown section: seconds per megapixel of gendr-mini-pixel by size of the output, stage by stage."""
    unet = load_unet(DEFAULT_UNET, device=device, dtype=torch.float32)
    calls: dict[str, partial[Tensor]] = {}
    clocks = {str(edge): StageClock(device) for edge in EDGES}
    for edge in EDGES:
        image = torch.rand(1, edge // SCALE, edge // SCALE, 3)
        calls[str(edge)] = partial(_restore_tapped, image, unet, clocks[str(edge)])
    _restore_tapped(torch.rand(1, 256, 256, 3), unet, StageClock(device))
    largest = str(EDGES[-1])
    seconds = interleave({edge: call for edge, call in calls.items() if edge != largest}, ROUNDS, device)
    seconds |= interleave({largest: calls[largest]}, 1, device)
    rows: list[list[str]] = []
    per_megapixel: list[float] = []
    for edge, clock in clocks.items():
        megapixels = int(edge) ** 2 / 2**20
        per_megapixel.append(seconds[edge] / 1e3 / megapixels)
        stages = [f"{median(clock.seconds[stage]) / megapixels:.3f}" for stage in STAGES]
        runs = len(clock.seconds[STAGES[0]])
        rows.append([f"{edge}x{edge}", str(runs), f"{seconds[edge] / 1e3:.2f}", f"{per_megapixel[-1]:.3f}", *stages])
    listing = table(["output", "runs", "median s", "s per megapixel", *STAGES], rows)
    return (
        f"## Time by size\n\n{DEFAULT_UNET}, fp32, the whole frame in windows and bands; the stages in s per megapixel"
        f" (2^20 pixels), too.\n\n{listing}\n\nLargest over smallest s per megapixel:"
        f" {max(per_megapixel) / min(per_megapixel):.3f}."
    )


def _restore_tapped(image: Tensor, unet: GenDRUNet, clock: StageClock) -> Tensor:
    """Return ``image`` restored without tiles, its stages timed."""
    options = RestoreOptions(scale=SCALE, memory=MemoryOptions(mode="whole"))
    with tapped(Ours.taps, clock):
        return restore(image, unet, options=options)


@torch.inference_mode()
def bands(device: str) -> str:
    """Return a Markdown section: the full-size VAE in bands beside the untiled one."""
    rows: list[list[str]] = []
    for name, dtype in DTYPES.items():
        vae = random_vae(VAESpec(arch=VAEArch()), device, dtype)
        pixels = torch.rand(1, 3, VAE_EDGE, VAE_EDGE, device=device) * 2.0 - 1.0
        latent = encode(pixels, "vae16", vae)
        network = vae.network
        pairs = {
            "encode": (partial(encode, pixels, "vae16", vae), partial(network.encode, pixels.to(dtype))),
            "decode": (partial(decode, latent, "vae16", vae), partial(network.decode, latent.to(dtype))),
        }
        for stage, (banded, untiled) in pairs.items():
            reference = untiled().float()
            difference = (banded() - reference).abs().max() / reference.std()
            medians = interleave({"banded": banded, "untiled": untiled}, ROUNDS, device)
            figures = [f"{medians[contender] / 1e3:.2f}" for contender in ("banded", "untiled")]
            ratio = medians["banded"] / medians["untiled"]
            rows.append([f"{stage} {name}", *figures, f"{ratio:.3f}", f"{difference.item():.1e}"])
    header = ["median s", "banded", "untiled", "banded / untiled", "largest difference / std"]
    title = f"## Bands\n\nFull-size VAE16, random weights, {VAE_EDGE}x{VAE_EDGE}, {ROUNDS} rounds."
    return f"{title}\n\n{table(header, rows)}"
