"""What the pack adds to the start of a ComfyUI.

Role: the part ``start`` of ``host``. The host's own line of import times is rounded to 0.1 s, so ``host_load`` reads
two clocks around the same call; the start of the whole host, with the pack and without, tells whether that is all.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from host_server import Part
from report import table

ROOT = Path(__file__).parents[1]
LOADER = Path(__file__).with_name("host_load.py")
ROUNDS = 5
LIMIT_S = 0.3


def _start(comfyui: Path, base: Path, pack: Path) -> tuple[float, float, str]:
    """Return the seconds from launch to the last node loaded, on the wall and on the processor, and what it printed."""
    options = ["--cpu", "--quick-test-for-ci", "--disable-api-nodes", "--base-directory", str(base)]
    options += ["--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"]
    begin, before = perf_counter(), os.times()
    run = subprocess.run(
        [sys.executable, str(comfyui / "main.py"), *options],
        cwd=comfyui,
        env={**os.environ, "GENDR_PACK": str(pack)},
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return perf_counter() - begin, processor, run.stdout


def _loaded(output: str) -> tuple[float, float, float]:
    """Return the seconds of the pack by the wall, by the processor, and by the host's own line."""
    clocks = re.search(r"GenDR loaded in (.*)", output)
    line = re.search(rf"([\d.]+) seconds: .*{LOADER.name}", output)
    assert clocks is not None, output[-2000:]
    assert line is not None, output[-2000:]
    wall, processor = json.loads(clocks[1])
    return wall, processor, float(line[1])


def _base(folder: Path, *, loads: bool) -> Path:
    for name in ("custom_nodes", "input", "output", "user"):
        (folder / name).mkdir(parents=True)
    if loads:
        shutil.copy(LOADER, folder / "custom_nodes")
    return folder


def _installed(pack: Path) -> Path:
    """Return a copy of the pack as it is after an installation: without bytecode."""
    shutil.rmtree(pack, ignore_errors=True)
    for name in ("gendr_core", "nodes"):
        shutil.copytree(ROOT / name, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", pack)
    return pack


def start(comfyui: Path) -> Part:
    """Measure starts with the pack, without it, and with a pack that has never been imported."""
    names = ("wall", "processor", "line", "first wall", "first processor", "with", "without")
    figures: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        ours, without = _base(Path(folder) / "with", loads=True), _base(Path(folder) / "without", loads=False)
        for base in (ours, without):
            _start(comfyui, base, ROOT)  # Fills the file cache and makes bytecode and the database.
        for _ in range(ROUNDS):
            _, whole, output = _start(comfyui, ours, ROOT)
            wall, processor, line = _loaded(output)
            first_wall, first_processor, _ = _loaded(_start(comfyui, ours, _installed(Path(folder) / "pack"))[2])
            _, alone, _ = _start(comfyui, without, ROOT)
            found = (wall, processor, line, first_wall, first_processor, whole, alone)
            for name, value in zip(names, found, strict=True):
                figures[name].append(value)
    rows = [
        ["the pack", *_spread(figures["wall"])],
        ["the pack, processor", *_spread(figures["processor"])],
        ["the host's own line, rounded", *_spread(figures["line"])],
        ["first start: no bytecode yet", *_spread(figures["first wall"])],
        ["first start, processor", *_spread(figures["first processor"])],
        ["the whole start with the pack, processor", *_spread(figures["with"])],
        ["without the pack, processor", *_spread(figures["without"])],
    ]
    return Part("Start", table([f"s, {ROUNDS} starts, limit {LIMIT_S}", "median", "least", "most"], rows), figures)


def _spread(values: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in (median(values), min(values), max(values))]
