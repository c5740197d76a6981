"""The pack loaded under an alias, on the stub of ComfyUI, with tiny weights in the models folder."""

import asyncio
import sys
from collections.abc import Iterator

import comfy_stub
import pytest
from pack import Pack, forget, load_pack
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
