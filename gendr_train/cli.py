"""``gendr-train CONFIG.yaml``: read, run, save, and write the weights where asked.

Role: the only file of the package that talks to a terminal. Interrupting saves the state first.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gendr_core.errors import GenDRError

from .config import load_config
from .loop import export, train

logger = logging.getLogger(__name__)

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 1 error, 2 wrong usage, 130 interrupted with the state saved.

    Args:
        arguments: without the program name; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        return _run(options)
    except GenDRError as error:
        print(f"gendr-train: {error}", file=sys.stderr)
        return EXIT_ERROR


def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.set)
    if options.export_only is not None:
        export(config, options.export_only)
        return EXIT_OK
    interrupted = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        interrupted.set()

    signal.signal(signal.SIGINT, interrupt)
    train(config, resume=options.resume, should_stop=lambda _: interrupted.is_set())
    if interrupted.is_set():
        logger.info("interrupted; go on with --resume")
        return EXIT_INTERRUPTED
    if options.export is not None:
        export(config, options.export)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gendr-train", description="Train a GenDR network from a YAML config.")
    parser.add_argument("config", type=Path, help="YAML file, see configs/")
    parser.add_argument("--resume", action="store_true", help="go on from the run's saved state")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value, e.g. data.batch=8; repeatable"
    )
    parser.add_argument("--export", type=Path, metavar="FILE", help="at the end, write the averaged weights here")
    parser.add_argument(
        "--export-only", type=Path, metavar="FILE", help="do not train: write the weights of the saved state here"
    )
    return parser
