"""``gendr plan``: sizes, FLOPs and memory of a restoration before anything runs.

Role: runs the very stages of the pipeline on networks without memory, under ``cost.measure``.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import read_unet, read_vae
from ..color import match_color
from ..config import RestoreOptions
from ..cost import Cost, measure
from ..decode import decode
from ..encode import encode
from ..errors import OptionError
from ..geometry import PAD_MULTIPLE, Extent, output_extent, padding_to_multiple
from ..model import DEFAULT_UNET, GenDRUNet, GenDRVAE, resolve_weights
from ..nets import VAE, UNet
from ..pipeline import check_pair
from ..spec import SPATIAL_FACTOR, ModelSpec, UNetArch, VAEArch, VAESpec
from ..step import one_step
from ..tensors import crop
from .options import (
    add_common_options,
    add_model_options,
    add_restore_options,
    choose_device,
    choose_dtypes,
    choose_vae,
    dtype_name,
    restore_options,
)

SUMMARY = "Say how large the output will be and what memory and computation it takes, before anything runs."
FULL_TOKENS = 77
"""Length of the prompt of SD2.1's text encoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Sizes and cost of one whole-frame restoration."""

    input: Extent
    output: Extent
    padded: Extent
    """What the networks see: ``output`` padded."""
    latent: Extent
    stages: dict[str, Cost]
    """Of each stage; the bytes are those of images, latents and activations, without weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument(
        "--size", type=_parse_size, required=True, metavar="WxH", help="size of the input image in pixels"
    )
    add_restore_options(parser)
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
        CheckpointError: a weight file cannot be used.
    """
    settings = restore_options(options)
    unet, vae = _sketch_models(options)
    plan = plan_restoration(options.size, unet, vae, settings)
    networks: list[nn.Module] = [unet.network, *([] if vae is None else [vae.network])]
    parameters = [parameter for network in networks for parameter in network.parameters()]
    weight_bytes = sum(parameter.nbytes for parameter in parameters)
    guidance = unet.spec.guidance if settings.guidance is None else settings.guidance
    report = {
        "mode": "whole",
        "dtype": dtype_name(unet.dtype),
        **{name: _pair(getattr(plan, name)) for name in ("input", "output", "padded", "latent")},
        "passes": 1 if guidance == 1.0 else 2,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "weight_bytes": weight_bytes,
        "flops": sum(cost.flops for cost in plan.stages.values()),
        "peak_bytes": weight_bytes + max(cost.peak_bytes for cost in plan.stages.values()),
        "stages": [
            {"name": name, "flops": cost.flops, "peak_bytes": cost.peak_bytes} for name, cost in plan.stages.items()
        ],
    }
    print(json.dumps(report, indent=2) if options.json else _text(report))
    return True


def plan_restoration(source: Extent, unet: GenDRUNet, vae: GenDRVAE | None, options: RestoreOptions) -> Plan:
    """Return sizes and cost of restoring one image, for networks on the meta device.

    Follows ``pipeline.restore`` from the padded pixels on, so what is measured is what runs.

    Args:
        source: size of the input.
        unet: on the meta device.
        vae: on the meta device, or None where the UNet needs none.
        options: as for ``restore``.

    Raises:
        OptionError: the VAE does not fit, the output would be too large, or there is no negative prompt for guidance.
    """
    check_pair(unet, vae)
    output = output_extent(source, options, unet.spec.scale)
    padding = padding_to_multiple(output, PAD_MULTIPLE)
    padded = padding.around(output)
    reference, pixels = (torch.empty(1, 3, size.height, size.width, device="meta") for size in (output, padded))
    stages: dict[str, Cost] = {}

    def stage(name: str, compute: Callable[[], Tensor], *inputs: Tensor) -> Tensor:
        # The pipeline keeps the reference and the pixels until the end.
        result, stages[name] = measure(compute, held=(reference, pixels, *inputs))
        return result

    latent = stage("encode", lambda: encode(pixels, unet.spec.front, vae))
    restored = stage("step", lambda: one_step(latent, unet, guidance=options.guidance), latent)
    decoded = stage("decode", lambda: decode(restored, unet.spec.back, vae), restored)
    stage("color", lambda: match_color(crop(decoded, padding, output), reference, options.color), decoded)
    cells = Extent(padded.height // SPATIAL_FACTOR, padded.width // SPATIAL_FACTOR)
    return Plan(input=source, output=output, padded=padded, latent=cells, stages=stages)


def _sketch_models(options: argparse.Namespace) -> tuple[GenDRUNet, GenDRVAE | None]:
    """Return the models that ``load_models`` would load, without memory."""
    if options.arch is not None and (options.unet is not None or options.vae is not None):
        raise OptionError("expected either --arch or weight files, got both: drop --arch, or --unet and --vae")
    dtype, vae_dtype = choose_dtypes(options.dtype, choose_device(options.device))
    if options.arch == "full":
        prompt = torch.empty(FULL_TOKENS, UNetArch().cross_attention_dim, device="meta")
        full = _sketch_unet(ModelSpec(arch=UNetArch()), dtype, positive=prompt, negative=prompt)
        return full, _sketch_vae(VAESpec(arch=VAEArch()), vae_dtype)
    unet_path = resolve_weights(options.unet or DEFAULT_UNET)
    checkpoint = read_unet(unet_path)
    unet = _sketch_unet(checkpoint.spec, dtype, positive=checkpoint.positive, negative=checkpoint.negative)
    vae_path = choose_vae(checkpoint.spec, unet_path, options.vae)
    return unet, None if vae_path is None else _sketch_vae(read_vae(vae_path).spec, vae_dtype)


def _sketch_unet(spec: ModelSpec, dtype: torch.dtype, *, positive: Tensor, negative: Tensor | None) -> GenDRUNet:
    network = UNet(spec.arch, device="meta", dtype=dtype).requires_grad_(False)
    return GenDRUNet(network=network, spec=spec, positive=positive, negative=negative, dtype=dtype)


def _sketch_vae(spec: VAESpec, dtype: torch.dtype) -> GenDRVAE:
    return GenDRVAE(network=VAE(spec.arch, device="meta", dtype=dtype).requires_grad_(False), spec=spec, dtype=dtype)


def _parse_size(text: str) -> Extent:
    match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 640x480, got {text!r}")
    return Extent(height=int(match[2]), width=int(match[1]))


def _pair(extent: Extent) -> list[int]:
    return [extent.width, extent.height]


def _text(report: dict[str, Any]) -> str:
    sizes = {name: "x".join(map(str, report[name])) for name in ("input", "output", "padded", "latent")}
    lines = [f"{name:<10} {size}" for name, size in sizes.items()]
    lines += [
        f"passes     {report['passes']}",
        f"weights    {report['parameters']:,} parameters, {_megabytes(report['weight_bytes'])} in {report['dtype']}",
        "",
        f"{'stage':<10} {'TFLOP':>10} {'peak MB':>10}",
        *(
            f"{row['name']:<10} {row['flops'] / 1e12:>10.4f} {row['peak_bytes'] / 1e6:>10.1f}"
            for row in report["stages"]
        ),
        "",
        f"in all     {report['flops'] / 1e12:.4f} TFLOP, at most {_megabytes(report['peak_bytes'])} with the weights",
    ]
    return "\n".join(lines)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
