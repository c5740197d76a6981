"""The pack as a newcomer meets it: ComfyUI's page in a browser, a template, Run, a picture.

Needs Playwright and a Chromium (``CHROMIUM``, else /usr/bin/chromium). ``pytest -m host tests/host/test_browser.py
--rewrite`` takes the screenshots of the documentation anew.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from comfy_server import PACK_FOLDER, Server
from pack import ROOT
from PIL import Image
from placeholders import write_text_to_image

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.host

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
PICTURES = ROOT / "docs" / "images" / "workflows"
VIEW = {"width": 1500, "height": 900}
SECONDS = 1000.0
READY = "!!(window.app && app.graph && window.LiteGraph && LiteGraph.registered_node_types['GenDR_Restore'])"


@pytest.fixture(scope="module")
def comfy(server: Server) -> Server:
    """The server with a real photo under the name that every ComfyUI has, and a checkpoint to make pictures with."""
    with Image.open(ROOT / "examples" / "courtyard.jpg") as photo:
        photo.save(server.base / "input" / "example.png")
    checkpoints = server.base / "models" / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    write_text_to_image(checkpoints / "sd_xl_base_1.0.safetensors")
    server.post("/settings/Comfy.Minimap.Visible", False)
    return server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}: name one by CHROMIUM")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(comfy: Server, browser: Any) -> Iterator[Any]:
    """Give the page, ready to work; its errors fail the test."""
    page = browser.new_page(viewport=VIEW)
    page.goto(comfy.url)
    page.wait_for_function(READY, timeout=120 * SECONDS)
    # From here on: while it starts, the page may trip over settings of its own.
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(error.stack))
    yield page
    page.close()
    assert errors == []


@pytest.fixture
def page(comfy: Server, browser: Any) -> Iterator[Any]:
    """The page."""
    with opened(comfy, browser) as page:
        yield page


def open_template(page: Any, path: Path) -> None:
    """Open a workflow of the pack from the list of templates."""
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK_FOLDER, exact=True).first.click()
    page.get_by_test_id(f"template-workflow-{path.stem}").click()
    nodes = len(json.loads(path.read_text(encoding="utf-8"))["nodes"])
    page.wait_for_function(f"app.graph.nodes.length === {nodes}", timeout=30 * SECONDS)


def make_small(page: Any) -> None:
    """Have text-to-image make a small picture in one step, which is all that a checkpoint of zeros deserves."""
    for kind, widget, value in (
        ("EmptyLatentImage", "width", 64),
        ("EmptyLatentImage", "height", 64),
        ("KSampler", "steps", 1),
    ):
        page.evaluate(
            "([kind, name, value]) => app.graph.nodes.filter(n => n.type === kind)"
            ".forEach(n => n.widgets.find(w => w.name === name).value = value)",
            [kind, widget, value],
        )


def run(page: Any, server: Server) -> list[str]:
    """Press Run, wait for the end and return the names of the pictures that the page shows."""
    before = set(server.get("/history"))
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("app.nodeOutputs && Object.keys(app.nodeOutputs).length > 0", timeout=120 * SECONDS)
    while len(set(server.get("/history")) - before) == 0:
        page.wait_for_timeout(0.1 * SECONDS)
    (prompt_id,) = set(server.get("/history")) - before
    status = server.get(f"/history/{prompt_id}")[prompt_id]["status"]
    assert status["status_str"] == "success", status
    return page.evaluate("Object.values(app.nodeOutputs).flatMap(output => (output.images ?? []).map(i => i.filename))")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_template_is_opened_and_run_in_two_actions(comfy: Server, page: Any, path: Path, rewrite: bool) -> None:
    open_template(page, path)
    missing = page.evaluate("app.graph.nodes.map(n => n.type).filter(t => !LiteGraph.registered_node_types[t])")
    missing = [kind for kind in missing if not kind.endswith("Note")]
    if missing == ["ImageCompare"]:
        pytest.skip("ImageCompare came with ComfyUI 0.9")
    assert missing == []
    make_small(page)
    assert run(page, comfy)
    page.keyboard.press("Escape")
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(2 * SECONDS)
    picture, shown = page.screenshot(type="jpeg", quality=80), PICTURES / f"{path.stem}.jpg"
    # The documentation shows some of them: those that are there.
    if rewrite and shown.exists():
        shown.write_bytes(picture)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_that_is_saved_and_loaded_again_asks_for_the_same(page: Any, path: Path) -> None:
    workflow = path.read_text(encoding="utf-8")
    asked = "async text => { await app.loadGraphData(JSON.parse(text)); return (await app.graphToPrompt()).output }"
    first = page.evaluate(asked, workflow)
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    assert page.evaluate(asked, saved) == first


@pytest.mark.parametrize("language", ["zh", "fr"])
def test_nodes_speak_the_language_of_the_page(comfy: Server, browser: Any, language: str) -> None:
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    comfy.post("/settings/Comfy.Locale", language)
    try:
        with opened(comfy, browser) as page:
            title = page.evaluate("LiteGraph.createNode('GenDR_Restore').title")
            assert title == texts["GenDR_Restore"]["display_name"]
    finally:
        comfy.post("/settings/Comfy.Locale", "en")


def test_the_help_page_is_shown_for_the_node(page: Any) -> None:
    # On a new profile the list of templates opens by itself, some time after all else.
    page.wait_for_timeout(5 * SECONDS)
    page.keyboard.press("Escape")
    page.evaluate("app.graph.clear(); app.graph.add(LiteGraph.createNode('GenDR_Restore'))")
    page.evaluate("app.canvas.selectNode(app.graph.nodes[0])")
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.get_by_test_id("info-button").click()
    page.get_by_text("Tiles are blended over their overlaps.").wait_for(timeout=30 * SECONDS)
