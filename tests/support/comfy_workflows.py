"""The pack's workflow files, and the prompts that the frontend makes of them.

Role: read by the tests of the files themselves (tests/nodes) and by those that run them (tests/host).
"""

import json
from pathlib import Path
from typing import Any

from pack import ROOT

WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
NOTE = "MarkdownNote"
"""A node of the frontend alone: the server never sees it."""
OUTSIDE = (-10, -20)
"""What a subgraph's links to its own inputs and outputs name instead of a node."""
CONTROL = ("fixed", "increment", "decrement", "randomize")
"""Values of the widget that the frontend adds behind a seed."""

Workflow = dict[str, Any]
Prompt = dict[str, dict[str, Any]]


def read_workflow(path: Path) -> Workflow:
    """Return the file's content."""
    return json.loads(path.read_text(encoding="utf-8"))


def subgraph(blueprint: Workflow) -> Workflow:
    """Return what is inside of a blueprint as a workflow: its links as rows, those from and to the outside left out."""
    (inside,) = blueprint["definitions"]["subgraphs"]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    rows = [[link[name] for name in names] for link in inside["links"]]
    joined = [row for row in rows if row[1] not in OUTSIDE and row[3] not in OUTSIDE]
    return {**inside, "links": joined}


def widget_values(entry: Workflow) -> dict[str, Any]:
    """Return a node's widgets by name, as far as the file has values for them.

    The file lists values by place: a seed is followed by the value of a widget that is no input.
    """
    values = list(entry.get("widgets_values") or [])
    named: dict[str, Any] = {}
    for name in [part["name"] for part in entry["inputs"] if "widget" in part]:
        if values:
            named[name] = values.pop(0)
        if values and values[0] in CONTROL and "seed" in name:
            values.pop(0)
    assert entry["type"] == NOTE or not values, f"{entry['type']}: more values than widgets: {values}"
    return named


def as_prompt(described: Workflow, workflow: Workflow) -> Prompt:
    """Return what the frontend would queue: links by source, widgets by the names that the host knows.

    Args:
        described: the host's /object_info.
        workflow: nodes and links as in a file.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Prompt = {}
    for entry in workflow["nodes"]:
        if entry["type"] == NOTE:
            continue
        info = described[entry["type"]]["input"]
        known = {**info.get("required", {}), **info.get("optional", {})}
        inputs = {name: value for name, value in widget_values(entry).items() if name in known}
        inputs |= {part["name"]: sources[part["link"]] for part in entry["inputs"] if part["link"] in sources}
        prompt[str(entry["id"])] = {"class_type": entry["type"], "inputs": inputs}
    return prompt


def change(prompt: Prompt, class_type: str, **inputs: Any) -> None:
    """Give every node of a class these inputs."""
    for entry in prompt.values():
        if entry["class_type"] == class_type:
            entry["inputs"] |= inputs


def node_ids(prompt: Prompt, class_type: str) -> list[str]:
    """Return the ids of the nodes of a class."""
    return [node_id for node_id, entry in prompt.items() if entry["class_type"] == class_type]
