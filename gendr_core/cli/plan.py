"""``gendr plan``: how a restoration would run, and the memory and work it would take, before anything does.

Role: asks ``planner`` about networks without memory; needs no accelerator to plan for one.
"""

import argparse
import json
import re
from typing import Any

import torch
from torch import nn

from ..checkpoint import read_unet, read_vae
from ..errors import OptionError
from ..geometry import Extent
from ..layouts import SCALE_SUFFIX
from ..memory import format_bytes
from ..model import DEFAULT_UNET, GenDRUNet, GenDRVAE, resolve_weights, runnable_folds
from ..pipeline import check_pair
from ..plan import Plan, StagePlan
from ..planner import Planner, Task
from ..sketch import UNetKind, VAEKind, sketched_unet, sketched_vae
from ..spec import (
    PROMPT_TOKENS,
    ModelSpec,
    UNetArch,
    VAEArch,
    VAESpec,
)
from .options import (
    add_common_options,
    add_memory_options,
    add_model_options,
    add_restore_options,
    choose_device,
    choose_dtypes,
    choose_folds,
    choose_vae,
    dtype_name,
    restore_options,
    weights_name,
)

SUMMARY = "Say how a restoration would run and what memory and computation it takes, before anything does."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument(
        "--size", type=_parse_size, required=True, metavar="WxH", help="size of the input image in pixels"
    )
    parser.add_argument("--channels", type=int, choices=(1, 3, 4), default=3, help="of the input image (default 3)")
    parser.add_argument("--frames", type=int, default=1, metavar="N", help="images in the batch (default 1)")
    add_restore_options(parser)
    add_memory_options(parser)
    add_model_options(parser)
    parser.add_argument(
        "--arch",
        choices=("full", "mini"),
        help="instead of --unet: full-size GenDR, or the bundled default (default mini)",
    )
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Print the plan; return True.

    Raises:
        OptionError: the options contradict each other, or ask for more than GenDR makes.
        OutOfMemoryError: no plan fits the budget, or what is free.
        CheckpointError: a weight file cannot be used.
    """
    if options.frames < 1:
        raise OptionError(f"expected at least 1 frame, got {options.frames}")
    settings = restore_options(options)
    device_type = _device_type(options.device)
    unet, vae = _sketch_models(options, device_type)
    check_pair(unet, vae)
    task = Task(source=options.size, channels=options.channels, frames=options.frames)
    plan = Planner(unet, vae, task, settings, device_type=device_type).plan()
    report = _report(plan, unet, vae)
    print(json.dumps(report, indent=2) if options.json else _text(plan, report))
    return True


def _device_type(name: str) -> str:
    """Return what to plan for: any device by name, whether it is here or not; auto is one that is."""
    return choose_device(name).type if name == "auto" else name


def _report(plan: Plan, unet: GenDRUNet, vae: GenDRVAE | None) -> dict[str, Any]:
    networks: list[nn.Module] = [unet.network, *([] if vae is None else [vae.network])]
    latent = Extent(plan.padded.height // unet.spec.cell_px, plan.padded.width // unet.spec.cell_px)
    sizes = {"input": plan.input, "output": plan.output, "padded": plan.padded, "latent": latent}
    step = plan.stages["step"]
    return {
        "summary": plan.describe(),
        "mode": step.mode,
        "device": plan.device_type,
        "dtype": dtype_name(unet.dtype),
        "weights": weights_name(unet),
        **{name: [size.width, size.height] for name, size in sizes.items()},
        "frames": plan.frames,
        "passes": plan.passes,
        "window_cells": None if step.windows is None else step.windows.size,
        "tiles": _tiles(step),
        "parameters": sum(map(_num_parameters, networks)),
        "weight_bytes": max(plan.weight_bytes.values()),
        "flops": plan.flops,
        "peak_bytes": plan.peak_bytes,
        "peak_stage": plan.peak_stage,
        "stages": [
            {
                "name": name,
                "flops": stage.flops,
                "activation_bytes": stage.activation_bytes,
                "band_bytes": stage.bands.band_bytes if name in plan.weight_bytes else None,
                "recompute": stage.bands.recompute,
            }
            for name, stage in plan.stages.items()
        ],
    }


def _num_parameters(network: nn.Module) -> int:
    """Return how many there are; the scales of weights in 8 bits are no more than a part of these."""
    return sum(weight.numel() for name, weight in network.named_parameters() if not name.endswith(SCALE_SUFFIX))


def _tiles(step: StagePlan) -> dict[str, int | str] | None:
    """Return sizes in output pixels; None where the frame runs as a whole."""
    if step.tiles is None:
        return None
    tiles = step.tiles
    return {
        "size_px": tiles.size_px,
        "overlap_px": tiles.overlap_px,
        "batch": tiles.batch,
        "canvas": tiles.canvas,
    }


def _sketch_models(options: argparse.Namespace, device_type: str) -> tuple[GenDRUNet, GenDRVAE | None]:
    """Return the models that ``load_models`` would load, without memory."""
    if options.arch is not None and (options.unet is not None or options.vae is not None):
        raise OptionError("expected either --arch or weight files, got both: drop --arch, or --unet and --vae")
    dtype, vae_dtype = choose_dtypes(options.dtype, torch.device(device_type))
    asked = choose_folds(options.weights, options.kernels)
    folds, vae_folds = (runnable_folds(folds, device_type, dtype) for folds in asked)
    if options.arch == "full":
        full = sketched_unet(UNetKind(ModelSpec(arch=UNetArch()), dtype, folds), PROMPT_TOKENS, guidable=True)
        return full, sketched_vae(VAEKind(VAESpec(arch=VAEArch()), vae_dtype, vae_folds))
    unet_path = resolve_weights(options.unet or DEFAULT_UNET)
    checkpoint = read_unet(unet_path, folded=True)
    unet = sketched_unet(
        UNetKind(checkpoint.spec, dtype, folds),
        len(checkpoint.positive),
        guidable=checkpoint.negative is not None,
    )
    vae_path = choose_vae(checkpoint.spec, unet_path, options.vae)
    if vae_path is None:
        return unet, None
    return unet, sketched_vae(VAEKind(read_vae(vae_path, folded=True).spec, vae_dtype, vae_folds))


def _parse_size(text: str) -> Extent:
    match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 640x480, got {text!r}")
    return Extent(height=int(match[2]), width=int(match[1]))


def _text(plan: Plan, report: dict[str, Any]) -> str:
    sizes = {name: "x".join(map(str, report[name])) for name in ("input", "output", "padded", "latent")}
    lines = [plan.describe(), "", *(f"{name:<10} {size}" for name, size in sizes.items())]
    weights = format_bytes(report["weight_bytes"])
    lines += [
        f"passes     {plan.passes}",
        f"weights    {report['parameters']:,} parameters, {weights} in {report['weights']}",
        "",
        f"{'stage':<10} {'TFLOP':>10} {'activations':>12}",
        *(
            f"{name:<10} {stage.flops / 1e12:>10.4f} {format_bytes(stage.activation_bytes):>12}"
            for name, stage in plan.stages.items()
        ),
        "",
        f"in all     {plan.flops / 1e12:.4f} TFLOP, at most {format_bytes(plan.peak_bytes)} with the weights",
    ]
    return "\n".join(lines)
