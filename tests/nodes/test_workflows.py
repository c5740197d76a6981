"""The workflow files and the blueprint, held against the schemas of our nodes and a list of the host's."""

from pathlib import Path
from typing import Any

import pytest
from comfy_workflows import BLUEPRINTS, NOTE, WORKFLOWS, Workflow, read_workflow, subgraph, widget_values
from pack import ROOT, Pack
from PIL import Image

CORE = {
    "CheckpointLoaderSimple",
    "CLIPTextEncode",
    "CreateVideo",
    "EmptyLatentImage",
    "GetImageSize",
    "ImageAddNoise",
    "ImageCompositeMasked",
    "ImageScale",
    "ImageScaleBy",
    "ImageUpscaleWithModel",
    "KSampler",
    "LoadImage",
    "MaskComposite",
    "MaskPreview",
    "PreviewAny",
    "PreviewImage",
    "RepeatImageBatch",
    "SaveImage",
    "SaveVideo",
    "SolidMask",
    "VAEDecode",
}
"""The host's nodes that every version from 0.3.64 on has, and that none has declared deprecated."""
COMPARE = "ImageCompare"
"""From 0.9 on; one workflow is about it, and another one does without."""
IDENTITY = {"cnr_id": "gendr", "ver": "0.1.0"}
"""By which the host offers to install the pack."""
ROUTES = {"https://huggingface.co/": "/resolve/main/"}
"""Where the host downloads from, and what such addresses contain."""
THUMBNAIL_EDGE, THUMBNAIL_BYTES = 512, 80_000
TITLE_HEIGHT = 30

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
every_file = pytest.mark.parametrize("path", WORKFLOWS + BLUEPRINTS, ids=lambda path: path.stem)


def content(path: Path) -> Workflow:
    """Return the nodes and links of a file: of a blueprint, what is inside."""
    workflow = read_workflow(path)
    return subgraph(workflow) if path in BLUEPRINTS else workflow


def of_ours(path: Path) -> list[Workflow]:
    return [entry for entry in content(path)["nodes"] if entry["type"].startswith("GenDR_")]


def is_widget(part: Any) -> bool:
    return hasattr(part, "default")


def test_the_files_are_those_that_are_told_of() -> None:
    assert len(WORKFLOWS) == 8
    assert [path.stem for path in BLUEPRINTS] == ["Restore with GenDR"]


@every_file
def test_our_nodes_are_used_as_their_schemas_say(pack: Pack, path: Path) -> None:
    assert of_ours(path)
    for entry in of_ours(path):
        schema = pack.nodes[entry["type"]].define_schema()
        sockets = [part.id for part in schema.inputs if not is_widget(part)]
        widgets = {part.id: part for part in schema.inputs if is_widget(part)}
        # The frontend lists sockets first.
        assert [part["name"] for part in entry["inputs"]] == [*sockets, *widgets]
        assert [part["name"] for part in entry["outputs"]] == [output.display_name for output in schema.outputs]
        assert entry["properties"] == {**IDENTITY, "Node name for S&R": entry["type"]}
        values = widget_values(entry)
        assert list(values) == list(widgets)
        for name, value in values.items():
            if hasattr(widgets[name], "min"):
                assert widgets[name].min <= value <= widgets[name].max
            else:
                assert value in widgets[name].options


@every_file
def test_links_join_slots_of_one_type_that_exist(path: Path) -> None:
    workflow = content(path)
    nodes = {entry["id"]: entry for entry in workflow["nodes"]}
    for link_id, source, output, target, slot, kind in workflow["links"]:
        start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert link_id in start["links"]
        assert end["link"] == link_id
        assert start["type"] == end["type"] == kind or end["type"] == kind == "*"


@every_workflow
def test_every_link_that_a_node_names_is_listed(path: Path) -> None:
    workflow = content(path)
    listed = {link[0] for link in workflow["links"]}
    parts = [part for entry in workflow["nodes"] for part in entry["inputs"]]
    assert {part["link"] for part in parts} - {None} == listed


@every_workflow
def test_the_hosts_nodes_are_those_of_every_version(path: Path) -> None:
    kinds = {entry["type"] for entry in content(path)["nodes"] if not entry["type"].startswith("GenDR_")}
    expected = CORE | {NOTE}
    if path.stem == "Compare before and after with GenDR":
        expected = expected | {COMPARE}
    assert kinds <= expected


@every_file
def test_the_weights_come_with_the_pack_or_with_an_address(pack: Pack, path: Path) -> None:
    for entry in content(path)["nodes"]:
        values = widget_values(entry).values() if entry["type"] != NOTE else ()
        for name in (value for value in values if str(value).endswith(".safetensors")):
            if entry["type"].startswith("GenDR_"):
                assert name in pack.host.bundled_weights()
                continue
            (model,) = entry["properties"]["models"]
            assert model["name"] == name
            assert any(model["url"].startswith(site) and part in model["url"] for site, part in ROUTES.items())
            assert model["url"].endswith(f"/{name}")
            assert model["directory"] == "checkpoints"


@every_workflow
def test_the_picture_is_the_one_that_every_host_has(path: Path) -> None:
    for entry in content(path)["nodes"]:
        if entry["type"] == "LoadImage":
            assert widget_values(entry)["image"] == "example.png"


@every_workflow
def test_a_note_tells_what_to_do_in_few_words(path: Path) -> None:
    (note,) = (entry for entry in content(path)["nodes"] if entry["type"] == NOTE)
    (text,) = note["widgets_values"]
    assert 100 < len(text) < 500
    # Newer frontends show code in a colour that nobody can read on a note.
    assert "`" not in text


@every_workflow
def test_nothing_lies_on_anything_else(path: Path) -> None:
    boxes = {
        entry["id"]: (x, y - TITLE_HEIGHT, x + width, y + height)
        for entry in content(path)["nodes"]
        for (x, y), (width, height) in [(entry["pos"], entry["size"])]
    }
    for one, (left, top, right, bottom) in boxes.items():
        for other, box in boxes.items():
            if one < other:
                assert box[2] <= left or right <= box[0] or box[3] <= top or bottom <= box[1], (one, other)


@every_workflow
def test_every_workflow_has_a_thumbnail(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size <= THUMBNAIL_BYTES
    with Image.open(thumbnail) as image:
        assert image.format == "JPEG"
        assert image.size == (THUMBNAIL_EDGE, THUMBNAIL_EDGE)


def test_there_is_no_other_file_beside_the_workflows() -> None:
    # Whatever ends in .json there becomes a template.
    names = {path.name for path in (ROOT / "example_workflows").iterdir()}
    assert names == {path.with_suffix(suffix).name for path in WORKFLOWS for suffix in (".json", ".jpg")}


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_the_blueprint_is_one_node_with_its_widgets_outside(path: Path) -> None:
    blueprint = read_workflow(path)
    (entry,), inside = blueprint["nodes"], subgraph(blueprint)
    assert entry["type"] == inside["id"]
    assert entry["title"] == inside["name"] == path.stem
    assert [part["name"] for part in entry["inputs"]] == [part["name"] for part in inside["inputs"]]
    assert widget_values(entry).keys() == {"unet", "size", "factor", "edge", "detail"}
    inner = {name: value for node in inside["nodes"] for name, value in widget_values(node).items()}
    assert widget_values(entry).items() <= inner.items()
    assert inside["category"] == "Image Tools/Upscale"
    assert blueprint["extra"]["BlueprintDescription"] == inside["description"]
    assert "upscale" in blueprint["extra"]["BlueprintSearchAliases"]


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_the_blueprints_links_to_the_outside_are_on_both_sides(path: Path) -> None:
    (inside,) = read_workflow(path)["definitions"]["subgraphs"]
    nodes, (begin, end) = {node["id"]: node for node in inside["nodes"]}, (-10, -20)
    for link in inside["links"]:
        if link["origin_id"] == begin:
            assert link["id"] in inside["inputs"][link["origin_slot"]]["linkIds"]
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
        if link["target_id"] == end:
            assert link["id"] in inside["outputs"][link["target_slot"]]["linkIds"]
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
