import json
from pathlib import Path
from typing import Any

import pytest
from pack import ROOT, Pack

FOLDER = ROOT / "example_workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))


def widgets_of(schema: Any) -> list[Any]:
    return [part for part in schema.inputs if hasattr(part, "default")]


def test_there_is_a_workflow() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_our_nodes_are_used_as_their_schemas_say(pack: Pack, path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    ours = [node for node in workflow["nodes"] if node["type"].startswith("GenDR_")]
    assert ours
    for node in ours:
        schema = pack.nodes[node["type"]].define_schema()
        widgets = widgets_of(schema)
        values = node["widgets_values"]
        # The frontend gives widgets that came after the workflow their defaults.
        assert all(widget.optional for widget in widgets[len(values) :])
        for widget, value in zip(widgets[: len(values)], values, strict=True):
            if hasattr(widget, "min"):
                assert widget.min <= value <= widget.max
            elif not node["type"].startswith("GenDR_Load"):
                assert value in widget.options
        sockets = [part.id for part in schema.inputs if part not in widgets]
        assert [entry["name"] for entry in node["inputs"]] == sockets
        assert [entry["name"] for entry in node["outputs"]] == [output.display_name for output in schema.outputs]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_links_join_slots_that_exist(path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link_id, source, output, target, slot, kind in workflow["links"]:
        assert link_id in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link_id
        assert nodes[source]["outputs"][output]["type"] == nodes[target]["inputs"][slot]["type"] == kind


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_weights_come_with_the_pack_and_the_picture_with_the_host(pack: Pack, path: Path) -> None:
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        if node["type"].startswith("GenDR_Load"):
            assert node["widgets_values"][0] in pack.host.bundled_weights()
        if node["type"] == "LoadImage":
            assert node["widgets_values"][0] == "example.png"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_has_a_thumbnail(path: Path) -> None:
    assert path.with_suffix(".jpg").read_bytes().startswith(b"\xff\xd8\xff")
