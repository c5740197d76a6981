"""The chain at gendr-mini's size in a given time: vae16 -> base -> cida -> adc -> pix, and the pixel-space model.

One command, on a GPU or a CPU; each stage is ``gendr-train`` with a config of ``configs/``. A short probe tells how
fast a stage runs, and its length is what fits into its share of the time: the learning rate comes to its end.

    python benchmarks/mini_chain.py --minutes 25 --data PHOTOS --validation OTHER --batch 64 --workers 14
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
PROBE_BATCHES = 24
"""The second half of them is timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One stage of the chain."""

    stage: str
    config: str
    share: float
    """Of the time."""
    needs: tuple[tuple[str, str], ...] = ()
    """Key of the config -> name of the run whose file belongs there."""


CHAIN = (
    Link(stage="vae16", config="mini_vae16", share=0.22),
    Link(stage="base", config="mini_base", share=0.12, needs=(("base.vae", "mini_vae16"),)),
    Link(stage="cida", config="mini_cida", share=0.2, needs=(("cida.base", "mini_base"), ("cida.vae", "mini_vae16"))),
    Link(stage="adc", config="mini_adc", share=0.1, needs=(("adc.teacher", "mini_cida"), ("adc.vae", "mini_vae16"))),
    Link(stage="pix", config="mini_pix", share=0.12, needs=(("pix.teacher", "mini_adc"), ("pix.vae", "mini_vae16"))),
    Link(stage="pixel", config="mini_pixel", share=0.24),
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything together")
    parser.add_argument("--data", type=Path, required=True, help="folder of photos to learn from")
    parser.add_argument("--validation", type=Path, required=True, help="folder of other photos")
    parser.add_argument("--out", type=Path, default=Path("runs/mini_chain"))
    parser.add_argument("--batch", type=int, default=8, help="images of an update; 64 keeps a large GPU busy")
    parser.add_argument("--workers", type=int, default=1, help="processes that damage photos")
    parser.add_argument("--stages", nargs="+", default=[link.stage for link in CHAIN], help="some of them, in order")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chain."""
    options = parse(arguments)
    links = [link for link in CHAIN if link.stage in options.stages]
    ends_s = time.monotonic() + 60.0 * options.minutes
    for index, link in enumerate(links):
        rest = links[index:]
        seconds = (ends_s - time.monotonic()) * link.share / sum(other.share for other in rest)
        run_link(link, options, seconds)
    print(f"wrote {', '.join(str(options.out / f'{link.config}.safetensors') for link in links)}")


def run_link(link: Link, options: argparse.Namespace, seconds: float) -> None:
    """Train one stage for about ``seconds``, the probe included."""
    began_s = time.monotonic()
    probe = options.out / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    batches = PROBE_BATCHES * options.batch
    lengths = [f"loop.images={batches}", f"loop.log_every={batches // 2}", "optimiser.warmup_images=0"]
    train(link, options, probe, [*lengths, "data.validation_folder=null", *scaling(link)])
    lines = (probe / link.config / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speed = json.loads(lines[-1])["images_per_s"]
    images = max(batches, int(speed * (seconds - (time.monotonic() - began_s))) // options.batch * options.batch)
    print(f"{link.stage}: {speed:.0f} images/s, {images} images", flush=True)
    lengths = [f"loop.images={images}", f"loop.log_every={max(1, images // 20)}", f"loop.save_every={images}"]
    warmup = [f"optimiser.warmup_images={images // 25}", f"loop.validate_every={images}"]
    train(link, options, options.out, [*lengths, *warmup, f"data.validation_folder={options.validation.resolve()}"])


def scaling(link: Link) -> list[str]:
    """Return what a run without validation images has to be told."""
    return ["vae16.latent_scaling=1.0"] if link.stage == "vae16" else []


def train(link: Link, options: argparse.Namespace, out: Path, overrides: Sequence[str]) -> None:
    """Run ``gendr-train`` in a process of its own, which gives all memory back."""
    files = [f"{key}={(options.out / name).resolve()}.safetensors" for key, name in link.needs]
    settings = [*files, f"data.batch={options.batch}", f"data.workers={options.workers}", *overrides]
    command = [sys.executable, "-m", "gendr_train", link.stage, str(CONFIGS / f"{link.config}.yaml")]
    command += ["--data", str(options.data), "--out", str(out)]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True, env=os.environ)


if __name__ == "__main__":
    main()
