"""Nothing piles up in a host that works for a long time, and nothing is forgotten that a restart could change."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_server import Graph, Server, node
from weights import LATENT, PIXEL, TINY_VAE, write_tiny_weights

pytestmark = pytest.mark.host


def restoring(unet: str, name: str, seed: int, edge: int = 24, count: int = 1) -> Graph:
    """Return a graph that no other seed's run can answer from a cache."""
    widgets: dict[str, Any] = {"size": "by factor", "factor": 2.0, "edge": 64, "color": "wavelet", "guidance": 0.0}
    widgets |= {"detail": 1.0, "feather": 0}
    graph = {
        "picture": node("ProbePicture", width=edge, height=edge, count=count, seed=seed),
        "unet": node("GenDR_LoadUNet", unet=unet),
        "restore": node("GenDR_Restore", image=["picture", 0], model=["unet", 0], **widgets),
        "save": node("ProbeSave", image=["restore", 0], name=name),
    }
    if unet == LATENT:
        graph["vae"] = node("GenDR_LoadVAE16", vae_file=TINY_VAE)
        graph["restore"]["inputs"]["vae"] = ["vae", 0]
    return graph


def succeed(server: Server, graphs: list[Graph]) -> None:
    """Queue all at once; every one of them runs and succeeds."""
    for prompt_id in [server.queue(graph) for graph in graphs]:
        status = server.finished(prompt_id)["status"]
        assert status["status_str"] == "success", status
        (cached,) = [data["nodes"] for event, data in status["messages"] if event == "execution_cached"]
        assert "restore" not in cached


def unload(server: Server) -> None:
    """Press the button that unloads models and empties caches until no network is left."""
    deadline = time.monotonic() + 30
    while server.get("/probe")["alive"] and time.monotonic() < deadline:
        # Again and again: the host misses a request that comes while it collects garbage.
        server.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.2)
    assert server.get("/probe") == {"alive": [], "loaded": []}


def test_ten_queued_at_once_all_run_and_give_pictures_of_their_own(server: Server) -> None:
    succeed(server, [restoring(PIXEL, f"queued{seed}", seed) for seed in range(100, 110)])
    pictures = {server.floats(f"queued{seed}").tobytes() for seed in range(100, 110)}
    assert len(pictures) == 10
    assert server.get("/probe") == {"alive": ["UNet"], "loaded": ["UNet"]}


def test_sizes_and_models_in_turns_leave_nothing_once_unloaded(server: Server) -> None:
    succeed(server, [restoring(PIXEL, "turn", 200)])
    unload(server)
    before = server.get("/probe/tensors")
    for unets, edges in (((PIXEL, PIXEL), (16, 40)), ((PIXEL, LATENT), (24, 24))):
        turns = [restoring(unets[seed % 2], "turn", 201 + seed + edges[0], edges[seed % 2]) for seed in range(8)]
        succeed(server, turns)
        unload(server)
        assert server.get("/probe/tensors") == before


@pytest.mark.parametrize("unet", [PIXEL, LATENT])
def test_the_number_of_tensors_and_their_bytes_do_not_grow_from_run_to_run(server: Server, unet: str) -> None:
    alive: list[Any] = []
    for seed in range(12):
        succeed(server, [restoring(unet, "same", 300 + seed)])
        alive.append({**server.get("/probe/tensors"), **server.get("/probe")})
    # The first one still meets what the test before it has left in the caches.
    assert alive[1:] == [alive[1]] * 11


def test_a_run_after_a_cancelled_one_leaves_what_the_runs_before_it_left(server: Server) -> None:
    succeed(server, [restoring(PIXEL, "before", seed) for seed in (400, 401)])
    before = server.get("/probe/tensors")
    cancelled = restoring(PIXEL, "cancelled", 402, edge=512, count=20)
    prompt_id = server.queue(cancelled)
    deadline = time.monotonic() + 60
    while server.get("/probe/progress").get("restore", 0.0) == 0.0 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.post("/interrupt", {"prompt_id": prompt_id})
    events = [event for event, _ in server.finished(prompt_id)["status"]["messages"]]
    assert events[-1] == "execution_interrupted"
    succeed(server, [restoring(PIXEL, "after", 403)])
    assert server.get("/probe/tensors") == before


def test_a_restarted_host_gives_the_identical_picture(server: Server, comfyui: Path, tmp_path: Path) -> None:
    succeed(server, [restoring(LATENT, "first", 500)])
    write_tiny_weights(tmp_path / "models")
    other = Server(comfyui, tmp_path)
    try:
        succeed(other, [restoring(LATENT, "second", 500)])
        np.testing.assert_array_equal(other.floats("second"), server.floats("first"))
    finally:
        other.stop()


def test_two_hundred_frames_are_what_each_would_be_alone(server: Server) -> None:
    succeed(server, [restoring(PIXEL, "frames", 600, edge=8, count=200)])
    frames = server.floats("frames")
    assert frames.shape == (200, 16, 16, 3)
    for index in (0, 99, 199):
        graph = restoring(PIXEL, "frame", 600, edge=8, count=200)
        graph["frame"] = node("ImageFromBatch", image=["picture", 0], batch_index=index, length=1)
        graph["restore"]["inputs"]["image"] = ["frame", 0]
        succeed(server, [graph])
        np.testing.assert_array_equal(server.floats("frame")[0], frames[index])
