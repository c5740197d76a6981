"""The state of a run on disk: everything that resuming needs, replaced as a whole or not at all.

Role: used by ``loop``. accelerate writes and reads it, so that it is the same for one process and for every engine that
spreads a run over several; weights for use are another thing (``Stage.export``). Random numbers need no state: crops,
damage and noise are functions of (seed, images seen).
"""

# accelerate leaves parts of its signatures untyped.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare

from .config import config_hash, resolved
from .data.dataset import Batch
from .errors import TrainingError
from .schema import TrainConfig

STATE = "state"
"""Folder inside the run's folder."""
RECORD = "run.json"
_FIXED = ("network", "vae", "base", "teacher", "lora", "adversary", "alignment", "distillation", "prompt")
"""Values of a stage that the saved weights depend on; the seed and the stage too."""


def run_folder(config: TrainConfig) -> Path:
    """Return the folder of the run's files.

    Args:
        config: the run.
    """
    return Path(config.run.output) / config.run.name


def save_state(accelerator: Accelerator, config: TrainConfig, images: int) -> Path:
    """Write the state of everything that was prepared or registered; every process calls it.

    The old state stays until the new one is whole.

    Args:
        accelerator: of the run.
        config: the run.
        images: images seen.

    Returns:
        The folder written.
    """
    folder = run_folder(config)
    new, state, old = (folder / name for name in (f"{STATE}.new", STATE, f"{STATE}.old"))
    if accelerator.is_main_process:
        shutil.rmtree(new, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(new))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        record = {"images": images, "config": resolved(config), "config_hash": config_hash(config), "commit": _commit()}
        (new / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
        if state.exists():
            shutil.rmtree(old, ignore_errors=True)
            state.rename(old)
        new.rename(state)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return state


def save_batch(path: Path, batch: Batch) -> None:
    """Write a batch as safetensors, to look at what broke a run.

    Args:
        path: the file.
        batch: on any device.
    """
    tensors = {"original": batch.original, "damaged": batch.damaged, "position": batch.position}
    temporary = path.with_name(f"{path.name}.partial")
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)
    temporary.replace(path)


def has_state(config: TrainConfig) -> bool:
    """Return whether the run's folder holds a saved state.

    Args:
        config: the run.
    """
    return _newest(config) is not None


def load_state(accelerator: Accelerator, config: TrainConfig) -> int:
    """Bring back a saved state into everything that is prepared or registered; return the images seen.

    Args:
        accelerator: of the run.
        config: the run; its seed, stage and networks must be those of the state.

    Raises:
        TrainingError: there is no state, it belongs to another run, or it is damaged.
    """
    folder = _newest(config)
    if folder is None:
        raise TrainingError(
            f"expected saved state in {run_folder(config) / STATE}, got none: start the run without --resume"
        )
    try:
        record = cast("dict[str, Any]", json.loads((folder / RECORD).read_text(encoding="utf-8")))
        images, saved = int(record["images"]), cast("dict[str, Any]", record["config"])
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder, error) from error
    _expect_same(saved, resolved(config), folder)
    try:
        accelerator.load_state(str(folder))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    return images


def _newest(config: TrainConfig) -> Path | None:
    """Return the whole state: a process that was killed between two renames leaves the old one aside."""
    folders = (run_folder(config) / name for name in (STATE, f"{STATE}.old"))
    return next((folder for folder in folders if (folder / RECORD).exists()), None)


def _damaged(folder: Path, error: Exception) -> TrainingError:
    return TrainingError(f"expected a saved state, got a damaged or foreign one in {folder}: {error}")


def _expect_same(saved: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    stage = config["run"]["stage"]
    pairs = {f"run.{key}": (saved["run"].get(key), config["run"][key]) for key in ("seed", "stage")}
    for key in _FIXED:
        if key in config[stage]:
            pairs[f"{stage}.{key}"] = (saved.get(stage, {}).get(key), config[stage][key])
    for name, (before, now) in pairs.items():
        if before != now:
            raise TrainingError(
                f"expected {name} as in the saved state, {before}, got {now}: {folder} is another run's"
            )


def _commit() -> str:
    """Return the commit of the code, or "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
