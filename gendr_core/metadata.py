"""What a checkpoint file says besides its weights: the ``gendr`` metadata (JSON) to a spec and back.

Role: used by ``contents``, between the checked ``header`` and ``spec``; ``jsonfields`` checks types. Values that a user
gives replace those of the file. The format is version 1: every field of the spec by its name, beside ``format`` and
``kind``. Version 2 adds ``folds``, what is folded in the weights; files without folds stay of version 1.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, cast

from torch import Tensor

from .errors import CheckpointError
from .jsonfields import Fields, load_object
from .spec import (
    FILE_FOLDS,
    SPATIAL_FACTOR,
    VAE_FOLDS,
    Back,
    Fold,
    Front,
    ModelSpec,
    Prediction,
    UNetArch,
    VAEArch,
    VAESpec,
    alpha_bar,
    one_step_coefficients,
)

METADATA_KEY, FOLDS_KEY = "gendr", "folds"
PLAIN_FORMAT, FOLDED_FORMAT = 1, 2
GENDR_TIMESTEP = 354
"""Where GenDR sets alpha_bar to exactly 0.5 (algorithm.md A2)."""

Kind = Literal["unet", "vae16"]

STORED_FOLDS: dict[Kind, tuple[Fold, ...]] = {
    "unet": FILE_FOLDS,
    "vae16": tuple(fold for fold in FILE_FOLDS if fold in VAE_FOLDS),
}
"""What a file of a kind can have folded."""

TEXT_FIELDS = frozenset({"title", "license", "source", "trained_on"})
"""Fields that a file may leave out: they describe and change nothing."""

USUAL: dict[str, object] = {"cell_px": SPATIAL_FACTOR, "mid_block": True}
"""Values of fields, those of arch included, that no file says: nearly all have them, and files from before these fields
were known have no others."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpecOverrides:
    """Values that a user gives for a file that lacks them, or in place of what the file says; None leaves the file's.

    A ``prediction`` without both coefficients sets those too, from the timestep (see ``model_spec``). A VAE takes only
    ``latent_scaling``.
    """

    timestep: int | None = None
    """0 to 999."""
    prediction: Prediction | None = None
    c_skip: float | None = None
    c_out: float | None = None
    guidance: float | None = None
    latent_scaling: float | None = None
    """For example 0.2614 for VAE16, 0.18215 for SD's 4-channel VAE, 0.13025 for SDXL's."""
    scale: float | None = None
    positive: Tensor | None = None
    """Prompt embedding [tokens, cross_attention_dim], any float dtype."""
    negative: Tensor | None = None
    """Negative prompt embedding, same shape as the positive one."""

    def values(self) -> dict[str, object]:
        """Return what is given, prompts aside, by the names of the spec's fields."""
        names = (field.name for field in fields(self) if field.name not in ("positive", "negative"))
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def parse_metadata(metadata: Mapping[str, str], kind: Kind) -> dict[str, object] | None:
    """Return the values in the ``gendr`` metadata, ``format`` and ``kind`` taken off; None where the file has none.

    Only names are checked here; ``model_spec``, ``vae_spec``, ``stored_folds`` and the arch functions check types.

    Raises:
        CheckpointError: not a JSON object, a format newer than version 2, another kind, or a key that its version does
            not have.
    """
    if METADATA_KEY not in metadata:
        return None
    values = load_object(metadata[METADATA_KEY])
    version = values.pop("format", None)
    if type(version) is not int or version < PLAIN_FORMAT:
        raise CheckpointError(
            f"expected format {PLAIN_FORMAT} or {FOLDED_FORMAT} in the GenDR metadata, got {version!r:.80}"
        )
    if version > FOLDED_FORMAT:
        raise CheckpointError(
            f"the file has format {version}, this GenDR reads formats {PLAIN_FORMAT} and {FOLDED_FORMAT}: update GenDR"
        )
    found = values.pop("kind", None)
    if found != kind:
        raise CheckpointError(f"expected kind {kind!r}, got {found!r:.80}: use the file where that kind is asked for")
    known = {field.name for field in fields(ModelSpec if kind == "unet" else VAESpec)}
    if version == FOLDED_FORMAT:
        known.add(FOLDS_KEY)
        if FOLDS_KEY not in values:
            raise CheckpointError(f"the metadata of format {version} lacks {FOLDS_KEY}: the file is damaged")
    unknown = sorted(values.keys() - known)
    if unknown:
        raise CheckpointError(
            f"format {version} has no metadata key {unknown[0]!r:.80}: the file is damaged or was edited"
        )
    return values


def stored_folds(values: Mapping[str, object], kind: Kind) -> frozenset[Fold]:
    """Return what is folded in the weights of a file; nothing in one of version 1.

    Raises:
        CheckpointError: not a sorted list of different names, an empty one, or a fold that no such file can have.
    """
    if FOLDS_KEY not in values:
        return frozenset()
    names = Fields(values, "metadata").texts(FOLDS_KEY)
    allowed = STORED_FOLDS[kind]
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise CheckpointError(
            f"expected {FOLDS_KEY} out of {', '.join(sorted(allowed))}, got {unknown[0]!r:.80}: update GenDR, or bake"
            " the file again"
        )
    if not names or list(names) != sorted(set(names)):
        raise CheckpointError(f"expected {FOLDS_KEY} as a sorted list of names, got {list(names)}: bake the file again")
    return frozenset(fold for fold in allowed if fold in names)


def format_version(metadata: Mapping[str, str]) -> int | None:
    """Return the format number that the file claims; None where it has no GenDR metadata or no number.

    Raises:
        CheckpointError: the metadata is not a JSON object.
    """
    version = load_object(metadata[METADATA_KEY]).get("format") if METADATA_KEY in metadata else None
    return version if type(version) is int else None


def dump_metadata(kind: Kind, spec: ModelSpec | VAESpec, folds: Collection[Fold] = ()) -> dict[str, str]:
    """Return the metadata of a file with this spec: one key, because the library orders several at random.

    Args:
        kind: of the network.
        spec: of the network.
        folds: what is folded in its weights.

    Raises:
        CheckpointError: a file of this kind cannot have these folds.
    """
    said: dict[str, object] = asdict(spec, dict_factory=_unusual)
    values: dict[str, object] = {"format": FOLDED_FORMAT if folds else PLAIN_FORMAT, "kind": kind, **said}
    if folds:
        values[FOLDS_KEY] = sorted(folds)
        stored_folds(values, kind)
    return {METADATA_KEY: json.dumps(values, allow_nan=False)}


def _unusual(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return {name: value for name, value in pairs if name not in USUAL or value != USUAL[name]}


def unet_arch(values: Mapping[str, object]) -> UNetArch:
    """Return the UNet's shape from metadata.

    Raises:
        CheckpointError: ``arch`` is missing, incomplete, has unknown keys or wrong types, or cannot be built.
    """
    arch = _arch(values, {field.name for field in fields(UNetArch)})
    return UNetArch(
        in_channels=arch.integer("in_channels"),
        out_channels=arch.integer("out_channels"),
        block_out_channels=arch.integers("block_out_channels"),
        attention_levels=arch.flags("attention_levels"),
        layers_per_block=arch.integer("layers_per_block"),
        head_dim=arch.integer("head_dim"),
        cross_attention_dim=arch.integer("cross_attention_dim"),
        norm_groups=arch.integer("norm_groups"),
    )


def vae_arch(values: Mapping[str, object]) -> VAEArch:
    """Return the VAE's shape from metadata.

    Raises:
        CheckpointError: ``arch`` is missing, incomplete, has unknown keys or wrong types, or cannot be built.
    """
    arch = _arch(values, {field.name for field in fields(VAEArch)})
    return VAEArch(
        in_channels=arch.integer("in_channels"),
        out_channels=arch.integer("out_channels"),
        latent_channels=arch.integer("latent_channels"),
        block_out_channels=arch.integers("block_out_channels"),
        layers_per_block=arch.integer("layers_per_block"),
        norm_groups=arch.integer("norm_groups"),
        quant_conv=arch.flag("quant_conv"),
        mid_attention=arch.flag("mid_attention"),
        mid_block=arch.flag("mid_block"),
    )


def model_spec(arch: UNetArch, values: Mapping[str, object], overrides: SpecOverrides) -> ModelSpec:
    """Return how the UNet is run, from the file's values with the user's on top.

    Coefficients that nobody gives follow from prediction and timestep (algorithm.md A2), with alpha_bar of the SD2.1
    schedule, or exactly 0.5 at GenDR's own timestep 354. A ``prediction`` in ``overrides`` discards the file's
    coefficients; a ``timestep`` there does not, because after distillation it is only a learned bias.

    Args:
        arch: shape of the network.
        values: the file's values by field name, ``arch`` ignored; types are checked here.
        overrides: the user's values.

    Raises:
        CheckpointError: a value is missing from both, or has a wrong type or range.
    """
    given = overrides.values()
    merged = {"cell_px": USUAL["cell_px"], **values}
    if "prediction" in given:
        merged.pop("c_skip", None)
        merged.pop("c_out", None)
    merged.update(given)
    found = Fields(merged, "UNet")
    if {"c_skip", "c_out"} <= merged.keys():
        merged.setdefault("prediction", "epsilon")
    elif {"prediction", "timestep"} <= merged.keys():
        timestep = found.integer("timestep")
        signal_power = 0.5 if timestep == GENDR_TIMESTEP else alpha_bar(timestep)
        skip, out = one_step_coefficients(cast("Prediction", found.text("prediction")), signal_power)
        merged = {"c_skip": skip, "c_out": out, **merged}
        found = Fields(merged, "UNet")
    _require(merged.keys(), {field.name for field in fields(ModelSpec)})
    return ModelSpec(
        arch=arch,
        timestep=found.integer("timestep"),
        # The casts are safe: ModelSpec refuses any other text.
        prediction=cast("Prediction", found.text("prediction")),
        c_skip=found.number("c_skip"),
        c_out=found.number("c_out"),
        guidance=found.number("guidance"),
        front=cast("Front", found.text("front")),
        back=cast("Back", found.text("back")),
        scale=found.number("scale"),
        latent_scaling=found.number("latent_scaling"),
        cell_px=found.integer("cell_px"),
        **{name: found.text(name) for name in sorted(TEXT_FIELDS)},
    )


def vae_spec(arch: VAEArch, values: Mapping[str, object], overrides: SpecOverrides) -> VAESpec:
    """Return how the VAE is run, from the file's values with the user's scaling factor on top.

    Raises:
        CheckpointError: the scaling factor is missing from both, or a value has a wrong type or range.
    """
    merged = dict(values)
    if overrides.latent_scaling is not None:
        merged["latent_scaling"] = overrides.latent_scaling
    _require(merged.keys(), {field.name for field in fields(VAESpec)})
    found = Fields(merged, "VAE")
    return VAESpec(
        arch=arch,
        latent_scaling=found.number("latent_scaling"),
        **{name: found.text(name) for name in sorted(TEXT_FIELDS)},
    )


def _arch(values: Mapping[str, object], expected: Collection[str]) -> Fields:
    arch = values.get("arch")
    if not isinstance(arch, dict):
        raise CheckpointError(f"expected an object as arch in the metadata, got {arch!r:.80}: the file is damaged")
    usual = {name: USUAL[name] for name in expected if name in USUAL}
    arch = {**usual, **cast("dict[str, object]", arch)}
    for problem, names in (("lacks", set(expected) - arch.keys()), ("has the unknown", arch.keys() - set(expected))):
        if names:
            raise CheckpointError(
                f"the arch in the GenDR metadata {problem} {', '.join(sorted(names)):.200}: the file is damaged"
            )
    return Fields(arch, "arch")


def _require(present: Collection[str], expected: Collection[str]) -> None:
    missing = sorted(set(expected) - set(present) - TEXT_FIELDS - {"arch"})
    if not missing:
        return
    call = ", ".join(f"{name}=..." for name in missing)
    way = "write the file again with all of its metadata"
    if set(missing) <= {field.name for field in fields(SpecOverrides)}:
        way = f"choose a file that was made for GenDR, or from Python give SpecOverrides({call})"
    raise CheckpointError(f"the file does not say {', '.join(missing)}: {way}")
