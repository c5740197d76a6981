"""Options that several commands share, and what they stand for: devices, number formats, models.

Role: below the commands, above ``model``.
"""

import argparse
import importlib.metadata
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from time import perf_counter

import torch

from ..config import (
    ATTENTION_RANGES,
    COLOR_METHODS,
    GRAPH_MODES,
    MAX_DETAIL,
    MAX_SCALE,
    MEMORY_MODES,
    MIN_SCALE,
    WEIGHT_FORMATS,
    MemoryOptions,
    RestoreOptions,
)
from ..errors import OptionError
from ..memory import parse_bytes
from ..model import (
    DEFAULT_UNET,
    GenDRUNet,
    GenDRVAE,
    bundled_weights,
    default_dtype,
    default_vae_dtype,
    load_unet,
    load_vae,
    resolve_weights,
)
from ..spec import OPTIONAL_FOLDS, UNET_FOLDS, VAE_FOLDS, Fold, ModelSpec

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BUNDLED_PAIRS = {"gendr-mini-unet16.safetensors": "gendr-mini-vae16.safetensors"}
"""Which bundled VAE a bundled UNet was trained with."""

_log = getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """Loaded networks and how they were chosen."""

    unet: GenDRUNet
    vae: GenDRVAE | None
    unet_path: Path
    vae_path: Path | None
    device: torch.device
    load_s: float
    """Seconds that loading took."""

    def describe(self) -> dict[str, object]:
        """Return the part of a machine-readable report that says what ran."""
        return {
            "version": version(),
            "device": str(self.device),
            "dtype": dtype_name(self.unet.dtype),
            "weights": weights_name(self.unet),
            "model": {
                "title": self.unet.spec.title,
                "unet": str(self.unet_path),
                "vae": None if self.vae_path is None else str(self.vae_path),
            },
        }


def version() -> str:
    """Return the version of the installed distribution, whose one source is pyproject.toml."""
    try:
        return importlib.metadata.version("gendr")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the command line's name of ``dtype``, one of ``DTYPES``."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def weights_name(unet: GenDRUNet) -> str:
    """Return the command line's name of what the weights are in: ``fp8`` or one of ``DTYPES``."""
    return "fp8" if "fp8" in unet.folds else dtype_name(unet.dtype)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command has."""
    parser.add_argument("--json", action="store_true", help="print one machine-readable report and nothing else")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``load_models`` reads."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--unet", metavar="FILE", help=f"weights: a path or the name of a bundled file (default {DEFAULT_UNET})"
    )
    group.add_argument("--vae", metavar="FILE", help="weights of the VAE, where the UNet needs one")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="of weights and computation; auto is fp16 on CUDA and fp32 elsewhere. VAEs of this family overflow fp16:"
        " for auto and fp16 they take bf16 on CUDA and fp32 elsewhere",
    )
    group.add_argument(
        "--weights",
        choices=WEIGHT_FORMATS,
        default="dtype",
        help="how weights stay in memory: fp8 (float8 e4m3, one scale for every output channel) takes half of what 16"
        " bits take, changes images a little and is slower; not on mps (default: in --dtype)",
    )
    group.add_argument(
        "--kernels",
        choices=("torch", "fused"),
        default="torch",
        help="fused normalises by kernels of its own, in Triton; only on cuda, not tried on a GPU yet (default torch)",
    )


def add_restore_options(parser: argparse.ArgumentParser, *, sizes: bool = True) -> None:
    """Add the fields of ``RestoreOptions``; ``sizes`` says whether the output size is one of them."""
    group = parser.add_argument_group("result")
    if sizes:
        size = group.add_mutually_exclusive_group()
        size.add_argument(
            "--scale",
            type=float,
            metavar="X",
            help=f"output size over input size, {MIN_SCALE:g} to {MAX_SCALE:g} (default: the model's own)",
        )
        size.add_argument("--longest-edge", type=int, metavar="PIXELS", help="longest edge of the output")
        size.add_argument("--shortest-edge", type=int, metavar="PIXELS", help="shortest edge of the output")
    group.add_argument(
        "--color", choices=COLOR_METHODS, default="wavelet", help="how the input's colours are kept (default wavelet)"
    )
    group.add_argument(
        "--detail",
        type=float,
        default=1.0,
        metavar="D",
        help=f"how much the fine detail that the model adds counts, 0 to {MAX_DETAIL:g} (default 1)",
    )
    group.add_argument(
        "--guidance", type=float, metavar="W", help="any weight but 1 runs the UNet twice (default: the model's)"
    )
    group.add_argument(
        "--graphs",
        choices=GRAPH_MODES,
        default="off",
        help="auto records small frames of sizes that come again as CUDA graphs, not tried on a GPU yet (default off)",
    )


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add the fields of ``MemoryOptions``."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--memory",
        choices=MEMORY_MODES,
        default="auto",
        help="whole never cuts the frame into tiles, tiles always does (default auto: tiles where nothing else fits)",
    )
    group.add_argument(
        "--budget", metavar="SIZE", help="most memory for weights and work, such as 8GiB (default: what is free)"
    )
    group.add_argument(
        "--attention",
        choices=ATTENTION_RANGES,
        default="windows",
        help="what self-attention sees in large frames: full costs the square of the size (default windows)",
    )
    group.add_argument("--tile", type=int, metavar="PIXELS", help="edge of a tile, a multiple of 64")
    group.add_argument("--overlap", type=int, metavar="PIXELS", help="overlap of tiles, a multiple of 64")
    group.add_argument("--tile-batch", type=int, metavar="N", help="tiles that run together")
    group.add_argument(
        "--frame-batch",
        type=int,
        metavar="N",
        help="small images of one size that run together (default: on CUDA as many as make a megapixel, else 1)",
    )


def restore_options(options: argparse.Namespace) -> RestoreOptions:
    """Return what ``add_restore_options`` and ``add_memory_options`` added, checked.

    Raises:
        OptionError: a value is out of its range.
    """
    return RestoreOptions(
        scale=options.scale,
        longest_edge=options.longest_edge,
        shortest_edge=options.shortest_edge,
        color=options.color,
        detail=options.detail,
        guidance=options.guidance,
        graphs=options.graphs,
        memory=MemoryOptions(
            mode=options.memory,
            attention=options.attention,
            budget_bytes=None if options.budget is None else parse_bytes(options.budget),
            tile_px=options.tile,
            overlap_px=options.overlap,
            tile_batch=options.tile_batch,
            frame_batch=options.frame_batch,
        ),
    )


def choose_device(name: str) -> torch.device:
    """Return the device that ``--device`` means; auto takes CUDA, MPS or the CPU, the first that is there.

    Raises:
        OptionError: this machine or this torch does not have it.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [device for device, there in present.items() if there]
    if name == "auto":
        return torch.device(usable[0])
    if name not in usable:
        raise OptionError(f"expected --device to be auto or one that torch finds here: {', '.join(usable)}; got {name}")
    return torch.device(name)


def choose_dtypes(name: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of the UNet and of the VAE, whose family overflows float16."""
    dtype = default_dtype(device) if name == "auto" else DTYPES[name]
    return dtype, default_vae_dtype(device) if dtype == torch.float16 else dtype


def choose_folds(weights: str, kernels: str) -> tuple[tuple[Fold, ...], tuple[Fold, ...]]:
    """Return the folds of the UNet and of the VAE for ``--weights`` and ``--kernels``."""
    asked: tuple[Fold, ...] = tuple(fold for fold in OPTIONAL_FOLDS if fold in (weights, kernels))
    return (*UNET_FOLDS, *asked), (*VAE_FOLDS, *asked)


def choose_vae(spec: ModelSpec, unet_path: Path, given: str | None) -> Path | None:
    """Return the VAE file for a UNet, None where it needs none.

    Raises:
        OptionError: it needs one, none was given, and it is not a bundled UNet whose VAE is known.
        CheckpointError: the file given does not exist.
    """
    if not spec.needs_vae:
        if given is not None:
            _log.warning("--vae has no effect: %s works on pixels", unet_path.name)
        return None
    if given is not None:
        return resolve_weights(given)
    bundled = bundled_weights()
    if unet_path == bundled.get(unet_path.name) and BUNDLED_PAIRS.get(unet_path.name) in bundled:
        return bundled[BUNDLED_PAIRS[unet_path.name]]
    raise OptionError(f"expected --vae FILE with the VAE that {unet_path.name} was trained with, got none")


def load_models(options: argparse.Namespace) -> Models:
    """Return the networks that ``add_model_options`` asks for.

    Raises:
        OptionError: the device is missing or cannot do what is asked of it, or the VAE is missing.
        CheckpointError: a weight file is missing or cannot be used.
    """
    start = perf_counter()
    device = choose_device(options.device)
    dtype, vae_dtype = choose_dtypes(options.dtype, device)
    unet_path = resolve_weights(options.unet or DEFAULT_UNET)
    folds, vae_folds = choose_folds(options.weights, options.kernels)
    unet = load_unet(unet_path, device=device, dtype=dtype, folds=folds)
    vae_path = choose_vae(unet.spec, unet_path, options.vae)
    return Models(
        unet=unet,
        vae=None if vae_path is None else load_vae(vae_path, device=device, dtype=vae_dtype, folds=vae_folds),
        unet_path=unet_path,
        vae_path=vae_path,
        device=device,
        load_s=perf_counter() - start,
    )
