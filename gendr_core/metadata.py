"""What a checkpoint file says besides its weights: the ``gendr`` metadata (JSON) to a spec and back.

Role: used by ``checkpoint``, between the checked ``header`` and ``spec``. Values that a user gives replace those of the
file. The format is version 1: every field of the spec by its name, beside ``format`` and ``kind``.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, cast

from torch import Tensor

from .errors import CheckpointError
from .spec import Back, Front, ModelSpec, Prediction, UNetArch, VAEArch, VAESpec, alpha_bar, one_step_coefficients

METADATA_KEY = "gendr"
FORMAT_VERSION = 1
GENDR_TIMESTEP = 354
"""Where GenDR sets alpha_bar to exactly 0.5 (algorithm.md A2)."""

Kind = Literal["unet", "vae16"]

MAX_NUMBER = 1e30
"""Beyond what any field means; keeps huge integers from overflowing a float."""

TEXT_FIELDS = frozenset({"title", "license", "source", "trained_on"})
"""Fields that a file may leave out: they describe and change nothing."""


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


class _Fields:
    """Strictly typed look at a JSON object: no number for a flag, no flag for a number, nothing infinite."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = values
        self._where = where

    def integer(self, name: str) -> int:
        return self._integer(name, self._values[name])

    def number(self, name: str) -> float:
        value = self._values[name]
        if type(value) not in (int, float):
            raise self._wrong(name, "a number", value)
        number = cast("int | float", value)
        if not abs(number) <= MAX_NUMBER:  # NaN fails here too
            raise self._wrong(name, "a finite number", value)
        return float(number)

    def text(self, name: str) -> str:
        value = self._values.get(name, "")
        if not isinstance(value, str):
            raise self._wrong(name, "text", value)
        return value

    def flag(self, name: str) -> bool:
        return self._flag(name, self._values[name])

    def integers(self, name: str) -> tuple[int, ...]:
        return tuple(self._integer(name, item) for item in self._list(name))

    def flags(self, name: str) -> tuple[bool, ...]:
        return tuple(self._flag(name, item) for item in self._list(name))

    def _list(self, name: str) -> list[object]:
        value = self._values[name]
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        return cast("list[object]", value)

    def _integer(self, name: str, value: object) -> int:
        if type(value) is not int:
            raise self._wrong(name, "an integer", value)
        return value

    def _flag(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def _wrong(self, name: str, expected: str, value: object) -> CheckpointError:
        return CheckpointError(f"expected {expected} as {name} of the {self._where}, got {value!r:.80}")


def parse_metadata(metadata: Mapping[str, str], kind: Kind) -> dict[str, object] | None:
    """Return the values in the ``gendr`` metadata, ``format`` and ``kind`` taken off; None where the file has none.

    Only names are checked here; ``model_spec``, ``vae_spec`` and the arch functions check types.

    Raises:
        CheckpointError: not a JSON object, a format newer than version 1, another kind, or a key unknown to version 1.
    """
    if METADATA_KEY not in metadata:
        return None
    values = _load(metadata[METADATA_KEY])
    version = values.pop("format", None)
    if type(version) is not int or version < 1:
        raise CheckpointError(f"expected format {FORMAT_VERSION} in the GenDR metadata, got {version!r:.80}")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"the file has format {version}, this GenDR reads format {FORMAT_VERSION}: update GenDR")
    found = values.pop("kind", None)
    if found != kind:
        raise CheckpointError(f"expected kind {kind!r}, got {found!r:.80}: use the file where that kind is asked for")
    spec = ModelSpec if kind == "unet" else VAESpec
    unknown = sorted(values.keys() - {field.name for field in fields(spec)})
    if unknown:
        raise CheckpointError(
            f"format {FORMAT_VERSION} has no metadata key {unknown[0]!r:.80}: the file is damaged or was edited"
        )
    return values


def format_version(metadata: Mapping[str, str]) -> int | None:
    """Return the format number that the file claims; None where it has no GenDR metadata or no number.

    Raises:
        CheckpointError: the metadata is not a JSON object.
    """
    version = _load(metadata[METADATA_KEY]).get("format") if METADATA_KEY in metadata else None
    return version if type(version) is int else None


def dump_metadata(kind: Kind, spec: ModelSpec | VAESpec) -> dict[str, str]:
    """Return the metadata of a file with this spec: one key, because the library orders several at random."""
    values = {"format": FORMAT_VERSION, "kind": kind, **asdict(spec)}
    return {METADATA_KEY: json.dumps(values, allow_nan=False)}


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
    merged = dict(values)
    if "prediction" in given:
        merged.pop("c_skip", None)
        merged.pop("c_out", None)
    merged.update(given)
    found = _Fields(merged, "UNet")
    if {"c_skip", "c_out"} <= merged.keys():
        merged.setdefault("prediction", "epsilon")
    elif {"prediction", "timestep"} <= merged.keys():
        timestep = found.integer("timestep")
        signal_power = 0.5 if timestep == GENDR_TIMESTEP else alpha_bar(timestep)
        skip, out = one_step_coefficients(cast("Prediction", found.text("prediction")), signal_power)
        merged = {"c_skip": skip, "c_out": out, **merged}
        found = _Fields(merged, "UNet")
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
        title=found.text("title"),
        license=found.text("license"),
        source=found.text("source"),
        trained_on=found.text("trained_on"),
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
    found = _Fields(merged, "VAE")
    return VAESpec(
        arch=arch,
        latent_scaling=found.number("latent_scaling"),
        title=found.text("title"),
        license=found.text("license"),
        source=found.text("source"),
        trained_on=found.text("trained_on"),
    )


def _load(text: str) -> dict[str, object]:
    try:
        values: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the GenDR metadata is not valid JSON ({error}): the file is damaged") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"expected a JSON object as GenDR metadata, got {type(values).__name__}: the file is damaged"
        )
    return cast("dict[str, object]", values)


def _arch(values: Mapping[str, object], expected: Collection[str]) -> _Fields:
    arch = values.get("arch")
    if not isinstance(arch, dict):
        raise CheckpointError(f"expected an object as arch in the metadata, got {arch!r:.80}: the file is damaged")
    arch = cast("dict[str, object]", arch)
    for problem, names in (("lacks", set(expected) - arch.keys()), ("has the unknown", arch.keys() - set(expected))):
        if names:
            raise CheckpointError(
                f"the arch in the GenDR metadata {problem} {', '.join(sorted(names)):.200}: the file is damaged"
            )
    return _Fields(arch, "arch")


def _require(present: Collection[str], expected: Collection[str]) -> None:
    missing = sorted(set(expected) - set(present) - TEXT_FIELDS - {"arch"})
    if not missing:
        return
    call = ", ".join(f"{name}=..." for name in missing)
    way = "write the file again with all of its metadata"
    if set(missing) <= {field.name for field in fields(SpecOverrides)}:
        way = f"choose a file that was made for GenDR, or from Python give SpecOverrides({call})"
    raise CheckpointError(f"the file does not say {', '.join(missing)}: {way}")
