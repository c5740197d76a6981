"""Speed: what was measured as tables of Markdown, one column per setting.

Role: a part of ``speed``.
"""

from collections.abc import Callable, Iterable, Sequence

from report import table
from speed_measure import Figures, Result, Setting
from speed_networks import ARCHITECTURES
from speed_timing import STAGES

MEBIBYTE = 2**20
NO_PICTURE = "Random weights make no picture, or a flat one: see differences and errors beside the standard deviation."

Measured = Sequence[tuple[Setting, Result]]
Row = list[str]


def results(measured: Measured) -> str:
    """Return the sections of a page: time, memory, floor, and distances between images."""
    sections = {
        "Time": ("median ms", _times(measured)),
        "Memory": ("MiB", _memory(measured)),
        "Floor": ("", _floor(measured)),
        "Images": ("values in 0 to 1", _images(measured)),
    }
    columns = [_column(setting) for setting, _ in measured]
    weights = "; ".join(f"{arch}: {ARCHITECTURES[arch]}" for arch in dict.fromkeys(s.arch for s, _ in measured))
    parts = [f"Weights: {weights}."]
    parts += [f"## {name}\n\n{table([unit, *columns], rows)}" for name, (unit, rows) in sections.items() if rows]
    parts += [NO_PICTURE] if any(setting.arch == "full" for setting, _ in measured) else []
    reasons = {f"{name}: {reason}" for _, result in measured for name, reason in result.skipped.items()}
    parts += [f"Skipped: {reason}" for reason in sorted(reasons)]
    return "\n\n".join(parts)


def _column(setting: Setting) -> str:
    guided = ", two passes" if setting.passes > 1 else ""
    whole = ", full attention" if setting.attention == "full" else ""
    graphs = ", graphs" if setting.graphs != "off" else ""
    return f"{setting.arch} {setting.size} px {setting.dtype}{guided}{whole}{graphs}"


def _times(measured: Measured) -> list[Row]:
    rows: list[Row] = []
    for name in _names(measured):
        rows.append([name, *_of(measured, name, lambda figures: figures.ms, ".1f")])
        for stage in STAGES:
            times = _of(measured, name, lambda figures, stage=stage: figures.stages_ms.get(stage), ".1f")
            rows += [[f"{name}: {stage}", *times]] if set(times) != {"-"} else []
    for name in _names(measured):
        ratios = _of(measured, name, lambda figures: figures.ratio_to_diffusers, ".2f")
        rows += [[f"diffusers / {name}", *ratios]] if name != "diffusers" and set(ratios) != {"-"} else []
    return rows


def _memory(measured: Measured) -> list[Row]:
    rows: list[Row] = []
    for name in dict.fromkeys(name for _, result in measured for name in result.contenders):
        rows.append([f"{name}: weights", *_of(measured, name, lambda figures: figures.weight_bytes / MEBIBYTE, ".0f")])
        activations = _of(measured, name, lambda figures: figures.activation_bytes / MEBIBYTE, ".0f")
        rows.append([f"{name}: activations", *activations])
    return [
        *rows,
        *_known("ours / diffusers", (result.memory_ratio_to_diffusers for _, result in measured), ".2f"),
        *_known("activations alone", (result.activation_ratio_to_diffusers for _, result in measured), ".2f"),
    ]


def _floor(measured: Measured) -> list[Row]:
    return [
        *_known("TFLOP of ours", (result.flops / 1e12 for _, result in measured), ".3g"),
        *_known("TFLOP/s reached here", (result.peak_flops / 1e12 for _, result in measured), ".3g"),
        *_known("floor, ms", (result.floor_ms for _, result in measured), ".1f"),
        *_known("ours / floor", (result.floor_distance for _, result in measured), ".2f"),
    ]


def _images(measured: Measured) -> list[Row]:
    rows: list[Row] = []
    for name in _names(measured):
        largest = _of(measured, name, lambda figures: figures.max_difference, ".1e")
        rms = _of(measured, name, lambda figures: figures.rms_difference, ".1e")
        if name != "diffusers" and set(largest) != {"-"}:
            rows += [[f"{name}: largest difference", *largest], [f"{name}: rms difference", *rms]]
    for name in _names(measured):
        errors = _of(measured, name, lambda figures: figures.rms_error, ".1e")
        rows += [[f"{name}: rms error", *errors]] if set(errors) != {"-"} else []
    return [
        *rows,
        *_known("error of ours / diffusers", (result.error_ratio for _, result in measured), ".2f"),
        *_known("standard deviation", (result.image_spread for _, result in measured), ".1e"),
    ]


def _names(measured: Measured) -> list[str]:
    """Return who takes part anywhere, in order."""
    return list(dict.fromkeys(name for _, result in measured for name in [*result.contenders, *result.skipped]))


def _of(measured: Measured, name: str, value: Callable[[Figures], float | None], form: str) -> Row:
    """Return one figure of a contender in every setting."""
    figures = (result.contenders.get(name) for _, result in measured)
    return _shown((None if entry is None else value(entry) for entry in figures), form)


def _known(name: str, values: Iterable[float | None], form: str) -> list[Row]:
    """Return a row, or none where there is nothing to show."""
    shown = _shown(values, form)
    return [] if set(shown) == {"-"} else [[name, *shown]]


def _shown(values: Iterable[float | None], form: str) -> Row:
    return ["-" if value is None else format(value, form) for value in values]
