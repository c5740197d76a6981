"""The state of a run on disk: everything that resuming needs, in one safetensors file, replaced atomically.

Role: used by ``loop``. Weights for use are another thing (``export``). There is no random state to keep: crops, damage
and noise are functions of (seed, images seen).
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from torch import Tensor, nn

from .config import config_hash, resolved
from .ema import Ema
from .errors import TrainingError
from .schema import TrainConfig

STATE_FILE = "state.safetensors"
_FORMAT = "1"
_FIXED = ("network", "model", "vae")
"""Sections that the saved weights depend on; the seed and the stage too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """What changes during a run."""

    images: int
    """Images seen."""
    network: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    """``<parameter index>.<name>`` -> tensor."""


def run_folder(config: TrainConfig) -> Path:
    """Return the folder of the run's files.

    Args:
        config: the run.
    """
    return Path(config.run.output) / config.run.name


def capture(network: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer, images: int) -> TrainingState:
    """Return the state of a run; the tensors are those in use, not copies.

    Args:
        network: in training, unwrapped.
        ema: its average.
        optimiser: its optimiser.
        images: images seen.
    """
    moments: dict[int, dict[str, Tensor]] = optimiser.state_dict()["state"]
    flat = {f"{index}.{name}": value for index, entry in moments.items() for name, value in entry.items()}
    return TrainingState(images=images, network=network.state_dict(), ema=ema.network.state_dict(), optimiser=flat)


def restore(state: TrainingState, network: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> None:
    """Put a saved state into freshly built objects.

    Args:
        state: from ``load_state``.
        network: in training, unwrapped.
        ema: its average.
        optimiser: its optimiser; rates stay as they are.
    """
    network.load_state_dict(state.network)
    ema.network.load_state_dict(state.ema)
    parameters: list[nn.Parameter] = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.optimiser.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        # The fused AdamW walks memory: moments must have the layout of their parameter.
        value = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        moments.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def save_state(path: Path, state: TrainingState, config: TrainConfig) -> None:
    """Write the state; a reader sees the old file or the new one, never a part.

    Args:
        path: the file; its folder exists.
        state: from ``capture``.
        config: kept beside the weights, to refuse a wrong resume.
    """
    tensors = {
        f"{part}:{name}": value.detach().cpu().contiguous()
        for part, values in (("network", state.network), ("ema", state.ema), ("optimiser", state.optimiser))
        for name, value in values.items()
    }
    metadata = {"format": _FORMAT, "images": str(state.images), "config": json.dumps(resolved(config))}
    save_atomically(path, tensors, metadata)


def load_state(path: Path, config: TrainConfig) -> TrainingState:
    """Return the saved state.

    Args:
        path: the file.
        config: of the run that is to go on.

    Raises:
        TrainingError: the file is missing, damaged or belongs to another network, seed or stage.
    """
    if not path.is_file():
        raise TrainingError(f"expected saved state to resume from, got no file {path}: start without --resume")
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}, "optimiser": {}}
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:  # pyright: ignore[reportUnknownVariableType]
            file = cast("Any", opened)
            metadata: dict[str, str] = file.metadata() or {}
            for key in cast("list[str]", file.keys()):
                part, name = key.split(":", 1)
                parts[part][name] = file.get_tensor(key)
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"expected saved state in {path}, got a damaged or foreign file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise TrainingError(f"expected saved state of format {_FORMAT} in {path}, got {metadata.get('format')}")
    _check_same_run(json.loads(metadata["config"]), config)
    return TrainingState(images=int(metadata["images"]), **parts)


def save_record(folder: Path, config: TrainConfig) -> None:
    """Write ``config.json``: the config with all defaults, its hash, and the code's version and commit where known.

    Args:
        folder: of the run.
        config: the run.
    """
    record = {"hash": config_hash(config), "torch": torch.__version__, "commit": _commit(), "config": resolved(config)}
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or an installed package
        return None
    return answer.stdout.strip()


def save_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name in the same folder, then rename it.

    Args:
        path: the final name.
        tensors: contiguous, on the CPU.
        metadata: text only.
    """
    temporary = path.with_name(f"{path.name}.partial")
    save_file(dict(tensors), temporary, dict(metadata))
    temporary.replace(path)


def _check_same_run(saved: dict[str, object], config: TrainConfig) -> None:
    now = resolved(config)
    pairs = [(name, saved.get(name), now[name]) for name in _FIXED]
    saved_run = cast("dict[str, object]", saved["run"])
    pairs += [(f"run.{name}", saved_run.get(name), now["run"][name]) for name in ("seed", "stage")]
    for name, before, after in pairs:
        if before != after:
            raise TrainingError(
                f"expected {name} as in the saved state, {before}, got {after}: change it back or start a new run"
            )
