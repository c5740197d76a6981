"""Two commands that need nothing but Python 3.10 or newer: ``python run.py demo`` and ``python run.py test``.

Role: makes the environment .venv, installs GenDR into it and runs there. Standard library only.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
OLDEST_PYTHON = (3, 10)
EXTRAS = {"demo": "", "test": "[test]"}
INPUTS = ("pyproject.toml", "constraints.txt")

# pytest comes last, so that its closing line is the last of the output. Called by its own name and not through
# "python -m", which would put this folder on sys.path and its nodes/ in the place of ComfyUI's.
CHECKS = (
    ("ruff", "check"),
    ("ruff", "format", "--check"),
    ("codespell",),
    ("lint-imports",),
    ("pyright", "--project", "pyproject.toml"),
    ("pytest",),
)


def digest() -> str:
    """Return a digest of the files that say what is installed."""
    # As text: a checkout may end its lines in either way.
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in INPUTS]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def install(command: str) -> None:
    """Make .venv fit for ``command``; does nothing where it already is."""
    stamp = VENV / "installed.txt"
    base, *installed = stamp.read_text(encoding="utf-8").splitlines() if stamp.is_file() else [""]
    wanted_base, wanted = f"Python {sys.version.split()[0]} at {ROOT}", f"{digest()} {EXTRAS[command]}".strip()
    if base == wanted_base and wanted in installed:
        return
    if base != wanted_base:
        print(f"making the environment {VENV}", flush=True)
        venv.create(VENV, clear=True, with_pip=True)
    print(f"installing GenDR{EXTRAS[command]} and what it needs; this takes minutes, once", flush=True)
    # Bytecode is made on first use: most modules of torch and transformers are never imported.
    target = ["--no-compile", "-c", "constraints.txt", "-e", f".{EXTRAS[command]}"]
    subprocess.run([BIN / "python", "-m", "pip", "install", "--quiet", *target], cwd=ROOT, check=True)
    kept = [line for line in installed if base == wanted_base and line.startswith(digest())]
    stamp.write_text("\n".join([wanted_base, *kept, wanted]) + "\n", encoding="utf-8")


def run(*command: str) -> int:
    """Return the exit code of a program of .venv, run at the top of the repository."""
    # Tools draw with characters that a Windows console's own encoding lacks.
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, env=environment, check=False).returncode


def check() -> int:
    """Return 0 where every check passes; all of them run, whatever the first ones say."""
    failed: list[str] = []
    for command in CHECKS:
        print(f"== {' '.join(command)}", flush=True)
        if run(*command):
            failed.append(" ".join(command))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Return the exit code of the command that the user named."""
    parser = argparse.ArgumentParser(prog="run.py", description="Try GenDR, or pass its tests, in an own environment.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="restore a photo and write it beside plain bicubic")
    demo.add_argument(
        "photo", nargs="?", type=Path, default=ROOT / "examples" / "courtyard.jpg", help="default: %(default)s"
    )
    commands.add_parser("test", help="run every check and test")
    arguments = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        parser.error(f"expected Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer, got {sys.version.split()[0]}")
    try:
        install(arguments.command)
    except subprocess.CalledProcessError as error:
        print(f"could not set up {VENV}: {error}", file=sys.stderr)
        print("on Debian and Ubuntu, venv is a package of its own: python3-venv", file=sys.stderr)
        return 1
    if arguments.command == "test":
        return check()
    return run("python", str(ROOT / "examples" / "demo.py"), str(arguments.photo.resolve()))


if __name__ == "__main__":
    sys.exit(main())
