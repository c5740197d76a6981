"""Figures of a comparison of restorations: what is kept of every photo, their means, and both as tables and pictures.

Role: a part of ``quality``, which measures; the numbers come from ``gendr_core/metrics.py`` and ``naturalness``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from report import table
from rival import REALESRGAN
from torch import Tensor

from gendr_core.cli.pictures import side_by_side

BICUBIC, ORIGINAL = "bicubic", "original"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Of one picture."""

    psnr_y: float
    ssim_y: float
    niqe: float
    brisque: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One photo under one recipe."""

    photo: str
    recipe: str
    seed: int
    scores: Mapping[str, Scores]
    """By method; the original, too."""

    def gain_db(self, method: str) -> float:
        """Return the PSNR-Y of a method over that of bicubic."""
        return self.scores[method].psnr_y - self.scores[BICUBIC].psnr_y


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Of one method under one recipe: means over the photos."""

    psnr_y: float
    ssim_y: float
    niqe: float
    """Over the photos that have one."""
    brisque: float
    gain_db: float
    share_better: float
    """Of the photos, 0 to 1: those with more PSNR-Y than bicubic."""
    worst_photo: str
    worst_gain_db: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Medians of one method for 128x128 to 512x512."""

    seconds: float
    """On the wall."""
    cpu_seconds: float
    """Of all threads together, waiting in a loop included."""


def picture_sheet(scores: Mapping[str, Scores], pictures: Mapping[str, Tensor]) -> Tensor:
    """Return the pictures side by side, each under its name and scores."""

    def label(name: str) -> str:
        own = scores[name]
        return f"{name} {own.psnr_y:.2f} dB, NIQE {own.niqe:.2f}, BRISQUE {own.brisque:.1f}"

    return side_by_side({label(name): picture for name, picture in pictures.items()})


def _mean(values: Sequence[float]) -> float:
    usable = [value for value in values if not math.isnan(value)]
    return fmean(usable) if usable else math.nan


def summarise(trials: Sequence[Trial], method: str) -> Summary:
    """Return a method's means over trials of one recipe."""
    gains = {trial.photo: trial.gain_db(method) for trial in trials}
    worst = min(gains, key=lambda photo: gains[photo])
    scores = [trial.scores[method] for trial in trials]
    return Summary(
        psnr_y=_mean([score.psnr_y for score in scores]),
        ssim_y=_mean([score.ssim_y for score in scores]),
        niqe=_mean([score.niqe for score in scores]),
        brisque=_mean([score.brisque for score in scores]),
        gain_db=_mean(list(gains.values())),
        share_better=sum(gain > 0.0 for gain in gains.values()) / len(gains),
        worst_photo=worst,
        worst_gain_db=gains[worst],
    )


def quality_table(summaries: Mapping[str, Summary]) -> str:
    """Return a Markdown table of one recipe: one row per method and one for the originals."""
    rows: list[list[str]] = []
    for name, summary in summaries.items():
        natural = [f"{summary.niqe:.3f}", f"{summary.brisque:.2f}"]
        if name == ORIGINAL:
            rows.append([name, "-", "-", *natural, "-", "-", "-"])
            continue
        fidelity = [f"{summary.psnr_y:.2f}", f"{summary.ssim_y:.4f}"]
        worst = f"{summary.worst_gain_db:+.2f} {summary.worst_photo}"
        gain = ["-", "-", "-"] if name == BICUBIC else [f"{summary.gain_db:+.2f}", f"{summary.share_better:.0%}", worst]
        rows.append([name, *fidelity, *natural, *gain])
    return table(["mean", "PSNR-Y dB", "SSIM-Y", "NIQE", "BRISQUE", "gain dB", "better", "worst, gain dB"], rows)


def time_table(timings: Mapping[str, Timing]) -> str:
    """Return a Markdown table of times, and how many times longer the rival takes where it took part."""
    rival = timings.get(REALESRGAN)
    header = ["median", "s", "CPU s"] + (["rival / it, s", "rival / it, CPU s"] if rival else [])
    rows: list[list[str]] = []
    for name, own in timings.items():
        ratios = [rival.seconds / own.seconds, rival.cpu_seconds / own.cpu_seconds] if rival else []
        rows.append([name, f"{own.seconds:.3f}", f"{own.cpu_seconds:.3f}", *(f"{ratio:.1f}" for ratio in ratios)])
    return table(header, rows)


def finite(value: object) -> object:
    """Return ``value`` with None for infinite numbers and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
