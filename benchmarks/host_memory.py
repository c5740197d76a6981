"""Memory of a ComfyUI that restores one picture after the other, and what stays once it is asked to let go.

Role: the parts ``queue``, ``habits`` and ``frames`` of ``host``. A run counts only if it computes: every picture is a
new one. The control is the same graph with core's Upscale Image in the place of GenDR Restore.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from host_server import PAIR, UNET, Graph, Part, Watched, node, restoring
from report import table

MIB = 2**20
RUNS = 100
SETTLED_RUN = 10
"""After so many runs the caches of allocator and host are filled."""
UNLOAD_TIMEOUT_S = 30.0
SAVE: Graph = {"save": node("SaveImage", images=["restore", 0], filename_prefix="restored")}


_seeds = count(1000)


def picture(width: int, height: int, seed: int, number: int = 1) -> Graph:
    """Return the node that makes a picture."""
    return {"picture": node("ProbePicture", width=width, height=height, count=number, seed=seed)}


def _restored(seed: int, unet: str = UNET, edge: int = 128) -> Graph:
    return restoring(unet, picture(edge, edge, seed), SAVE)


def _control(seed: int) -> Graph:
    scaled = node("ImageScale", image=["picture", 0], upscale_method="bicubic", width=512, height=512, crop="disabled")
    return {**picture(128, 128, seed), "restore": scaled, **SAVE}


KINDS: dict[str, Callable[[int], Graph]] = {
    "GenDR Restore, pixel": _restored,
    "GenDR Restore, pair": lambda seed: _restored(seed, PAIR),
    "pixel and pair in turns": lambda seed: _restored(seed, (UNET, PAIR)[seed % 2]),
    "two sizes in turns": lambda seed: _restored(seed, edge=(128, 96)[seed % 2]),
    "Upscale Image (control)": _control,
}


def resident_after(comfyui: Path, graph: Callable[[int], Graph]) -> list[int]:
    """Return the resident memory of a fresh server after each of many runs of different pictures."""
    resident: list[int] = []
    with tempfile.TemporaryDirectory() as base, Watched(comfyui, Path(base)) as server:
        for seed in range(RUNS):
            server.complete(graph(seed))
            resident.append(server.resident_bytes())
    return resident


def queue(comfyui: Path) -> Part:
    """Measure the resident memory after each of many runs, ours and the control's."""
    return queue_part({name: resident_after(comfyui, graph) for name, graph in KINDS.items()})


def queue_part(figures: Mapping[str, list[int]]) -> Part:
    """Return the table of what ``resident_after`` found for each kind of graph."""
    rows: list[list[str]] = []
    for name, resident in figures.items():
        tenth, last = resident[SETTLED_RUN - 1], resident[-1]
        # A single reading may meet a picture that is being saved.
        drift = median(resident[-SETTLED_RUN:]) / median(resident[SETTLED_RUN // 2 : 3 * SETTLED_RUN // 2])
        sizes = [f"{size / MIB:.0f}" for size in (resident[0], tenth, last, max(resident))]
        rows.append([name, *sizes, f"{last / tenth:.3f}", f"{drift:.3f}"])
    names = ["after the 1st", f"{SETTLED_RUN}th", "last", "most", f"last / {SETTLED_RUN}th", "medians of ten"]
    return Part("Queued runs", table([f"{RUNS} runs, MiB", *names], rows), figures)


def _unloaded(server: Watched) -> dict[str, Any]:
    """Have models unloaded and caches emptied, and return what is left after that."""
    deadline = time.monotonic() + UNLOAD_TIMEOUT_S
    state = server.get("/probe")
    while (state["alive"] or state["loaded"]) and time.monotonic() < deadline:
        # Again and again: the host misses a request that comes while it collects garbage.
        server.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.5)
        state = server.get("/probe")
    state |= {**server.get("/probe/tensors"), "resident": server.resident_bytes()}
    server.get("/bench/trim")
    return {**state, "trimmed": server.resident_bytes()}


def _cancelled(server: Watched) -> None:
    """Cancel a large run in the midst of its work."""
    prompt_id = server.start(restoring(UNET, picture(512, 512, next(_seeds)), SAVE))
    server.wait_for(lambda kind, data: kind == "progress" and data["node"] == "restore" and data["value"] > 100)
    server.post("/interrupt", {"prompt_id": prompt_id})
    server.wait_for(lambda kind, _data: kind == "execution_interrupted")


def _queued(server: Watched, graphs: list[Graph]) -> None:
    """Queue all at once and wait for the last."""
    last = [server.start(graph) for graph in graphs][-1]
    server.wait_for(lambda kind, data: kind == "execution_success" and data["prompt_id"] == last)


def habits(comfyui: Path) -> Part:
    """Measure what each thing that users do leaves behind once models are unloaded and caches emptied."""
    acts: dict[str, Callable[[Watched], object]] = {
        "one run": lambda server: server.complete(_restored(next(_seeds))),
        "ten queued at once": lambda server: _queued(server, [_restored(next(_seeds)) for _ in range(10)]),
        "two sizes in turns, ten": lambda server: _queued(
            server, [_restored(next(_seeds), edge=(128, 96)[k % 2]) for k in range(10)]
        ),
        "pixel and pair in turns, ten": lambda server: _queued(
            server, [_restored(next(_seeds), (UNET, PAIR)[k % 2]) for k in range(10)]
        ),
        "cancelled at 512 to 2048": _cancelled,
        "cancelled four times more": lambda server: [_cancelled(server) for _ in range(4)],
        "one more run": lambda server: server.complete(_restored(next(_seeds))),
    }
    figures: dict[str, Any] = {}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as base, Watched(comfyui, Path(base)) as server:
        # What the first run of all loads for good: libraries, threads, the host's own state.
        acts["one run"](server)
        for name, act in {"nothing": lambda _server: None, **acts}.items():
            act(server)
            state = figures[name] = _unloaded(server)
            counts = [len(state["alive"]), len(state["loaded"]), state["count"]]
            sizes = [f"{state['bytes'] / MIB:.2f}", *(f"{state[what] / MIB:.0f}" for what in ("resident", "trimmed"))]
            rows.append([name, *map(str, counts), *sizes])
    header = ["then unloaded", "networks", "loaded models", "tensors", "their MiB", "resident MiB", "trimmed MiB"]
    return Part("What is left", table(header, rows), figures)


def restart(comfyui: Path) -> Part:
    """Run the same graph before and after a restart of the host."""
    pictures: list[np.ndarray[Any, Any]] = []
    graph = restoring(UNET, picture(200, 150, 5), {"save": node("ProbeSave", image=["restore", 0], name="restored")})
    for _ in range(2):
        with tempfile.TemporaryDirectory() as base, Watched(comfyui, Path(base)) as server:
            server.complete(graph)
            pictures.append(server.floats("restored"))
    same = bool(np.array_equal(pictures[0], pictures[1]))
    text = f"200x150 to 800x600 before and after a restart: {'identical' if same else 'different'} floats."
    return Part("Restart", text, {"identical": same})


class _Peak:
    """The highest resident memory of a server while this is entered, looked at every 20 ms."""

    def __init__(self, server: Watched) -> None:
        self._server, self._stop = server, threading.Event()
        self.resident = server.resident_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.resident = max(self.resident, self._server.resident_bytes())


def frames(comfyui: Path) -> Part:
    """Measure a batch of 200 frames, and whether a frame is what it would be by itself."""
    number, edge, chosen = 200, 64, (0, 99, 199)
    end: Graph = {"save": node("ProbeSave", image=["restore", 0], name="batch")}
    with tempfile.TemporaryDirectory() as base, Watched(comfyui, Path(base)) as server:
        server.complete(_restored(0))
        before = server.resident_bytes()
        with _Peak(server) as peak:
            server.complete(restoring(UNET, picture(edge, edge, 7, number), end))
        batch = server.floats("batch")
        same: list[bool] = []
        for index in chosen:
            graph = restoring(UNET, picture(edge, edge, 7, number), end)
            graph["frame"] = node("ImageFromBatch", image=["picture", 0], batch_index=index, length=1)
            graph["restore"]["inputs"]["image"] = ["frame", 0]
            server.complete(graph)
            same.append(bool(np.array_equal(server.floats("batch")[0], batch[index])))
        after = _unloaded(server)["resident"]
    result = batch.nbytes
    figures = {"before": before, "peak": peak.resident, "after": after, "result": result, "same": same}
    rows = [
        ["resident before", f"{before / MIB:.0f}"],
        ["peak", f"{peak.resident / MIB:.0f}"],
        ["of which result and input", f"{(result + result / 16) / MIB:.0f}"],
        ["after unloading", f"{after / MIB:.0f}"],
    ]
    text = table([f"{number} frames of {edge}x{edge} to {4 * edge}x{4 * edge}", "MiB"], rows)
    alone = "identical floats" if all(same) else f"different: {same}"
    return Part("A batch", f"{text}\n\nFrames {', '.join(map(str, chosen))} beside single runs: {alone}.", figures)
