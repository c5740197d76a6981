"""YAML file -> ``TrainConfig``, strictly: an unknown key names its nearest neighbour, a wrong type says what came.

Role: called by ``cli``; the sections are in ``schema``. ``resolved`` and ``config_hash`` are the way back, written
beside the results of a run.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from gendr_core.errors import OptionError

from .degradations import PRESETS, Degradation, SecondOrder
from .schema import TrainConfig
from .settings import SETTINGS

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-4 for text; numbers with an exponent are numbers here, as in YAML 1.2."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Return the run described by a YAML file.

    Args:
        path: the file.
        overrides: ``section.key=value`` each, the value in YAML; they replace what the file says.

    Raises:
        OptionError: the file cannot be read, is not YAML, or holds an unknown key or an unusable value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text, _Loader)
    except OSError as error:
        raise OptionError(f"expected a readable config file, got {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise OptionError(f"expected YAML in {path}, got: {error}") from error
    root = _mapping(tree, str(path))
    for override in overrides:
        _override(root, override)
    return parse_config(root)


def parse_config(tree: Mapping[str, object]) -> TrainConfig:
    """Return the run described by nested mappings, as YAML gives them.

    Args:
        tree: section name -> section.

    Raises:
        OptionError: a key is unknown or missing, a value has the wrong type, or values contradict each other.
    """
    sections = dict(tree)
    stage = _mapping(sections.get("run", {}), "run").get("stage")
    if not isinstance(stage, str) or stage not in SETTINGS:
        raise OptionError(f"expected run.stage to be one of {', '.join(SETTINGS)}, got {_shown(stage)}")
    sections["degradation"] = _read_degradation(sections.get("degradation", {}))
    settings = _read_dataclass(SETTINGS[stage], sections.pop(stage, {}), stage)
    known = {f.name for f in dataclasses.fields(TrainConfig)} - {"stage"} | {stage}
    for key in sections:
        _expect_known(key, known, "")
    return _read_dataclass(TrainConfig, {**sections, "stage": settings}, "")


def resolved(config: TrainConfig) -> dict[str, Any]:
    """Return the config with every default filled in, as plain mappings fit for YAML and JSON.

    Args:
        config: any run.
    """
    tree = cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))
    tree[config.run.stage] = tree.pop("stage")
    tree["degradation"]["preset"] = "photo" if isinstance(config.degradation, Degradation) else "realesrgan"
    return tree


def config_hash(config: TrainConfig) -> str:
    """Return 12 hexadecimal digits that change with any value of the config.

    Args:
        config: any run.
    """
    text = json.dumps(resolved(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _override(root: dict[str, object], override: str) -> None:
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise OptionError(f"expected section.key=value, got {override!r}")
    node = root
    for key in keys[:-1]:
        node[key] = _mapping(node.get(key, {}), dotted)
        node = cast("dict[str, object]", node[key])
    try:
        node[keys[-1]] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise OptionError(f"expected a YAML value in {override!r}, got: {error}") from error


def _mapping(value: object, where: str) -> dict[str, object]:
    named = cast("dict[object, object]", value) if isinstance(value, dict) else None
    if named is None or not all(isinstance(key, str) for key in named):
        raise OptionError(f"expected named keys in {where}, got {_shown(cast('object', value))}")
    return {str(key): item for key, item in named.items()}


def _read_degradation(value: object) -> Degradation | SecondOrder:
    """Read a preset name, or ranges, or ranges on top of a preset."""
    ranges = {"preset": value} if isinstance(value, str) else _mapping(value, "degradation")
    preset = ranges.pop("preset", "photo")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise OptionError(f"expected degradation.preset to be one of {', '.join(PRESETS)}, got {preset!r}")
    start = PRESETS[preset]
    return _read_dataclass(type(start), {**dataclasses.asdict(start), **ranges}, "degradation")


def _read_dataclass(kind: type[T], value: object, where: str) -> T:
    if isinstance(value, kind):
        return value
    given = _mapping(value, where or "the config")
    fields = {f.name: f for f in dataclasses.fields(cast("Any", kind))}
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in given:
        _expect_known(key, fields, prefix)
    values = {
        key: _read_value(hints[key], _completed(item, fields[key]), f"{prefix}{key}") for key, item in given.items()
    }
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise OptionError(f"expected the key {prefix}{name}, got none")
    return kind(**values)


def _expect_known(key: str, known: Collection[str], prefix: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise OptionError(f"unknown key {prefix}{key}: did you mean {prefix}{near}?")


def _completed(value: object, f: dataclasses.Field[Any]) -> object:
    """Put keys of a section on top of the section that stands where none is given."""
    if not isinstance(value, dict) or f.default_factory is dataclasses.MISSING:
        return cast("object", value)
    default = f.default_factory()
    return {
        **{g.name: getattr(default, g.name) for g in dataclasses.fields(default)},
        **cast("dict[str, object]", value),
    }


def _read_value(kind: Any, value: object, where: str) -> object:  # noqa: ANN401 - any type hint
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        return _read_union(kind, value, where)
    if origin is Literal:
        if value not in get_args(kind):
            raise OptionError(f"expected {where} to be one of {', '.join(get_args(kind))}, got {_shown(value)}")
        return value
    if origin is tuple:
        return _read_tuple(get_args(kind), value, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(cast("type[object]", kind), value, where)
    # YAML's 1 is a fine float, but true is no number.
    wanted = (int, float) if kind is float else (kind,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise OptionError(f"expected {where} as {kind.__name__}, got {_shown(value)}")
    return float(cast("float", value)) if kind is float else value


def _read_union(kind: Any, value: object, where: str) -> object:  # noqa: ANN401 - any type hint
    members = [member for member in get_args(kind) if member is not type(None)]
    if value is None and len(members) < len(get_args(kind)):
        return None
    if any(dataclasses.is_dataclass(value) and isinstance(value, member) for member in members):
        return value
    return _read_value(members[0], value, where)


def _read_tuple(members: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise OptionError(f"expected {where} as a list, got {_shown(value)}")
    items = cast("list[object]", value)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(items)
    if len(items) != len(members):
        raise OptionError(f"expected {len(members)} values in {where}, got {len(items)}: {_shown(items)}")
    return tuple(
        _read_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(members, items, strict=True))
    )


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"
