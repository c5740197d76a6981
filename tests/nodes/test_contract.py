"""What saved workflows rely on: a change of ids, inputs, defaults or outputs fails here until it is recorded.

Recorded anew by ``pytest tests/nodes/test_contract.py --rewrite``; the difference then shows in review.
"""

import json
from pathlib import Path
from typing import Any

from pack import Pack

RECORDED = Path(__file__).with_name("schemas.json")
LEFT_OUT = ("id", "tooltip", "io_type")
"""Of a line: what stands at its beginning, and texts, which may change at any time."""


FILES = ("unet", "vae_file", "base")
"""Whose options are the files of whoever runs it."""


def line(part: Any) -> str:
    """Return an input or output in one line: its id, its type, and what else is set."""
    told = {name: value for name, value in vars(part).items() if name not in LEFT_OUT}
    if part.id in FILES:
        told["options"] = "files"
    words = [f"{name}={value!r}" for name, value in told.items() if value is not None and value is not False]
    return ", ".join([f"{part.id}: {part.io_type}", *(word for word in words if not word.endswith("={}"))])


def contract(node: Any) -> dict[str, Any]:
    """Return what workflows rely on of a node."""
    schema = node.define_schema()
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "is_output_node": schema.is_output_node,
        "inputs": [line(part) for part in schema.inputs],
        "outputs": [line(part) for part in schema.outputs],
    }


def test_the_schemas_are_those_recorded(pack: Pack, rewrite: bool) -> None:
    now = {node_id: contract(node) for node_id, node in pack.nodes.items()}
    if rewrite:
        RECORDED.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    assert now == json.loads(RECORDED.read_text(encoding="utf-8"))
