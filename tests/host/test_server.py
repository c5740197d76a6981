import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_server import Graph, Server, node
from pack import ROOT
from PIL import Image
from weights import LATENT, LATENT_4PX, PIXEL, TINY_VAE, VAE_4PX, WRONG_UNETS, write_small_cells

from gendr_core.config import MemoryOptions, RestoreOptions
from gendr_core.finish import Guides
from gendr_core.image_io import read_image
from gendr_core.model import load_unet, load_vae
from gendr_core.pipeline import restore

pytestmark = pytest.mark.host

MINI = "gendr-mini-pixel.safetensors"
VAES = {LATENT: TINY_VAE, LATENT_4PX: VAE_4PX}
SIZE: dict[str, Any] = {"size": "by factor", "factor": 2.0, "edge": 64}


def picture(server: Server, width: int, height: int) -> Path:
    path = server.base / "input" / f"{width}x{height}.png"
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def restoring(image: str, unet: str, name: str, **changes: Any) -> Graph:
    widgets = {**SIZE, "color": "wavelet", "detail": 1.0, "feather": 8, "guidance": 0.0, **changes}
    graph = {
        "image": node("LoadImage", image=image),
        "unet": node("GenDR_LoadUNet", unet=unet),
        "restore": node("GenDR_Restore", image=["image", 0], model=["unet", 0], **widgets),
        "save": node("ProbeSave", image=["restore", 0], name=name),
    }
    if unet in VAES:
        graph["vae"] = node("GenDR_LoadVAE16", vae_file=VAES[unet])
        graph["restore"]["inputs"]["vae"] = ["vae", 0]
    return graph


def test_every_node_is_listed_with_its_help_page(server: Server) -> None:
    ours = {name: info for name, info in server.get("/object_info").items() if name.startswith("GenDR_")}
    assert len(ours) == 12
    assert all(info["python_module"] == "custom_nodes.ComfyUI-GenDR" for info in ours.values())
    assert PIXEL in ours["GenDR_LoadUNet"]["input"]["required"]["unet"][1]["options"]


@pytest.mark.parametrize("unet", [PIXEL, LATENT])
@pytest.mark.parametrize(("width", "height", "factor"), [(1, 1, 4.0), (13, 7, 3.0), (1021, 513, 0.4)])
def test_the_server_gives_the_same_floats_as_python(
    server: Server, unet: str, width: int, height: int, factor: float
) -> None:
    path, models = picture(server, width, height), server.base / "models"
    server.run(restoring(path.name, unet, "restored", factor=factor))
    vae = load_vae(models / "vae" / TINY_VAE) if unet == LATENT else None
    model = load_unet(models / "diffusion_models" / unet)
    expected = restore(read_image(path).image, model, vae, RestoreOptions(scale=factor)).numpy()
    assert expected.shape == (1, round(height * factor), round(width * factor), 3)
    np.testing.assert_array_equal(server.floats("restored"), expected)


def test_core_saves_what_was_restored(server: Server) -> None:
    graph = restoring(picture(server, 16, 16).name, PIXEL, "restored")
    graph["png"] = node("SaveImage", images=["restore", 0], filename_prefix="restored")
    saved = server.run(graph)["png"]["images"][0]["filename"]
    with Image.open(server.base / "output" / saved) as image:
        # Core's SaveImage cuts off what is left of 255 * x.
        np.testing.assert_array_equal(np.asarray(image), (server.floats("restored")[0] * 255).astype(np.uint8))


@pytest.mark.parametrize("unet", VAES)
def test_the_parts_and_cores_vae_nodes_join(server: Server, unet: str) -> None:
    write_small_cells(server.base / "models")
    image = picture(server, 16, 24).name
    graph = restoring(image, unet, "whole", color="none")
    model, vae = ["unet", 0], ["vae", 0]
    graph["encode"] = node("GenDR_Encode", image=["image", 0], model=model, vae=vae, **SIZE)
    graph["step"] = node("GenDR_OneStep", latent=["encode", 0], model=model, guidance=0.0)
    graph["decode"] = node("GenDR_Decode", latent=["step", 0], model=model, vae=vae)
    graph["match"] = node("GenDR_MatchColor", image=["decode", 0], reference=["encode", 1], color="wavelet")
    graph["parts"] = node("ProbeSave", image=["decode", 0], name="parts")
    graph["matched"] = node("ProbeSave", image=["match", 0], name="matched")
    graph["core_encode"] = node("VAEEncode", pixels=["image", 0], vae=vae)
    graph["core_step"] = node("GenDR_OneStep", latent=["core_encode", 0], model=model, guidance=0.0)
    graph["core_decode"] = node("VAEDecode", samples=["core_step", 0], vae=vae)
    graph["core"] = node("ProbeSave", image=["core_decode", 0], name="core")
    graph["restore"]["inputs"]["color"] = "none"
    server.run(graph)
    np.testing.assert_array_equal(server.floats("parts"), server.floats("whole"))
    assert server.floats("matched").shape == (1, 48, 32, 3)
    assert server.floats("core").shape == (1, 24, 16, 3)


def test_a_mask_detail_and_colours_of_another_image_are_those_of_python(server: Server) -> None:
    path, colors = picture(server, 40, 24), picture(server, 17, 19)
    painted = np.zeros((24, 40), dtype=np.uint8)
    painted[:, :20] = 255
    # In colour: hosts from 0.33 on read a grey file through a video library, which makes 0.996 of white.
    Image.fromarray(painted).convert("RGB").save(server.base / "input" / "painted.png")
    graph = restoring(path.name, PIXEL, "masked", detail=0.5, feather=4)
    graph["colors"] = node("LoadImage", image=colors.name)
    graph["mask"] = node("LoadImageMask", image="painted.png", channel="red")
    graph["restore"]["inputs"] |= {"mask": ["mask", 0], "color_reference": ["colors", 0]}
    server.run(graph)
    guides = Guides(mask=read_image(server.base / "input" / "painted.png").image[..., 0])
    guides = replace(guides, color_reference=read_image(colors).image)
    options = RestoreOptions(scale=2.0, detail=0.5, feather_px=4)
    model = load_unet(server.base / "models" / "diffusion_models" / PIXEL)
    expected = restore(read_image(path).image, model, options=options, guides=guides).numpy()
    np.testing.assert_array_equal(server.floats("masked"), expected)


def test_a_mask_for_another_number_of_images_is_a_readable_node_error(server: Server) -> None:
    graph = restoring(picture(server, 8, 8).name, PIXEL, "never")
    graph["mask"] = node("SolidMask", value=1.0, width=8, height=8)
    graph["masks"] = node("MaskToImage", mask=["mask", 0])
    graph["batch"] = node("RepeatImageBatch", image=["masks", 0], amount=3)
    graph["three"] = node("ImageToMask", image=["batch", 0], channel="red")
    graph["restore"]["inputs"]["mask"] = ["three", 0]
    with pytest.raises(RuntimeError, match=r"GenDR_Restore: .*expected 1 mask, or one for each of 1 images, got 3"):
        server.run(graph)


@pytest.mark.parametrize(("name", "words"), WRONG_UNETS.items())
def test_a_wrong_file_is_a_readable_node_error(server: Server, name: str, words: str) -> None:
    with pytest.raises(RuntimeError, match=rf"GenDR_LoadUNet: {name}\.safetensors: .*{words}"):
        server.run(restoring(picture(server, 8, 8).name, f"{name}.safetensors", "never"))


def test_a_unet_in_the_vae_folder_is_named(server: Server) -> None:
    graph = restoring(picture(server, 8, 8).name, LATENT, "never")
    graph["vae"]["inputs"]["vae_file"] = "unet.safetensors"
    with pytest.raises(RuntimeError, match=r"GenDR_LoadVAE16: unet\.safetensors: expected kind 'vae16', got 'unet'"):
        server.run(graph)


def test_a_missing_vae_is_named(server: Server) -> None:
    graph = restoring(picture(server, 8, 8).name, LATENT, "never")
    del graph["restore"]["inputs"]["vae"]
    with pytest.raises(RuntimeError, match=r"GenDR_Restore: .*expected a VAE"):
        server.run(graph)


def test_the_plan_is_plausible_and_told_without_loading_anything(server: Server) -> None:
    server.post("/free", {"unload_models": True, "free_memory": True})
    graph = restoring(picture(server, 320, 200).name, MINI, "never")
    graph["plan"] = graph.pop("restore")
    graph["plan"]["class_type"] = "GenDR_Plan"
    graph["plan"]["inputs"] |= {"memory": "tiles", "tile": 256}
    del graph["save"]
    for output, name in enumerate(("text", "peak", "work", "mode")):
        graph[name] = node("PreviewAny", source=["plan", output])
    shown = {name: output["text"][0] for name, output in server.run(graph).items()}
    assert shown["plan"] == shown["text"]
    assert shown["text"].startswith("320x200 -> 640x400 on cpu: tiles of 256 px")
    weight_bytes = (ROOT / "gendr_core" / "weights" / MINI).stat().st_size
    frame_bytes = 3 * 4 * 640 * 448
    assert weight_bytes + 2 * frame_bytes < float(shown["peak"]) * 2**30 < weight_bytes + 30 * frame_bytes
    assert 0.0 < float(shown["work"]) < 1.0
    assert shown["mode"] == "tiles"
    assert server.get("/probe")["loaded"] == []


def test_a_budget_that_nothing_fits_in_is_a_readable_node_error(server: Server) -> None:
    with pytest.raises(RuntimeError, match=r"GenDR_Restore: .*expected room for at least .* choose a smaller output"):
        server.run(restoring(picture(server, 8, 8).name, PIXEL, "never", budget_gib=0.0001))


def test_cancel_stops_within_a_stage_and_the_next_run_is_as_a_fresh_one(server: Server) -> None:
    path = picture(server, 512, 512)
    changes: dict[str, Any] = {"factor": 4.0, "memory": "tiles", "tile": 256, "budget_gib": 0.3}
    graph = restoring(path.name, MINI, "cancelled", **changes)
    prompt_id = server.queue(graph)
    while server.get("/probe/progress").get("restore", 0.0) < 0.3:
        time.sleep(0.05)
    server.post("/interrupt", {})
    events = [event for event, _ in server.finished(prompt_id)["status"]["messages"]]
    assert events[-1] == "execution_interrupted"
    assert server.get("/probe/progress")["restore"] < 1.0
    assert not (server.base / "output" / "cancelled.npy").exists()
    server.run(restoring(path.name, MINI, "again", **changes))
    memory = MemoryOptions(mode="tiles", tile_px=256, budget_bytes=int(0.3 * 2**30))
    expected = restore(read_image(path).image, load_unet(MINI), None, RestoreOptions(scale=4.0, memory=memory))
    np.testing.assert_array_equal(server.floats("again"), expected.numpy())


def test_free_and_the_next_graph_let_models_go(server: Server) -> None:
    server.run(restoring(picture(server, 9, 9).name, LATENT, "restored"))
    assert sorted(server.get("/probe")["loaded"]) == ["UNet", "VAE"]
    server.run(
        {"image": node("LoadImage", image="9x9.png"), "save": node("ProbeSave", image=["image", 0], name="plain")}
    )
    assert server.get("/probe") == {"alive": [], "loaded": []}
    server.run(restoring("9x9.png", PIXEL, "restored", factor=1.5))
    assert server.get("/probe")["alive"] == ["UNet"]
    deadline = time.monotonic() + 10
    while server.get("/probe")["alive"] and time.monotonic() < deadline:
        # Again each time: the host misses what comes while it collects garbage.
        server.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.1)
    assert server.get("/probe") == {"alive": [], "loaded": []}
