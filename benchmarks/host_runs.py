"""What a node costs beside the core, and how soon it stops.

Role: the parts ``overhead`` and ``cancel`` of ``host``. Contenders take turns in one process on the same pictures; the
clocks are nodes too (``host_probe``), so that what the host does around a node counts against the node.
"""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from host_memory import picture
from host_server import PAIR, UNET, Graph, Part, Watched, node, restoring
from report import table

ROUNDS = 15
ENLARGEMENTS = ((512, 2.0), (256, 4.0))
"""Edge and factor: 1 megapixel each."""
CONTENDERS = ("node", "core", "core, own layers")
MOMENTS = (0, 100, 300, 500, 700, 900, 1000)
"""Of progress in thousandths; 0 is as soon as the node is named, 1000 the colours."""
LARGE: dict[str, tuple[str, int, dict[str, str | float]]] = {
    "pixel, 1024 to 4096, whole": (UNET, 1024, {"memory": "whole"}),
    "pixel, 1024 to 4096, tiles": (UNET, 1024, {"memory": "tiles"}),
    "pair, 512 to 2048": (PAIR, 512, {}),
}
LIMIT_S = 0.5


def _turns(edge: int, factor: float, seed: int) -> Graph:
    """Return a graph that runs all contenders on one picture, one after the other, in an order of its own."""
    graph = restoring(UNET, picture(edge, edge, seed), {}, factor=factor)
    order = [*CONTENDERS[seed % 3 :], *CONTENDERS[: seed % 3]]
    last: list[Any] = ["picture", 0]
    for name in order:
        # Waits for the contender before it and hands on the picture.
        graph[f"{name} begins"] = node("BenchClock", image=["picture", 0], after=last, name=f"{name} begins")
        turn = [f"{name} begins", 0]
        if name == "node":
            graph["restore"]["inputs"]["image"] = turn
            last = ["restore", 0]
        else:
            layers = "own" if "own" in name else "host"
            last = [name, 0]
            graph[name] = node("BenchCore", image=turn, model=["unet", 0], layers=layers, name=name, factor=factor)
        graph[f"{name} ends"] = node("BenchClock", image=["picture", 0], after=last, name=f"{name} ends")
        last = [f"{name} ends", 0]
    graph["sink"] = node("BenchSink", image=last)
    return graph


def overhead(comfyui: Path) -> Part:
    """Measure GenDR Restore beside a plain call of the core on the same weights."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as base, Watched(comfyui, Path(base)) as server:
        seeds = iter(range(1000))
        for edge, factor in ENLARGEMENTS:
            server.complete(_turns(edge, factor, next(seeds)))
            server.get("/bench")
            for _ in range(ROUNDS):
                server.complete(_turns(edge, factor, next(seeds)))
            noted = server.get("/bench")["seconds"]
            spent: dict[str, list[list[float]]] = {name: noted[name] for name in CONTENDERS[1:]}
            clocks = zip(noted["node begins"], noted["node ends"], strict=True)
            spent["node"] = [[after - before for before, after in zip(*pair, strict=True)] for pair in clocks]
            figures[f"{edge} by {factor}"] = spent
            for clock, what in enumerate(("wall", "processor")):
                by_name = {name: [times[clock] for times in spent[name]] for name in CONTENDERS}
                rows.append([f"{edge} to {round(edge * factor)}, {what}", *_compared(by_name)])
    header = [f"median s of {ROUNDS}", *CONTENDERS, "node / core", "node / core, pairs", "node / own, pairs"]
    return Part("Overhead", table(header, rows), figures)


def _compared(times: dict[str, list[float]]) -> list[str]:
    """Return medians, their ratio, and the medians of the ratios of neighbours in time."""
    node_s, core_s, own_s = (times[name] for name in CONTENDERS)
    medians = [f"{median(times[name]):.3f}" for name in CONTENDERS]
    ratios = [median(node_s) / median(core_s), *(_neighbours(node_s, rival) for rival in (core_s, own_s))]
    return [*medians, *(f"{ratio:.3f}" for ratio in ratios)]


def _neighbours(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def _clocked(unet: str, edge: int, seed: int, widgets: dict[str, str | float]) -> Graph:
    graph = restoring(unet, picture(edge, edge, seed), {}, **widgets)
    graph["begin"] = node("BenchClock", image=["picture", 0], after=["picture", 0], name="begin")
    graph["restore"]["inputs"]["image"] = ["begin", 0]
    graph["end"] = node("BenchClock", image=["picture", 0], after=["restore", 0], name="end")
    graph["sink"] = node("BenchSink", image=["end", 0])
    return graph


def _gaps(server: Watched, graph: Graph) -> tuple[float, list[tuple[float, float, str]]]:
    """Return the seconds of a whole run, and the longest stretches in which nobody looked at the cancel button.

    Each comes with its seconds on the wall, those of the thread on the processor, and where it began and ended.
    """
    server.get("/bench")  # Forgets what runs before this one noted.
    server.complete(graph)
    noted = server.get("/bench")
    begin, end = (noted["seconds"][name][0] for name in ("begin", "end"))
    within = [check for check in noted["checks"] if begin[0] <= check[0][0] <= end[0]]
    gaps = [
        (after[0] - before[0], after[2] - before[2], f"{left} to {reached}")
        for (before, left), (after, reached) in pairwise([(begin, "begin"), *within, (end, "end")])
    ]
    return end[0] - begin[0], sorted(gaps, key=lambda gap: gap[1], reverse=True)[:5]


def _cancel(server: Watched, graph: Graph, moment: int) -> float:
    """Cancel a run at that progress and return the seconds until the client is told so."""
    prompt_id = server.start(graph)
    server.wait_for(lambda kind, data: kind == "executing" and data["node"] == "restore")
    if moment:
        server.wait_for(lambda kind, data: kind == "progress" and data["node"] == "restore" and data["value"] >= moment)
    begin = time.perf_counter()
    server.post("/interrupt", {"prompt_id": prompt_id})
    ends = ("execution_interrupted", "execution_success")
    # A run that ends before it is cancelled was soon enough, too.
    return server.wait_for(lambda kind, data: kind in ends and data["prompt_id"] == prompt_id)[0] - begin


def cancel(comfyui: Path) -> Part:
    """Measure the time from the cancel button to the host's word that the run has stopped."""
    rows: list[list[str]] = []
    longest: list[str] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as base, Watched(comfyui, Path(base)) as server:
        server.get("/bench/watch")
        seeds = iter(range(1000))
        for name, (unet, edge, widgets) in LARGE.items():
            seconds, gaps = _gaps(server, _clocked(unet, edge, next(seeds), widgets))
            waits = [_cancel(server, _clocked(unet, edge, next(seeds), widgets), moment) for moment in MOMENTS]
            figures[name] = {"seconds": seconds, "gaps": gaps, "waits": waits}
            waited = [f"{wait:.2f}" for wait in waits]
            rows.append([name, f"{seconds:.1f}", *waited, *(f"{max(gap[k] for gap in gaps):.2f}" for k in (0, 1))])
            longest.append(f"- {name}: {'; '.join(f'{wall:.2f} ({own:.2f}) s {where}' for wall, own, where in gaps)}")
    header = [
        f"s, limit {LIMIT_S}",
        "whole run",
        *(f"at {moment / 10:g} %" for moment in MOMENTS),
        "longest gap",
        "processor",
    ]
    title = "The longest times between two checks, in brackets those of the thread on the processor:"
    return Part("Cancel", "\n".join([table(header, rows), "", title, "", *longest]), figures)
