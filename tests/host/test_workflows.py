"""Every example workflow, and the blueprint, run by the host as its frontend would, and watched over the websocket."""

import io
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_events import Event, watch
from comfy_server import PACK_FOLDER, Server, node
from comfy_workflows import BLUEPRINTS, WORKFLOWS, Prompt, as_prompt, change, node_ids, read_workflow, subgraph
from PIL import Image
from placeholders import write_text_to_image

pytestmark = pytest.mark.host

EDGE = 48
"""Of the example picture, which the host would bring with 768."""
SAVED = {
    "Restore one photo with GenDR": 2 * EDGE,
    "Restore in stages with GenDR": 80,
    "Text to image, then GenDR": 128,
    "Restore a batch of frames with GenDR": EDGE,
    "Restore only a masked part with GenDR": EDGE,
    "GenDR as upscale model": EDGE,
    "Compare before and after with GenDR": None,
    "Compare before and after with GenDR (older ComfyUI)": EDGE,
}
"""Edge of the picture that each workflow saves. Where the picture is made smaller first, it comes back to its size."""
PHOTO, STAGES, MASKED = (f"Restore {what} with GenDR" for what in ("one photo", "in stages", "only a masked part"))
FRAMES = 8


@pytest.fixture(scope="module")
def workshop(server: Server) -> Server:
    """The server with a small example picture and a checkpoint to make pictures with."""
    pixels = np.random.default_rng(3).integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(server.base / "input" / "example.png")
    checkpoints = server.base / "models" / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    write_text_to_image(checkpoints / "sd_xl_base_1.0.safetensors")
    return server


def prompt_of(server: Server, path: Path) -> Prompt:
    """Return a workflow as the frontend would queue it, with small sizes where it names one by itself."""
    described, workflow = server.get("/object_info"), read_workflow(path)
    if "ImageCompare" not in described and any(entry["type"] == "ImageCompare" for entry in workflow["nodes"]):
        pytest.skip("this ComfyUI has no node ImageCompare, which came with 0.9")
    prompt = as_prompt(described, workflow)
    # As the frontend sends a list that is no link.
    change(prompt, "ImageCompare", compare_view={"__value__": ["", ""]})
    change(prompt, "EmptyLatentImage", width=64, height=64)
    change(prompt, "KSampler", steps=1)
    for stage in ("GenDR_Encode", "GenDR_Plan"):
        change(prompt, stage, edge=80)
    return prompt


def named(name: str) -> Path:
    (path,) = (path for path in WORKFLOWS if path.stem == name)
    return path


def saved(server: Server, outputs: dict[str, Any]) -> list[Path]:
    """Return the files in the output folder, pictures that are only shown left out."""
    files = [file for output in outputs.values() for file in output.get("images", ())]
    return [server.base / "output" / file["subfolder"] / file["filename"] for file in files if file["type"] == "output"]


def sizes(path: Path) -> list[tuple[int, int]]:
    """Return the size of the picture, or of every frame of the video."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return [image.size]
    import av  # The host's own, which is only where the host is.

    with av.open(path) as video:
        return [(frame.width, frame.height) for frame in video.decode(video=0)]


def test_the_sizes_are_known_of_every_workflow() -> None:
    assert {path.stem for path in WORKFLOWS} == set(SAVED)


def test_every_workflow_is_a_template_with_its_picture(server: Server) -> None:
    listed = server.get("/workflow_templates")[PACK_FOLDER]
    assert set(listed) == set(SAVED)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_from_start_to_success_and_saves_its_picture(workshop: Server, path: Path) -> None:
    prompt = prompt_of(workshop, path)
    watched = watch(workshop, prompt)
    names = [event for event, _ in watched.events]
    assert names.index("execution_start") < names.index("execution_success")
    assert watched.of("execution_error") == []
    assert watched.begun() == set(prompt)
    outputs = {data["node"]: data["output"] for data in watched.of("executed")}
    edge = SAVED[path.stem]
    if edge is None:
        (compared,) = (outputs[node_id] for node_id in node_ids(prompt, "ImageCompare"))
        assert [len(compared[side]) for side in ("a_images", "b_images")] == [1, 1]
        return
    (file,) = saved(workshop, outputs)
    assert sizes(file) == [(edge, edge)] * (FRAMES if "frames" in path.stem else 1)


def test_the_picture_appears_on_the_node_while_it_is_restored(workshop: Server) -> None:
    prompt = prompt_of(workshop, named(PHOTO))
    change(prompt, "GenDR_Restore", factor=1.75)
    watched = watch(workshop, prompt)
    assert {node_id for node_id, _ in watched.previews} == set(node_ids(prompt, "GenDR_Restore"))
    for _, picture in watched.previews:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            assert image.width == image.height


def test_outside_of_the_mask_the_picture_is_only_enlarged(workshop: Server) -> None:
    path, pictures = named(MASKED), {}
    for what in ("masked", "whole"):
        prompt = prompt_of(workshop, path)
        (restore,) = node_ids(prompt, "GenDR_Restore")
        change(prompt, "GenDR_Restore", feather=0)
        if what == "whole":
            del prompt[restore]["inputs"]["mask"]
        prompt["probe"] = node("ProbeSave", image=[restore, 0], name=what)
        workshop.run(prompt)
        pictures[what] = workshop.floats(what)[0]
    half = EDGE // 2
    np.testing.assert_allclose(pictures["masked"][:, : half - 1], pictures["whole"][:, : half - 1], atol=1e-6)
    assert np.abs(pictures["masked"][:, half + 1 :] - pictures["whole"][:, half + 1 :]).max() > 0.01


def test_an_error_names_the_node_that_failed(workshop: Server) -> None:
    prompt = prompt_of(workshop, named(STAGES))
    (encode,) = node_ids(prompt, "GenDR_Encode")
    del prompt[encode]["inputs"]["vae"]
    for plan in node_ids(prompt, "GenDR_Plan") + node_ids(prompt, "PreviewAny"):
        del prompt[plan]
    (error,) = watch(workshop, prompt).of("execution_error")
    assert (error["node_id"], error["node_type"]) == (encode, "GenDR_Encode")
    assert "expected a VAE" in error["exception_message"]


def test_cancel_ends_a_workflow_at_the_node_that_runs(workshop: Server) -> None:
    prompt = prompt_of(workshop, named(PHOTO))
    (restore,) = node_ids(prompt, "GenDR_Restore")
    change(prompt, "GenDR_Restore", size="longest edge", edge=2048, memory="tiles", tile=128)

    asked: list[Event] = []

    def cancel(event: Event) -> None:
        if event[0] == "progress" and event[1]["node"] == restore and not asked:
            asked.append(event)
            workshop.post("/interrupt", {})

    watched = watch(workshop, prompt, cancel)
    assert asked[0][1]["value"] < asked[0][1]["max"]
    (interrupted,) = watched.of("execution_interrupted")
    assert interrupted["node_id"] == restore
    assert watched.of("execution_success") == []


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_the_blueprint_is_listed_where_hosts_know_them(server: Server, path: Path) -> None:
    try:
        listed = server.get("/global_subgraphs")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        pytest.skip("this ComfyUI has no subgraphs of packs, which came with 0.3.67")
    (key,) = (key for key, entry in listed.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK_FOLDER}")
    assert listed[key]["name"] == path.stem
    assert server.get(f"/global_subgraphs/{key}")["data"] == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_what_is_inside_of_the_blueprint_runs(workshop: Server, path: Path) -> None:
    prompt = as_prompt(workshop.get("/object_info"), subgraph(read_workflow(path)))
    (restore,) = node_ids(prompt, "GenDR_Restore")
    prompt["load"] = node("LoadImage", image="example.png")
    change(prompt, "GenDR_Restore", image=["load", 0])
    prompt["save"] = node("SaveImage", images=[restore, 0], filename_prefix="blueprint")
    (file,) = saved(workshop, workshop.run(prompt))
    assert sizes(file) == [(4 * EDGE, 4 * EDGE)]
