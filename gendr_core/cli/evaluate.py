"""``gendr evaluate``: how much better than bicubic the restoration of damaged photos is.

Role: degrades originals with the fixed recipes of ``degrade``, restores them, and scores both with ``metrics``.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor
from tqdm import tqdm

from .. import metrics
from ..config import RestoreOptions
from ..degrade import HEAVY, LIGHT, Recipe, degrade
from ..errors import OptionError
from ..geometry import Extent
from ..image_io import read_image, write_image
from ..pipeline import restore
from ..prepare import prepare
from ..tensors import to_image
from .failures import FAILURES, report_failure
from .files import check_targets, images_in
from .options import Models, add_common_options, add_model_options, add_restore_options, load_models
from .pictures import enlarge_nearest, side_by_side

SUMMARY = "Measure quality: damage photos, restore them at 4 times the size, and compare with bicubic."
RECIPES = {"light": (LIGHT,), "heavy": (HEAVY,), "both": (LIGHT, HEAVY)}
JPEG_BLOCK_PX = 8
COLUMNS = {
    "psnr_y": ("PSNR-Y", ".2f"),
    "ssim_y": ("SSIM-Y", ".4f"),
    "noise_sigma": ("noise", ".2f"),
    "sharpness": ("sharpness", ".2f"),
    "grid_ratio": ("blocks", ".3f"),
    "color_shift": ("colour", ".2f"),
}
"""Score -> heading and number format of the table."""
LEGEND = (
    "PSNR-Y in dB and SSIM-Y against the original, higher is better; noise and sharpness: of luma, in 8-bit levels;"
    " blocks: strength of the input's JPEG grid, 1 is none; colour: shift from the input in 8-bit levels."
)

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Scores of one image under one recipe."""

    source: Path
    recipe: str
    seed: int
    extent: Extent
    """Of the original after cropping."""
    bicubic: Scores
    restored: Scores
    picture: Path | None

    @property
    def gain_db(self) -> float:
        """PSNR-Y over that of bicubic."""
        return self.restored["psnr_y"] - self.bicubic["psnr_y"]

    def report(self) -> dict[str, object]:
        """Return the trial for a machine-readable report."""
        return {
            "input": str(self.source),
            "recipe": self.recipe,
            "seed": self.seed,
            "size": [self.extent.width, self.extent.height],
            "bicubic": _finite(self.bicubic),
            "restored": _finite(self.restored),
            "picture": None if self.picture is None else str(self.picture),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` reads."""
    parser.add_argument("folder", type=Path, metavar="HR_FOLDER", help="folder of undamaged photos")
    parser.add_argument("--recipe", choices=RECIPES, default="both", help="kind of damage (default both)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photos by name")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write side-by-side pictures here")
    parser.add_argument("--overwrite", action="store_true", help="replace existing pictures")
    parser.add_argument("--verbose", action="store_true", help="print the scores of every photo too")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_restore_options(parser, sizes=False)
    add_model_options(parser)
    add_common_options(parser)


def run(options: argparse.Namespace) -> bool:
    """Evaluate every photo and print the scores; return whether all could be read and restored.

    Raises:
        GenDRError: something is wrong before the first photo, or not one of them could be evaluated.
    """
    settings = RestoreOptions(
        scale=float(LIGHT.scale),
        color=options.color,
        detail=options.detail,
        guidance=options.guidance,
        graphs=options.graphs,
    )
    rounds = _settle(options)
    models = load_models(options)
    trials: list[Trial] = []
    failures: list[dict[str, str]] = []
    for source, recipe, seed, picture in tqdm(rounds, unit="photo", disable=options.quiet or not sys.stderr.isatty()):
        try:
            trials.append(evaluate_photo(source, recipe, seed, models=models, options=settings, picture=picture))
        except FAILURES as error:
            message = report_failure(source, error, debug=options.debug)
            failures.append({"input": str(source), "recipe": recipe.name, "error": message})
    if not trials:
        raise OptionError(f"expected at least one photo that can be evaluated in {options.folder}, got none: see above")
    summaries = {name: _summary(group) for name, group in _by_recipe(trials).items()}
    if options.json:
        photos = [trial.report() for trial in trials]
        print(json.dumps({**models.describe(), "recipes": summaries, "photos": photos, "failures": failures}, indent=2))
    else:
        _print_table(trials, verbose=options.verbose)
    return not failures


def evaluate_photo(
    source: Path, recipe: Recipe, seed: int, *, models: Models, options: RestoreOptions, picture: Path | None
) -> Trial:
    """Return the scores of one photo, which is cropped about its centre to a multiple of the recipe's scale.

    Args:
        source: an image; alpha is left out, gray becomes RGB.
        recipe: how it is damaged.
        seed: picks strengths and noise.
        models: what restores it.
        options: with the recipe's scale.
        picture: where a side-by-side picture goes; its folder exists. None writes none.

    Raises:
        ImageError: the photo cannot be read, or is smaller than 11 pixels on an edge.
    """
    original = _centre_crop(read_image(source).image[..., :3].expand(-1, -1, -1, 3), recipe.scale)
    damaged = degrade(original, recipe, seed)
    extent = Extent(original.shape[1], original.shape[2])
    bicubic = to_image(prepare(damaged, extent).reference)
    restored = restore(damaged, models.unet, models.vae, options)
    trial = Trial(
        source=source,
        recipe=recipe.name,
        seed=seed,
        extent=extent,
        bicubic=_score(bicubic, original, damaged, recipe.scale),
        restored=_score(restored, original, damaged, recipe.scale),
        picture=picture,
    )
    if picture is not None:
        panels = {
            f"input, {recipe.name}": enlarge_nearest(damaged, recipe.scale),
            f"bicubic {trial.bicubic['psnr_y']:.2f} dB": bicubic,
            f"restored {trial.restored['psnr_y']:.2f} dB": restored,
            "original": original,
        }
        write_image(picture, side_by_side(panels))
    return trial


def _settle(options: argparse.Namespace) -> list[tuple[Path, Recipe, int, Path | None]]:
    """Return (photo, recipe, seed, picture) of every trial, checked without reading a photo."""
    if options.limit is not None and options.limit < 1:
        raise OptionError(f"expected --limit of at least 1, got {options.limit}")
    if not options.folder.is_dir():
        raise OptionError(f"expected a folder of photos, found none at {options.folder}: check the path")
    rounds: list[tuple[Path, Recipe, int, Path | None]] = []
    for seed, source in enumerate(images_in(options.folder)[: options.limit]):
        for recipe in RECIPES[options.recipe]:
            name = f"{seed:04d}_{source.stem}_{recipe.name}.png"
            rounds.append((source, recipe, seed, None if options.output is None else options.output / name))
    if options.output is not None:
        check_targets([picture for *_, picture in rounds if picture is not None], overwrite=options.overwrite)
        options.output.mkdir(parents=True, exist_ok=True)
    return rounds


def _centre_crop(image: Tensor, multiple: int) -> Tensor:
    height, width = (length // multiple * multiple for length in image.shape[1:3])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def _score(image: Tensor, original: Tensor, damaged: Tensor, scale: int) -> Scores:
    scores = {
        "psnr_y": metrics.psnr_y(image, original),
        "ssim_y": metrics.ssim_y(image, original),
        "noise_sigma": metrics.noise_sigma(image),
        "sharpness": metrics.sharpness(image),
        "grid_ratio": metrics.grid_ratio(image, JPEG_BLOCK_PX * scale),
        "color_shift": metrics.color_shift(image, damaged),
    }
    return {name: float(score) for name, score in scores.items()}


def _by_recipe(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    names = dict.fromkeys(trial.recipe for trial in trials)
    return {name: [trial for trial in trials if trial.recipe == name] for name in names}


def _means(scores: Sequence[Scores]) -> Scores:
    return {name: fmean(score[name] for score in scores) for name in COLUMNS}


def _summary(trials: Sequence[Trial]) -> dict[str, object]:
    gain = fmean(trial.gain_db for trial in trials)
    return {
        "photos": len(trials),
        "bicubic": _finite(_means([trial.bicubic for trial in trials])),
        "restored": _finite(_means([trial.restored for trial in trials])),
        "gain_db": gain if math.isfinite(gain) else None,
        "share_better": _num_better(trials) / len(trials),
    }


def _num_better(trials: Sequence[Trial]) -> int:
    return sum(trial.gain_db > 0.0 for trial in trials)


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return the scores as JSON can hold them: without the infinite PSNR of equal images."""
    return {name: score if math.isfinite(score) else None for name, score in scores.items()}


def _print_table(trials: Sequence[Trial], *, verbose: bool) -> None:
    print(f"{'recipe':<8}{'method':<10}" + "".join(f"{heading:>11}" for heading, _ in COLUMNS.values()))
    for name, group in _by_recipe(trials).items():
        for trial in group if verbose else ():
            _print_row(name, "bicubic", trial.bicubic, note=trial.source.name)
            _print_row(name, "restored", trial.restored, note=trial.source.name)
        _print_row(name, "bicubic", _means([trial.bicubic for trial in group]), note=f"mean of {len(group)}")
        _print_row(name, "restored", _means([trial.restored for trial in group]), note=f"mean of {len(group)}")
        num_better = _num_better(group)
        gain = fmean(trial.gain_db for trial in group)
        share = num_better / len(group)
        print(f"{name}: {gain:+.2f} dB over bicubic, better on {num_better} of {len(group)} photos ({share:.0%})")
    print(LEGEND)


def _print_row(recipe: str, method: str, scores: Scores, *, note: str) -> None:
    numbers = "".join(f"{scores[name]:>11{form}}" for name, (_, form) in COLUMNS.items())
    print(f"{recipe:<8}{method:<10}{numbers}  {note}")
