"""The pack loaded under an alias, on the stub of ComfyUI, with tiny weights in the models folder."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy_stub
import pytest
import relative_files
from pack import Pack, forget, load_pack
from safetensors.torch import save_file
from weights import write_tiny_weights

ALIAS = "/custom_nodes/pack_x_under_test"


@pytest.fixture(scope="module")
def loaded_pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    """The pack; gone again afterwards, since a real ComfyUI may follow in the same session."""
    models = tmp_path_factory.mktemp("models")
    write_tiny_weights(models)
    record = comfy_stub.install(models)
    module = load_pack(ALIAS)
    listed = asyncio.run(module.comfy_entrypoint().get_node_list())
    nodes = {node.define_schema().node_id: node for node in listed}
    files = {name: sys.modules[f"{ALIAS}.nodes.{name}"] for name in ("host", "sockets", "widgets")}
    yield Pack(nodes=nodes, record=record, **files)
    forget(ALIAS, *comfy_stub.NAMES)


@pytest.fixture
def pack(loaded_pack: Pack) -> Pack:
    """The pack with nothing recorded yet."""
    loaded_pack.record.clear()
    return loaded_pack


@pytest.fixture
def models(loaded_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder of this test alone, with the base and OSEDiff's file as safetensors."""
    host: Any = sys.modules["folder_paths"]
    for folder in ("gendr", "loras", "diffusion_models", "vae", "checkpoints"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(host, "get_filename_list", lambda key: sorted(path.name for path in (tmp_path / key).glob("*")))
    monkeypatch.setattr(host, "get_folder_paths", lambda key: [str(tmp_path / "unet"), str(tmp_path / key)])
    monkeypatch.setattr(
        host,
        "get_full_path",
        lambda key, name: str(tmp_path / key / name) if (tmp_path / key / name).is_file() else None,
    )
    # The stub has no VAE class for the host's own side of a VAE; tests/host loads it in full.
    monkeypatch.setattr(
        sys.modules[loaded_pack.nodes["GenDR_Convert"].__module__],
        "load_hosted_vae",
        lambda name: loaded_pack.host.load_vae(loaded_pack.host.weight_path("vae", name)),
    )
    save_file(relative_files.base_unet(), tmp_path / "diffusion_models" / "base.safetensors")
    save_file(relative_files.base_vae(), tmp_path / "vae" / "base-vae.safetensors")
    relative_files.write_published(tmp_path / "gendr" / "osediff.safetensors", "osediff")
    return tmp_path
