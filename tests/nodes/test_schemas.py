import dataclasses
import inspect

import comfy_stub
import pytest
from pack import ROOT, Pack

DOCS = ROOT / "web" / "docs"


def test_ids_are_prefixed_and_the_category_is_one(pack: Pack) -> None:
    schemas = [node.define_schema() for node in pack.nodes.values()]
    assert all(schema.node_id.startswith("GenDR_") for schema in schemas)
    assert {schema.category for schema in schemas} == {"image/upscaling/GenDR"}


def test_ids_of_inputs_and_outputs_never_clash(pack: Pack) -> None:
    for node in pack.nodes.values():
        schema = node.define_schema()
        ids = [part.id for part in (*schema.inputs, *schema.outputs) if part.id is not None]
        assert len(ids) == len(set(ids))


def test_everything_has_a_tooltip_and_every_node_a_description(pack: Pack) -> None:
    for node in pack.nodes.values():
        schema = node.define_schema()
        assert schema.description.endswith(".")
        assert all(part.tooltip for part in (*schema.inputs, *schema.outputs)), schema.node_id
        assert all(output.display_name for output in schema.outputs), schema.node_id


def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs(pack: Pack) -> None:
    assert {page.stem for page in DOCS.glob("*.md")} == set(pack.nodes)
    for node_id, node in pack.nodes.items():
        schema, page = node.define_schema(), (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
        names = [part.display_name or part.id for part in (*schema.inputs, *schema.outputs)]
        assert all(f"`{name}`" in page for name in names), node_id


def test_execute_takes_exactly_the_inputs(pack: Pack) -> None:
    memory = set(pack.widgets.MemoryWidgets.__annotations__)
    for node in pack.nodes.values():
        code = node.execute.__func__.__code__
        inputs = {part.id for part in node.define_schema().inputs}
        assert set(code.co_varnames[1 : code.co_argcount]) == inputs - memory
        assert bool(code.co_flags & inspect.CO_VARKEYWORDS) == bool(inputs & memory)


def test_memory_widgets_are_optional_and_last_and_folded_away_but_for_the_mode(pack: Pack) -> None:
    memory = ["memory", "attention", "budget_gib", "tile", "overlap", "tile_batch"]
    for name, later in (
        ("Restore", memory),
        ("Plan", memory),
        ("OneStep", memory),
        ("Encode", ["budget_gib"]),
        ("Decode", ["budget_gib"]),
    ):
        widgets = pack.nodes[f"GenDR_{name}"].define_schema().inputs[-len(later) :]
        assert [widget.id for widget in widgets] == later
        assert all(widget.optional for widget in widgets)
        advanced = [widget.id for widget in widgets if widget.extra_dict == {"advanced": True}]
        assert advanced == [widget for widget in later if widget != "memory"]


def test_loaders_list_the_hosts_files_and_the_bundled_ones_once(pack: Pack) -> None:
    options = pack.nodes["GenDR_LoadUNet"].define_schema().inputs[0].options
    assert options[:2] == ["tiny-latent.safetensors", "tiny-pixel.safetensors"]
    bundled = pack.host.bundled_weights()
    assert set(options[2:]) == {name for name in bundled if "vae" not in name}
    assert pack.nodes["GenDR_LoadVAE16"].define_schema().inputs[0].options[0] == "tiny-vae.safetensors"


def test_what_few_need_is_folded_away_where_the_host_can(pack: Pack) -> None:
    widgets = {part.id: part for part in pack.nodes["GenDR_Restore"].define_schema().inputs}
    assert widgets["guidance"].extra_dict == widgets["feather"].extra_dict == {"advanced": True}


def test_a_newer_host_gets_the_fields_that_it_knows(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = dataclasses.make_dataclass("Newer", [("search_aliases", list, ())], bases=(comfy_stub.Schema,))
    monkeypatch.setattr(pack.sockets.io, "Schema", newer)
    assert "super resolution" in pack.nodes["GenDR_Restore"].define_schema().search_aliases
    assert all(node.define_schema().search_aliases for node in pack.nodes.values())


@pytest.mark.parametrize(
    ("size", "expected"),
    [("by factor", (2.5, None, None)), ("longest edge", (None, 640, None)), ("shortest edge", (None, None, 640))],
)
def test_size_widgets_become_one_rule(
    pack: Pack, size: str, expected: tuple[float | None, int | None, int | None]
) -> None:
    options = pack.widgets.restore_options(size, 2.5, 640)
    assert (options.scale, options.longest_edge, options.shortest_edge) == expected
    assert options.guidance is None
    assert pack.widgets.restore_options(size, 2.5, 640, guidance=1.5).guidance == 1.5


def test_memory_widgets_that_are_0_or_missing_choose_nothing(pack: Pack) -> None:
    zeros = {"memory": "auto", "attention": "windows", "budget_gib": 0.0, "tile": 0, "overlap": 0, "tile_batch": 0}
    assert pack.widgets.memory_options() == pack.widgets.memory_options(**zeros) == pack.widgets.MemoryOptions()


def test_memory_widgets_become_options(pack: Pack) -> None:
    widgets = {"memory": "tiles", "attention": "full", "budget_gib": 1.5, "tile": 512, "overlap": 64, "tile_batch": 3}
    expected = pack.widgets.MemoryOptions(
        mode="tiles", attention="full", budget_bytes=3 * 2**29, tile_px=512, overlap_px=64, tile_batch=3
    )
    assert pack.widgets.memory_options(**widgets) == expected
    with pytest.raises(ValueError, match="multiple of 64 pixels, got 100"):
        pack.widgets.memory_options(tile=100)


def test_the_steps_of_tile_widgets_are_what_the_core_takes(pack: Pack) -> None:
    widgets = {part.id: part for part in pack.nodes["GenDR_Restore"].define_schema().inputs}
    for name in ("tile", "overlap"):
        assert widgets[name].min % 64 == widgets[name].step % 64 == widgets[name].max % 64 == 0
