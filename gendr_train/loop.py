"""The one training loop: batches in order, an update each, and every so often a line, a score, a picture, a file.

Role: called by ``cli``; only sequences what the other files do. accelerate decides where and over how many processes it
runs. The clock is images seen: (seed, images) fixes rate, crops, damage and noise, so a resumed run gives the same bits
as an unbroken one, and several processes the losses of one at the same batch in all.
"""

# accelerate and torch.utils.data leave parts of their signatures untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from . import checkpoint
from .config import config_hash
from .data.damage import damage_batch
from .data.dataset import Batch, TrainingCrops, collate, training_batches
from .ema import Ema
from .errors import TrainingError
from .record import Recorder, Tally
from .rng import Draws
from .schema import OptimiserConfig, TrainConfig
from .stages.build import build_stage
from .stages.stage import Losses, Stage
from .validate import validate, validation_set

logger = logging.getLogger(__name__)

BEGIN_IMAGES = 256
"""Crops that a fresh stage takes its statistics from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One process's share of a run: the config and the objects that change."""

    config: TrainConfig
    accelerator: Accelerator
    stage: Stage
    wrapped: nn.Module
    """The stage as the engine wants it called."""
    ema: Ema
    optimiser: torch.optim.Optimizer
    validation: dict[str, Batch]
    recorder: Recorder

    @property
    def images_per_batch(self) -> int:
        """Images that all processes together see at once."""
        return self.config.data.batch * self.accelerator.num_processes

    @property
    def images_per_update(self) -> int:
        """Images between two optimiser steps."""
        return self.images_per_batch * self.config.loop.accumulate


def learning_rate(optimiser: OptimiserConfig, images: int, total_images: int) -> float:
    """Return the rate: linear from 0 over the warm-up, then half a cosine from ``lr`` to ``final_lr``.

    Args:
        optimiser: rates and warm-up.
        images: images seen, this update's included.
        total_images: length of the run.
    """
    if images < optimiser.warmup_images:
        return optimiser.lr * images / optimiser.warmup_images
    done = (images - optimiser.warmup_images) / max(1, total_images - optimiser.warmup_images)
    return optimiser.final_lr + 0.5 * (optimiser.lr - optimiser.final_lr) * (1.0 + math.cos(math.pi * min(1.0, done)))


def train(config: TrainConfig, *, resume: bool, should_stop: Callable[[int], bool]) -> int:
    """Run until the config's number of images, or until asked to stop; return the images seen. State is saved.

    Args:
        config: the run.
        resume: go on from saved state; without it, the run's folder must not hold any.
        should_stop: asked after every update with the images seen; true saves and returns.

    Raises:
        TrainingError: a loss or gradient is not finite (the batch is saved), or the saved state does not fit.
    """
    if not resume and checkpoint.has_state(config):
        raise TrainingError(
            f"expected a run folder without saved state, got {checkpoint.run_folder(config)}:"
            " give --resume, or another run.name"
        )
    session = _open(config, fresh=not resume)
    images = checkpoint.load_state(session.accelerator, config) if resume else 0
    tally = Tally()
    step = session.images_per_batch
    with session.recorder:
        for batch in _batches(session, images):
            images += step
            tally.add(_update(session, batch, images), step)
            if not session.accelerator.sync_gradients:
                continue
            if _crossed(images, session.images_per_update, config.loop.log_every):
                session.recorder.values("train", images, tally.means())
                tally = Tally()
            if _crossed(images, session.images_per_update, config.loop.validate_every):
                _validate(session, images)
            if should_stop(images):
                break
            if _crossed(images, session.images_per_update, config.loop.save_every):
                _save(session, images)
    _save(session, images)
    return images


def export(config: TrainConfig, path: Path) -> None:
    """Write the averaged weights of the run's saved state as a file for gendr_core.

    Args:
        config: the run.
        path: the file to write.

    Raises:
        TrainingError: there is no saved state, it belongs to another run, or latents cannot be measured.
    """
    session = _open(config, fresh=False)
    images = checkpoint.load_state(session.accelerator, config)
    source = f"{config.export.source} (config {config_hash(config)}, {images} images)".strip()
    about = replace(config.export, source=source)
    with session.ema.in_place():
        for batch in list(session.validation.values())[:1]:
            session.stage.measure(_moved(batch, session.accelerator.device))
        if session.accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            session.stage.export(path, about)
            logger.info("wrote %s after %d images", path, images)
    session.accelerator.wait_for_everyone()


def _open(config: TrainConfig, *, fresh: bool) -> Session:
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        mixed_precision="bf16" if config.loop.precision == "bf16" else "no",
        gradient_accumulation_steps=config.loop.accumulate,
    )
    stage = build_stage(config).to(accelerator.device)
    if fresh:
        stage.begin(partial(_first_images, config, accelerator.device))
    options = config.optimiser
    groups = [
        {"params": role.parameters, "lr": options.lr * role.rate, "rate": role.rate} for role in stage.roles().values()
    ]
    optimiser = torch.optim.AdamW(groups, betas=options.betas, weight_decay=options.weight_decay, fused=True)
    wrapped, optimiser = accelerator.prepare(stage, optimiser)
    ema = Ema(stage.roles()[stage.averaged].parameters, config.loop.ema_decay)
    accelerator.register_for_checkpointing(ema)
    return Session(
        config=config,
        accelerator=accelerator,
        stage=stage,
        wrapped=cast("nn.Module", wrapped),
        ema=ema,
        optimiser=cast("torch.optim.Optimizer", optimiser),
        validation=validation_set(config.data),
        recorder=Recorder(checkpoint.run_folder(config), active=accelerator.is_main_process),
    )


def _first_images(config: TrainConfig, device: torch.device) -> Batch:
    crops = TrainingCrops(config.data, config.degradation, seed=config.run.seed, start=0, stop=BEGIN_IMAGES)
    return _arrived(config, collate([crops[index] for index in range(BEGIN_IMAGES)]), device)


def _batches(session: Session, images: int) -> Iterable[Batch]:
    """Return this process's batches from ``images`` on; a remainder smaller than an update is left out."""
    config, step = session.config, session.images_per_update
    stop = images + (config.loop.images - images) // step * step
    batches = training_batches(config.data, config.degradation, seed=config.run.seed, start=images, stop=stop)
    return cast("Iterable[Batch]", session.accelerator.prepare(batches))


def _update(session: Session, batch: Batch, images: int) -> dict[str, float]:
    """Add a batch's gradients, and do an optimiser step where enough are in; return mean losses, norms and the rate."""
    config, accelerator = session.config, session.accelerator
    batch = _arrived(config, batch, accelerator.device)
    draws = Draws(config.run.seed, cast("list[int]", batch.position.tolist()), accelerator.device)
    with accelerator.accumulate(session.wrapped):
        losses = cast("Losses", session.wrapped(batch, draws, images))
        total = torch.stack([session.stage.weights[name] * loss.mean() for name, loss in losses.items()]).sum()
        accelerator.backward(total)
        means = torch.stack([loss.detach().float().mean() for loss in losses.values()])
        means = cast("Tensor", accelerator.reduce(means, reduction="mean"))
        values = dict(zip(losses, cast("list[float]", means.tolist()), strict=True))
        if accelerator.sync_gradients:
            values |= _clip(session)
            values["lr"] = _set_rates(session, images)
        _check_finite(session, batch, images, values)
        session.optimiser.step()
        session.optimiser.zero_grad()
    if accelerator.sync_gradients:
        session.ema.update(images // session.images_per_update)
    return values


def _clip(session: Session) -> dict[str, float]:
    """Bound the gradient of each role by itself, so that none takes from another; return the norms before."""
    limit = session.config.optimiser.clip_norm
    norms: dict[str, float] = {}
    for name, role in session.stage.roles().items():
        norm = cast("Tensor | float | None", session.accelerator.clip_grad_norm_(role.parameters, limit))
        norms[f"{name}/grad_norm"] = 0.0 if norm is None else float(norm)
    return norms


def _set_rates(session: Session, images: int) -> float:
    rate = learning_rate(session.config.optimiser, images, session.config.loop.images)
    for group in session.optimiser.param_groups:
        group["lr"] = rate * group["rate"]
    return rate


def _check_finite(session: Session, batch: Batch, images: int, values: dict[str, float]) -> None:
    """Stop before the weights are touched where a loss or a gradient is not finite."""
    wrong = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    name = f"not_finite_{images}_{session.accelerator.process_index}.safetensors"
    path = checkpoint.run_folder(session.config) / name
    checkpoint.save_batch(path, batch)
    raise TrainingError(
        f"expected finite losses, got {', '.join(wrong)} at {images} images:"
        f" lower optimiser.lr or use precision fp32; the batch is in {path}"
    )


def _validate(session: Session, images: int) -> None:
    with session.ema.in_place():
        outcome = validate(session.stage, session.validation, session.accelerator.device)
    session.recorder.values("validation", images, outcome.scores)
    pictures = {name: picture[: session.config.loop.pictures] for name, picture in outcome.pictures.items()}
    session.recorder.pictures(images, pictures)


def _save(session: Session, images: int) -> None:
    folder = checkpoint.save_state(session.accelerator, session.config, images)
    logger.info("saved %s at %d images", folder, images)


def _arrived(config: TrainConfig, batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device of the networks, damaged there where the workers have not done it."""
    batch = _moved(batch, device)
    if config.data.damage_on == "worker":
        return batch
    damaged = damage_batch(batch.original, batch.position, config.degradation, config.run.seed)
    return batch._replace(damaged=damaged)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        original=batch.original.to(device),
        damaged=batch.damaged.to(device),
        position=batch.position,
        caption=batch.caption,
    )


def _crossed(images: int, step: int, every: int) -> bool:
    return images // every != (images - step) // every
