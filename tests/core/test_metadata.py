"""The gendr metadata: what is written comes back, and everything else is refused by name."""

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_core.errors import CheckpointError
from gendr_core.metadata import (
    STORED_FOLDS,
    Kind,
    SpecOverrides,
    dump_metadata,
    format_version,
    model_spec,
    parse_metadata,
    stored_folds,
    unet_arch,
    vae_arch,
    vae_spec,
)
from gendr_core.spec import ModelSpec, UNetArch, VAEArch, VAESpec

NONE = SpecOverrides()
SPEC = ModelSpec(
    arch=UNetArch(in_channels=192, out_channels=192, attention_levels=(False, True, False, True), head_dim=32),
    front="pixel_unshuffle8",
    latent_scaling=0.5,
    prediction="v_prediction",
    title="T \u00e4",
    source="here",
)


def read_back(metadata: dict[str, str], overrides: SpecOverrides = NONE) -> ModelSpec:
    """Return the spec that UNet metadata stands for."""
    values = parse_metadata(metadata, "unet")
    assert values is not None
    return model_spec(unet_arch(values), values, overrides)


def changed(**changes: object) -> dict[str, str]:
    """Return valid UNet metadata with some keys changed; None takes a key away."""
    values = {**json.loads(dump_metadata("unet", SPEC)["gendr"]), **changes}
    return {"gendr": json.dumps({name: value for name, value in values.items() if value is not None})}


def test_the_form_of_the_design() -> None:
    values = json.loads(dump_metadata("unet", ModelSpec(arch=UNetArch(), title="GenDR"))["gendr"])
    assert values["format"] == 1
    assert values["kind"] == "unet"
    assert values["timestep"] == 354
    assert values["c_skip"] == pytest.approx(1.41421356)
    assert values["front"] == values["back"] == "vae16"
    assert values["arch"]["block_out_channels"] == [320, 640, 1280, 1280]
    assert values["latent_scaling"] == 0.2614
    assert json.loads(dump_metadata("vae16", VAESpec(arch=VAEArch()))["gendr"])["kind"] == "vae16"


FLOATS = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=50, deadline=None)
@given(
    timestep=st.integers(0, 999), c_skip=FLOATS, c_out=FLOATS, scale=st.floats(1e-6, 1e6), title=st.text(max_size=20)
)
def test_unet_metadata_round_trip(timestep: int, c_skip: float, c_out: float, scale: float, title: str) -> None:
    spec = replace(SPEC, timestep=timestep, c_skip=c_skip, c_out=c_out, scale=scale, title=title)
    assert read_back(dump_metadata("unet", spec)) == spec


def test_vae_metadata_round_trip() -> None:
    spec = VAESpec(arch=VAEArch(quant_conv=False, norm_groups=16), latent_scaling=0.7, license="MIT")
    values = parse_metadata(dump_metadata("vae16", spec), "vae16")
    assert values is not None
    assert vae_spec(vae_arch(values), values, NONE) == spec
    assert vae_spec(vae_arch(values), values, SpecOverrides(latent_scaling=0.5)).latent_scaling == 0.5


def test_cells_and_a_missing_middle_are_said_where_they_are_unusual() -> None:
    unet, vae = ModelSpec(arch=UNetArch()), VAESpec(arch=VAEArch())
    for kind, spec in (("unet", unet), ("vae16", vae)):
        text = dump_metadata(kind, spec)["gendr"]  # type: ignore[arg-type]
        assert "cell_px" not in text
        assert "mid_block" not in text
    small = replace(unet, cell_px=4)
    assert json.loads(dump_metadata("unet", small)["gendr"])["cell_px"] == 4
    assert read_back(dump_metadata("unet", small)) == small
    bare = VAESpec(arch=VAEArch(block_out_channels=(32, 64, 64), mid_attention=False, mid_block=False))
    values = parse_metadata(dump_metadata("vae16", bare), "vae16")
    assert values is not None
    assert vae_spec(vae_arch(values), values, NONE) == bare


def test_texts_may_be_left_out() -> None:
    assert read_back(changed(title=None, license=None, source=None, trained_on=None)).title == ""


def test_a_file_without_metadata() -> None:
    assert parse_metadata({"format": "pt"}, "unet") is None
    assert format_version({"format": "pt"}) is None
    assert format_version(changed(format=7)) == 7


ARCH = json.loads(dump_metadata("unet", SPEC)["gendr"])["arch"]
WRONG = {
    "newer": ({"format": 3, "new_key": 1}, "the file has format 3, this GenDR reads formats 1 and 2: update GenDR"),
    "no format": ({"format": None}, "expected format 1 or 2 in the GenDR metadata, got None"),
    "bool format": ({"format": True}, "expected format 1 or 2 in the GenDR metadata, got True"),
    "folds in format 1": ({"folds": ["time"]}, "format 1 has no metadata key 'folds'"),
    "no folds in format 2": ({"format": 2}, "the metadata of format 2 lacks folds"),
    "unknown in format 2": ({"format": 2, "folds": ["time"], "sigma": 1}, "format 2 has no metadata key 'sigma'"),
    "kind": ({"kind": "vae16"}, "expected kind 'unet', got 'vae16'"),
    "no kind": ({"kind": None}, "expected kind 'unet', got None"),
    "unknown": ({"sigma": 1.0}, "format 1 has no metadata key 'sigma'"),
    "missing": ({"latent_scaling": None}, r"does not say latent_scaling: .* give SpecOverrides\(latent_scaling=...\)"),
    "front gone": ({"front": None}, "does not say front: write the file again"),
    "float timestep": ({"timestep": 354.0}, "expected an integer as timestep of the UNet, got 354.0"),
    "bool timestep": ({"timestep": True}, "expected an integer as timestep of the UNet, got True"),
    "timestep range": ({"timestep": 1000}, "expected timestep from 0 to 999, got 1000"),
    "bool number": ({"c_skip": True}, "expected a number as c_skip of the UNet, got True"),
    "text number": ({"c_out": "-1"}, "expected a number as c_out of the UNet, got '-1'"),
    "nan": ({"c_out": math.nan}, "expected a finite number as c_out of the UNet, got nan"),
    "infinite": ({"guidance": math.inf}, "expected a finite number as guidance of the UNet, got inf"),
    "huge": ({"scale": 10**400}, "expected a finite number as scale of the UNet"),
    "prediction": ({"prediction": "x0"}, "expected prediction to be one of epsilon, v_prediction, got 'x0'"),
    "number prediction": ({"prediction": 3}, "expected text as prediction of the UNet, got 3"),
    "title": ({"title": ["x"]}, "expected text as title of the UNet"),
    "text cells": ({"cell_px": "4"}, "expected an integer as cell_px of the UNet, got '4'"),
    "cells of pixels": ({"cell_px": 4}, "expected cell_px 8 with front pixel_unshuffle8, got 4"),
    "arch": ({"arch": [1]}, r"expected an object as arch in the metadata, got \[1\]"),
    "no arch": ({"arch": None}, "expected an object as arch in the metadata, got None"),
    "arch gap": ({"arch": {"in_channels": 4}}, "arch in the GenDR metadata lacks attention_levels, block_out_channels"),
    "arch extra": ({"arch": {**ARCH, "depth": 2}}, "arch in the GenDR metadata has the unknown depth"),
    "arch number": ({"arch": {**ARCH, "head_dim": "32"}}, "expected an integer as head_dim of the arch, got '32'"),
    "arch list": (
        {"arch": {**ARCH, "block_out_channels": 5}},
        "expected a list as block_out_channels of the arch, got 5",
    ),
    "arch item": ({"arch": {**ARCH, "block_out_channels": [1.5]}}, "expected an integer as block_out_channels"),
    "arch flag": ({"arch": {**ARCH, "attention_levels": [1, 0, 0, 0]}}, "expected true or false as attention_levels"),
    "arch size": ({"arch": {**ARCH, "block_out_channels": [99968] * 4}}, "expected UNet widths from 1 to 4096"),
    "arch depth": ({"arch": {**ARCH, "layers_per_block": 10**9}}, "expected 1 to 8 layers per block"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_metadata_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_back(changed(**changes))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[]", "a JSON object"), ("[" * 10**5, "not valid JSON")]
)
def test_metadata_that_is_no_object(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_metadata({"gendr": text}, "unet")


def test_a_file_without_folds_is_what_it_was_before_there_were_any() -> None:
    spec = VAESpec(arch=VAEArch(), license="MIT")
    names = [field.name for field in fields(VAEArch) if field.name != "mid_block"]
    arch = {name: getattr(VAEArch(), name) for name in names}
    texts = {"title": "", "license": "MIT", "source": "", "trained_on": ""}
    values = {"format": 1, "kind": "vae16", "arch": arch, "latent_scaling": 0.2614, **texts}
    assert dump_metadata("vae16", spec) == dump_metadata("vae16", spec, ()) == {"gendr": json.dumps(values)}


@pytest.mark.parametrize(("kind", "spec"), [("unet", SPEC), ("vae16", VAESpec(arch=VAEArch()))])
def test_folds_are_listed_by_name_in_format_2(kind: Kind, spec: ModelSpec | VAESpec) -> None:
    metadata = dump_metadata(kind, spec, STORED_FOLDS[kind])
    assert format_version(metadata) == 2
    values = parse_metadata(metadata, kind)
    assert values is not None
    assert values["folds"] == sorted(STORED_FOLDS[kind])
    assert stored_folds(values, kind) == frozenset(STORED_FOLDS[kind])
    assert stored_folds({}, kind) == frozenset()


WRONG_FOLDS = {
    "text": ("time", "expected a list as folds of the metadata, got 'time'"),
    "numbers": ([1], "expected text as folds of the metadata, got 1"),
    "empty": ([], r"expected folds as a sorted list of names, got \[\]"),
    "order": (["time", "norms"], r"expected folds as a sorted list of names, got \['time', 'norms'\]"),
    "twice": (["time", "time"], "expected folds as a sorted list of names"),
    "unknown": (["mirror"], "expected folds out of ends, .*, time, got 'mirror': update GenDR"),
    "running": (["phases"], "expected folds out of ends, .*, time, got 'phases'"),
}


@pytest.mark.parametrize(("folds", "message"), WRONG_FOLDS.values(), ids=WRONG_FOLDS.keys())
def test_wrong_folds_are_named(folds: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        stored_folds({"folds": folds}, "unet")


def test_folds_that_no_file_can_have_are_not_written() -> None:
    with pytest.raises(CheckpointError, match=r"expected folds out of .*, got 'packed'"):
        dump_metadata("unet", SPEC, ("time", "packed"))
    with pytest.raises(CheckpointError, match="expected folds out of ends, norms, qkv, scale, got 'time'"):
        dump_metadata("vae16", VAESpec(arch=VAEArch()), ("time",))


def test_vae_flags_are_strict() -> None:
    values = json.loads(dump_metadata("vae16", VAESpec(arch=VAEArch()))["gendr"])
    values["arch"]["quant_conv"] = 1
    with pytest.raises(CheckpointError, match="expected true or false as quant_conv of the arch, got 1"):
        vae_arch(values)


def test_overrides_replace_the_files_values() -> None:
    spec = read_back(changed(), SpecOverrides(timestep=1, guidance=1.07, scale=2.0, latent_scaling=0.3))
    assert spec == replace(SPEC, timestep=1, guidance=1.07, scale=2.0, latent_scaling=0.3)


def test_a_given_prediction_replaces_the_files_coefficients() -> None:
    spec = read_back(changed(c_skip=5.0, c_out=5.0, timestep=200), SpecOverrides(prediction="epsilon"))
    assert (spec.c_skip, spec.c_out) == pytest.approx((1.151869, -0.571666), rel=1e-5)
    both = read_back(changed(c_skip=5.0, c_out=5.0), SpecOverrides(prediction="epsilon", c_out=-2.0, c_skip=3.0))
    assert (both.c_skip, both.c_out) == (3.0, -2.0)
