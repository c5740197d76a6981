"""``gendr doctor``: whether this installation works, line by line.

Role: looks at what the other commands rely on and restores one small picture.
"""

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter

import torch

from ..checkpoint import inspect
from ..errors import OptionError
from ..model import DEFAULT_UNET, bundled_weights
from ..pipeline import restore
from .failures import FAILURES, explain
from .options import add_common_options, add_model_options, load_models, version

SUMMARY = "Check this installation and restore a small test picture; exit code 1 when there is a problem."
REQUIRED = ("numpy", "pillow", "safetensors", "tqdm")
OPTIONAL = {"imagecodecs": "16-bit PNG and TIFF", "tifffile": "TIFF", "huggingface_hub": "gendr download"}
TEST_SIZE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    add_model_options(parser)
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Print every finding; return whether none is a problem."""
    findings = [
        Finding(name="gendr", ok=True, detail=version()),
        Finding(name="python", ok=True, detail=f"{platform.python_version()} on {platform.platform()}"),
        Finding(name="torch", ok=True, detail=torch.__version__),
        *(_package(name, needed=True, purpose="") for name in REQUIRED),
        *(_package(name, needed=False, purpose=purpose) for name, purpose in OPTIONAL.items()),
        *_devices(),
        *_weights(),
        _finding("self-test", lambda: _self_test(options)),
    ]
    ok = all(finding.ok for finding in findings)
    if options.json:
        print(json.dumps({"ok": ok, "checks": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{'ok' if finding.ok else 'problem':<8} {finding.name:<32} {finding.detail}")
    return ok


def _finding(name: str, check: Callable[[], str]) -> Finding:
    """Return what ``check`` returns, or a problem where it fails for a reason that the user can mend."""
    try:
        return Finding(name=name, ok=True, detail=check())
    except FAILURES as error:
        message = explain(error)
        if message is None:
            raise
        return Finding(name=name, ok=False, detail=message)


def _package(name: str, *, needed: bool, purpose: str) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        detail = f"not installed: run pip install {name}" if needed else f"not installed; only needed for {purpose}"
        return Finding(name=name, ok=not needed, detail=detail)


def _devices() -> list[Finding]:
    found = [Finding(name="device cpu", ok=True, detail=f"{torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        _, total_bytes = torch.cuda.mem_get_info(index)
        detail = f"{torch.cuda.get_device_name(index)}, {total_bytes / 1e9:.1f} GB"
        found.append(Finding(name=f"device cuda:{index}", ok=True, detail=detail))
    if torch.backends.mps.is_available():
        found.append(Finding(name="device mps", ok=True, detail="Apple GPU"))
    return found


def _weights() -> list[Finding]:
    bundled = bundled_weights()
    if DEFAULT_UNET not in bundled:
        bundled_names = ", ".join(bundled) or "none"
        missing = f"expected it in the package, found {bundled_names}: install GenDR again"
        return [Finding(name=DEFAULT_UNET, ok=False, detail=missing)]
    reports = ((name, inspect(path)) for name, path in bundled.items())
    return [
        Finding(
            name=name,
            ok=report.problem is None,
            detail=report.problem or f"{report.kind}, {report.num_parameters:,} parameters",
        )
        for name, report in reports
    ]


def _self_test(options: argparse.Namespace) -> str:
    models = load_models(options)
    ramp = torch.linspace(0.0, 1.0, TEST_SIZE)
    across = ramp.expand(TEST_SIZE, TEST_SIZE)
    image = torch.stack([across, across.T, across.flip(1)], dim=2)
    start = perf_counter()
    result = restore(image[None], models.unet, models.vae)
    seconds = perf_counter() - start
    if not bool(result.isfinite().all()):
        raise OptionError(f"expected finite values on {models.device}, got NaN or infinity: use --dtype fp32")
    size = f"{TEST_SIZE}x{TEST_SIZE} -> {result.shape[2]}x{result.shape[1]}"
    return f"{models.unet_path.name} on {models.device}, {size} in {seconds:.2f} s"
