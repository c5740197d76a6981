"""``gendr bake``: a weight file with everything constant folded in, and what that costs in quality.

Role: the command line of ``bake``. The error is that of images made with the old and the new file, both computed in
fp32, so that it is the file's alone.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bake import Storage, bake_unet, bake_vae
from ..checkpoint import FileReport, inspect
from ..errors import CheckpointError, OptionError
from ..image_io import read_image
from ..model import load_unet, load_vae, resolve_weights
from ..pipeline import restore
from ..spec import ModelSpec
from .files import check_weight_target, images_in
from .options import add_common_options, choose_device, choose_vae

SUMMARY = (
    "Write a weight file again with timestep, prompt and all else that is constant folded in: smaller, quicker to load,"
    " for restoring only. The error that comes from it is measured and printed."
)
MEASURED_PX = 512
"""Longest edge of the images that are compared."""
MAX_PHOTOS = 16
SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far an image made with the new file is from the one made with the old; values are 0 to 1."""

    image: str
    psnr_db: float | None
    """Over all channels; None where both are equal."""
    max_difference: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument("file", metavar="FILE", help="a UNet or a VAE: a path, or the name of a bundled file")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", type=Path, help="the .safetensors file to write"
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(Storage),
        default="fp16",
        help="of the numbers in the file (default fp16). fp8 (float8 e4m3, one scale for every output channel, first"
        " and last layer in bf16) saves disk and download, and memory where it is restored with --weights fp8",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output, which is never FILE itself")
    group = parser.add_argument_group("measuring the error")
    group.add_argument(
        "--photos",
        metavar="FOLDER",
        type=Path,
        help=f"what to restore with both files: the middle of each image, as much as makes {MEASURED_PX}x{MEASURED_PX}"
        f" pixels, of at most {MAX_PHOTOS} images; without it a synthetic one, which says less",
    )
    group.add_argument("--vae", metavar="FILE", help="VAE to restore with, where FILE is a UNet that needs one")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Bake the file, measure and print; return True.

    Raises:
        OptionError: the output is in the way or cannot be, or the VAE or the device is missing.
        CheckpointError: a file cannot be read or written, or is not what it should be.
        ImageError: there are no photos, or one cannot be read.
    """
    source, target = resolve_weights(options.file), options.output
    check_weight_target(target, overwrite=options.overwrite)
    before = inspect(source)
    spec = before.spec
    if spec is None:
        raise CheckpointError(
            before.problem or f"{source.name}: expected a UNet or a VAE, got both in one file: choose a file of one"
        )
    vae = choose_vae(spec, source, options.vae) if isinstance(spec, ModelSpec) else None
    for needed in [path for path in (source, vae) if path is not None]:
        if target.exists() and target.samefile(needed):
            raise OptionError(f"expected another name to write to, got {needed.name}, which is read: choose a new one")
    device = choose_device(options.device)
    images = _images(options.photos, spec.scale if isinstance(spec, ModelSpec) else 1.0)
    if isinstance(spec, ModelSpec):
        bake_unet(source, target, options.dtype)
        old, new = (_restored(path, vae, images, device) for path in (source, target))
    else:
        bake_vae(source, target, options.dtype)
        old, new = (_coded(path, images, device) for path in (source, target))
    differences = [_difference(*each) for each in zip(images, old, new, strict=True)]
    after = inspect(target)
    if options.json:
        print(json.dumps(_report(source, target, options.dtype, (before, after), differences), indent=2))
    else:
        print("\n".join(_lines(target, options.dtype, (before, after), differences)))
    return True


def _images(folder: Path | None, scale: float) -> dict[str, Tensor]:
    """Return what to compare, [1, H, W, 3] in 0 to 1 by name."""
    edge = max(1, round(MEASURED_PX / scale))
    if folder is None:
        return {SYNTHETIC: _synthetic(edge)}
    if not folder.is_dir():
        raise OptionError(f"expected a folder of images after --photos, found none at {folder}: check the path")
    return {path.name: _middle(read_image(path).image, edge) for path in images_in(folder)[:MAX_PHOTOS]}


def _middle(image: Tensor, edge: int) -> Tensor:
    """Return the middle of [1, H, W, C] in colours, without alpha."""
    _, height, width, channels = image.shape
    top, left = (max(0, length - edge) // 2 for length in (height, width))
    cut = image[:, top : top + edge, left : left + edge, : 1 if channels < 3 else 3]
    return cut.expand(-1, -1, -1, 3).contiguous()


def _synthetic(edge: int) -> Tensor:
    """Return waves that become finer to the right, with noise: [1, edge, edge, 3], the same every time."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, edge), torch.linspace(0, 1, edge), indexing="ij")
    phases = torch.tensor([0.0, 2.1, 4.2])
    waves = torch.sin(phases + (6.0 * rows + 40.0 * columns * columns)[..., None])
    noise = torch.randn(edge, edge, 3, generator=torch.Generator().manual_seed(0))
    return (0.5 + 0.35 * waves + 0.03 * noise).clamp(0.0, 1.0)[None]


def _restored(path: Path, vae_path: Path | None, images: Mapping[str, Tensor], device: torch.device) -> list[Tensor]:
    """Return what a UNet file makes of the images, [1, H, W, 3] each."""
    unet = load_unet(path, device=device, dtype=torch.float32)
    vae = None if vae_path is None else load_vae(vae_path, device=device, dtype=torch.float32)
    return [restore(image, unet, vae) for image in images.values()]


def _coded(path: Path, images: Mapping[str, Tensor], device: torch.device) -> list[Tensor]:
    """Return what a VAE file makes of the images, there and back: [1, H, W, 3] each."""
    network = load_vae(path, device=device, dtype=torch.float32).network
    results: list[Tensor] = []
    for image in images.values():
        _, height, width, _ = image.shape
        cell_px = network.arch.spatial_factor
        padded = F.pad(image.movedim(3, 1), (0, -width % cell_px, 0, -height % cell_px), mode="replicate")
        with torch.inference_mode():
            pixels = network.decode(network.encode(padded.to(device) * 2.0 - 1.0))
        results.append((pixels.movedim(1, 3)[:, :height, :width].cpu() * 0.5 + 0.5).clamp(0.0, 1.0))
    return results


def _difference(name: str, old: Tensor, new: Tensor) -> Difference:
    apart = (new - old).double().abs()
    error = apart.square().mean()
    return Difference(
        image=name,
        psnr_db=round(-10.0 * error.log10().item(), 2) if error > 0 else None,
        max_difference=apart.max().item(),
    )


def _report(
    source: Path,
    target: Path,
    dtype: str,
    reports: tuple[FileReport, FileReport],
    differences: list[Difference],
) -> dict[str, object]:
    before, after = ({"parameters": report.num_parameters, "bytes": report.num_bytes} for report in reports)
    return {
        "file": str(target),
        "source": str(source),
        "kind": reports[1].kind,
        "dtype": dtype,
        "folds": list(reports[1].folds),
        "before": before,
        "after": after,
        "synthetic": differences[0].image == SYNTHETIC,
        "differences": [asdict(difference) for difference in differences],
        "lowest_psnr_db": _lowest(differences),
        "max_difference": max(difference.max_difference for difference in differences),
    }


def _lowest(differences: list[Difference]) -> float | None:
    return min((each.psnr_db for each in differences if each.psnr_db is not None), default=None)


def _lines(
    target: Path,
    dtype: str,
    reports: tuple[FileReport, FileReport],
    differences: list[Difference],
) -> list[str]:
    before, after = reports
    lines = [
        str(target),
        f"folded      {', '.join(after.folds)}",
        f"parameters  {after.num_parameters:,}, before {before.num_parameters:,}",
        f"size        {after.num_bytes:,} bytes in {dtype}, before {before.num_bytes:,}",
    ]
    if differences[0].image == SYNTHETIC:
        lines.append("error       on a synthetic image, for want of --photos:")
    else:
        lines.append(f"error       on {len(differences)} photo{'s' if len(differences) > 1 else ''}:")
    for each in differences:
        psnr = "equal" if each.psnr_db is None else f"PSNR {each.psnr_db:.2f} dB"
        lines.append(f"            {psnr}, at most {each.max_difference:.2g} of 1 ({each.image})")
    return lines
