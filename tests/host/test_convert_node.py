"""Convert to GenDR in a running host: pickled files of relatives become models that restore."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import relative_files
import torch
from comfy_server import Graph, Server, node
from safetensors.torch import save_file

pytestmark = pytest.mark.host

WIDTH = relative_files.UNET_ARCH.cross_attention_dim
RESTORE = {
    "size": "by factor",
    "factor": 4.0,
    "edge": 2048,
    "color": "none",
    "detail": 1.0,
    "feather": 0,
    "guidance": 0.0,
}


class Runs:
    """What a file to do harm holds: unpickled as usual, it runs a command that leaves ``target``."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"echo harm > {self.target}",)


@pytest.fixture(scope="module")
def models(server: Server) -> Path:
    """The models folder of a running server, with a base and what two relatives publish."""
    models = server.base / "models"
    for folder in ("gendr", "checkpoints", "loras"):
        (models / folder).mkdir(exist_ok=True)
    save_file(relative_files.base_unet(), models / "diffusion_models" / "base.safetensors")
    save_file(relative_files.base_vae(), models / "checkpoints" / "base-vae.safetensors")
    relative_files.write_published(models / "gendr" / "osediff.pkl", "osediff")
    relative_files.write_published(models / "loras" / "pisa_sr.pkl", "pisa-sr")
    return models


def convert(file: str, **inputs: Any) -> dict[str, Any]:
    given = {
        "file": file,
        "relative": "by file name",
        "unet": "base.safetensors",
        "vae_file": "base-vae.safetensors",
        "name": "",
        "overwrite": False,
        "blur": 0.5,
        "noise": 0.5,
        "dtype": "fp16",
    }
    return node("GenDR_Convert", **{**given, **inputs})


def restoring(name: str, model: tuple[str, int], vae: tuple[str, int]) -> Graph:
    return {
        "image": node("ProbePicture", width=24, height=16, count=1, seed=3),
        "restore": node("GenDR_Restore", image=["image", 0], model=list(model), vae=list(vae), **RESTORE),
        "save": node("ProbeSave", image=["restore", 0], name=name),
    }


def prompt(seed: int) -> Graph:
    return {"prompt": node("ProbePrompt", width=WIDTH, seed=seed)}


def test_the_files_are_listed_and_their_folder_is_the_hosts(server: Server, models: Path) -> None:
    del models
    inputs = server.get("/object_info/GenDR_Convert")["GenDR_Convert"]["input"]["required"]
    assert inputs["file"][1]["options"] == ["osediff.pkl", "pisa_sr.pkl"]
    assert "base.safetensors" in inputs["unet"][1]["options"]
    assert "base-vae.safetensors" in inputs["vae_file"][1]["options"]
    assert "gendr" in server.get("/models")


def test_a_pickled_file_is_converted_and_restores_as_the_files_it_leaves(server: Server, models: Path) -> None:
    server.run(
        {
            **prompt(1),
            "convert": convert("osediff.pkl", positive=["prompt", 0]),
            **restoring("converted", ("convert", 0), ("convert", 1)),
        }
    )
    assert (models / "diffusion_models" / "osediff-unet.safetensors").is_file()
    assert (models / "vae" / "osediff-vae.safetensors").is_file()
    server.run(
        {
            "unet": node("GenDR_LoadUNet", unet="osediff-unet.safetensors"),
            "vae": node("GenDR_LoadVAE16", vae_file="osediff-vae.safetensors"),
            **restoring("loaded", ("unet", 0), ("vae", 0)),
        }
    )
    converted = server.floats("converted")
    assert converted.shape == (1, 64, 96, 3)
    assert converted.std() > 0.01
    assert np.array_equal(converted, server.floats("loaded"))


def test_queued_again_it_loads_what_is_there_and_tells_other_inputs_apart(server: Server, models: Path) -> None:
    path = models / "diffusion_models" / "pisa_sr-unet.safetensors"
    first = server.run({**prompt(1), "convert": convert("pisa_sr.pkl", positive=["prompt", 0])})
    names = "pisa_sr-unet.safetensors\npisa_sr-pixel-unet.safetensors\npisa_sr-vae.safetensors"
    assert first["convert"]["text"] == [names]
    before = path.stat().st_mtime_ns
    assert server.run({"convert": convert("pisa_sr.pkl")})["convert"]["text"] == [names]
    assert path.stat().st_mtime_ns == before
    with pytest.raises(RuntimeError, match=r"GenDR_Convert: pisa_sr-unet\.safetensors is there .* another prompt"):
        server.run({**prompt(2), "convert": convert("pisa_sr.pkl", positive=["prompt", 0])})
    server.run({**prompt(2), "convert": convert("pisa_sr.pkl", positive=["prompt", 0], overwrite=True)})
    assert path.stat().st_mtime_ns > before


def test_a_file_that_would_run_code_is_refused_on_the_node(server: Server, models: Path) -> None:
    target = server.base / "harmed"
    file = models / "gendr" / "s3diff_hostile.pkl"
    torch.save({"state_dict_unet": Runs(target)}, file)
    server.get("/object_info/GenDR_Convert")
    graph = {**prompt(1), "convert": convert(file.name, positive=["prompt", 0], relative="osediff")}
    with pytest.raises(RuntimeError, match=r"GenDR_Convert: s3diff_hostile\.pkl: .*names .*could run code"):
        server.run(graph)
    assert not target.exists()
    leftovers = [path for path in models.rglob(".*") if "gendr-" in path.name or path.suffix == ".tmp"]
    assert leftovers == []
    file.unlink()


def test_the_child_that_unpickles_does_not_start_a_second_host(server: Server, models: Path) -> None:
    relative_files.write_published(models / "gendr" / "HYPIR_sd2.pth", "hypir-sd2")
    server.run({**prompt(1), "convert": convert("HYPIR_sd2.pth", positive=["prompt", 0])})
    # Said by every process that imports the host.
    assert server.log.read_text(encoding="utf-8").count("Total VRAM") == 1
