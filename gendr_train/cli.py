"""``gendr-train STAGE CONFIG.yaml``: read, run, save, and write the weights; and what helps before and after a run.

Role: the only file of the package that talks to a terminal. Interrupting saves the state first.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

from gendr_core.errors import GenDRError, OptionError

from .budget import estimate
from .config import load_config
from .loop import export, train
from .preview import write_preview
from .sample import SampleOptions, write_samples
from .schema import TrainConfig
from .settings import SETTINGS

logger = logging.getLogger(__name__)

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 1 error, 2 wrong usage, 130 interrupted with the state saved.

    Args:
        arguments: without the program name; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    # Of several processes the first one speaks; accelerate's own lines about every file it saves are left out.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    try:
        if options.command == "preview":
            return _preview(options)
        if options.command == "sample":
            return _sample(options)
        return _train(options)
    except GenDRError as error:
        print(f"gendr-train: {error}", file=sys.stderr)
        return EXIT_ERROR


def _train(options: argparse.Namespace) -> int:
    config = _config(options)
    if config.run.stage != options.command:
        raise OptionError(
            f"expected a config of stage {options.command}, got one of stage {config.run.stage}:"
            f" gendr-train {config.run.stage} {options.config}"
        )
    weights = Path(config.run.output) / f"{config.run.name}.safetensors"
    if options.dry_run:
        print(estimate(config))
        return EXIT_OK
    if options.export_only:
        export(config, weights)
        return EXIT_OK
    interrupted = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        interrupted.set()

    signal.signal(signal.SIGINT, interrupt)
    train(config, resume=options.resume, should_stop=lambda _: interrupted.is_set())
    if interrupted.is_set():
        logger.info("interrupted; go on with --resume")
        return EXIT_INTERRUPTED
    export(config, weights)
    return EXIT_OK


def _preview(options: argparse.Namespace) -> int:
    config = _config(options)
    write_preview(config.data, config.degradation, seed=config.run.seed, images=options.images, path=options.out)
    print(options.out)
    return EXIT_OK


def _sample(options: argparse.Namespace) -> int:
    wanted = SampleOptions(
        captions=tuple(options.prompt),
        negative=options.negative,
        text_encoder=options.text_encoder,
        count=options.count,
        width_px=options.size[0],
        height_px=options.size[1],
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
    )
    write_samples(options.out, options.unet, options.vae, wanted, device=options.device)
    print(options.out)
    return EXIT_OK


def _config(options: argparse.Namespace) -> TrainConfig:
    overrides = list(options.set)
    if options.data is not None:
        overrides += [f"data.folders={[str(folder) for folder in options.data]}", "data.shards=[]"]
    if getattr(options, "run_folder", None) is not None:
        overrides.append(f"run.output={os.fspath(options.run_folder)!r}")
    return load_config(options.config, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gendr-train", description="Train GenDR networks from YAML configs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in SETTINGS:
        command = commands.add_parser(name, help=f"run stage {name}", description=f"Train stage {name} and export it.")
        _add_config(command)
        command.add_argument(
            "--out", dest="run_folder", type=Path, metavar="FOLDER", help="replaces run.output: state, logs, weights"
        )
        command.add_argument("--resume", action="store_true", help="go on from the run's saved state")
        command.add_argument(
            "--export-only", action="store_true", help="do not train: write the weights of the saved state"
        )
        command.add_argument(
            "--dry-run", action="store_true", help="do not train: tell parameters, memory, work and days"
        )
    preview = commands.add_parser("preview", help="write a picture of what training will see")
    _add_config(preview)
    preview.add_argument("--images", type=int, default=8, help="how many crops")
    preview.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    _add_sample(commands.add_parser("sample", help="make pictures with a model of stage base"))
    return parser


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, help="YAML file, see configs/")
    command.add_argument("--data", type=Path, nargs="+", metavar="FOLDER", help="replaces data.folders and data.shards")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value, e.g. data.batch=8; repeatable"
    )


def _add_sample(command: argparse.ArgumentParser) -> None:
    defaults = SampleOptions()
    command.add_argument("unet", help="UNet file of stage base")
    command.add_argument("vae", help="VAE file")
    command.add_argument("--prompt", action="append", default=[], help="one picture each; none takes the file's own")
    command.add_argument("--negative", default=defaults.negative, help="what to lead away from")
    command.add_argument("--text-encoder", metavar="FOLDER", help="with tokenizer and text_encoder of SD2.1")
    command.add_argument("--count", type=int, default=defaults.count, help="pictures without a prompt")
    command.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("WIDTH", "HEIGHT"), help="pixels")
    command.add_argument("--steps", type=int, default=defaults.steps)
    command.add_argument("--guidance", type=float, default=defaults.guidance)
    command.add_argument("--seed", type=int, default=defaults.seed)
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.png")
