"""``gendr``: restore, evaluate, inspect, plan, convert, download and more, with exit codes and errors fit for scripts.

Role: the top of the core and the only part of it that talks to a terminal. One file per command; ``options`` holds what
they share. Results go to stdout, everything else to stderr.
"""

import argparse
import io
import logging
import sys
import traceback
from collections.abc import Sequence

from . import bake, bake_prompt, convert, doctor, download, evaluate, inspect, models, plan, restore
from .failures import FAILURES, explain
from .options import version

COMMANDS = {
    "restore": restore,
    "evaluate": evaluate,
    "inspect": inspect,
    "plan": plan,
    "convert": convert,
    "bake": bake,
    "bake-prompt": bake_prompt,
    "models": models,
    "download": download,
    "doctor": doctor,
}
EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 1 error, 130 interrupted. Wrong usage leaves with code 2.

    Args:
        arguments: without the program name; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="gendr: %(levelname)s: %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may hold what the terminal cannot show; that is no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportUnknownMemberType]
    try:
        return EXIT_OK if options.run(options) else EXIT_ERROR
    except KeyboardInterrupt:
        print("gendr: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except FAILURES as error:
        message = explain(error)
        if message is None:
            raise
        if options.debug:
            traceback.print_exception(error)
        print(f"gendr: error: {message}", file=sys.stderr)
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gendr", description="Image restoration in one diffusion step.")
    parser.add_argument("--version", action="version", version=f"gendr {version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.SUMMARY, description=command.SUMMARY)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
