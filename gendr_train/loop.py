"""The one training loop: batches in order, an update each, and every so often a line, a score, a file.

Role: called by ``cli``; only sequences what the other files do. Runs on whatever accelerate finds. The clock is images
seen: (seed, images) fixes rate, crops, damage and noise, so a resumed run gives the same bits as an unbroken one.
"""

# accelerate and torch.utils.data leave parts of their signatures untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import default_collate

from gendr_core.errors import OptionError
from gendr_core.nets.unet import UNet

from . import checkpoint
from .data.dataset import Batch, TrainingCrops, training_batches
from .ema import Ema
from .errors import TrainingError
from .export import export_weights
from .roles import Autoencoder, Roles, build_roles
from .schema import LossWeights, OptimiserConfig, TrainConfig
from .steps import Losses, to_pair, unet_input, update_losses
from .validate import latent_std, validate, validation_set
from .whitening import whiten_input

logger = logging.getLogger(__name__)

WHITENING_IMAGES = 256
"""Crops that the statistics of the UNet's input are taken from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One process's share of a run: the config and the objects that change."""

    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    roles: Roles
    """``trained`` is wrapped by accelerate."""
    ema: Ema
    optimiser: torch.optim.Optimizer
    validation: dict[str, Batch]

    @property
    def averaged(self) -> Roles:
        """The roles with the averaged weights in place of those in training."""
        return replace(self.roles, trained=self.ema.network)

    @property
    def images_per_update(self) -> int:
        """Images that all processes together see in one update."""
        return self.config.data.batch * self.accelerator.num_processes


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
    session = _open(config, fresh=not resume)
    images = _start(session, resume=resume)
    batches = training_batches(
        config.data, config.degradation, seed=config.run.seed, start=images, stop=config.loop.images
    )
    tally = _Tally()
    step = session.images_per_update
    placed = cast("Iterable[Batch]", session.accelerator.prepare(batches))
    for batch in placed:
        images += step
        tally.add(_update(session, batch, images), step)
        if _crossed(images, step, config.loop.log_every):
            _record(session, "train", images, tally.means())
            tally = _Tally()
        if _crossed(images, step, config.loop.validate_every):
            _record(session, "validation", images, validate(session.averaged, session.validation))
        if should_stop(images):
            break
        if _crossed(images, step, config.loop.save_every):
            _save(session, images)
    _save(session, images)
    return images


def export(config: TrainConfig, path: Path) -> None:
    """Write the averaged weights of the run's saved state as a file for gendr_core.

    Args:
        config: the run.
        path: the file to write.

    Raises:
        TrainingError: there is no saved state, or it belongs to another run.
        OptionError: a latent scaling is to be measured, but there are no validation images.
    """
    session = _open(config, fresh=False)
    images = _start(session, resume=True)
    scaling = session.roles.latent_scaling
    if config.run.stage == "vae16":
        scaling = config.model.latent_scaling or _measured_scaling(session)
    export_weights(path, session.averaged, config, images=images, latent_scaling=scaling)
    logger.info("wrote %s after %d images", path, images)


def _measured_scaling(session: Session) -> float:
    if not session.validation:
        raise OptionError(
            "expected data.validation_folder to measure latents with, got none: or set model.latent_scaling"
        )
    return 1.0 / latent_std(session.averaged, session.validation)


class _Tally:
    """Running means between two log lines."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._updates, self._images = 0, 0
        self._started_s = time.perf_counter()

    def add(self, values: dict[str, float], images: int) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._updates += 1
        self._images += images

    def means(self) -> dict[str, float]:
        """Return the means and the speed; validation and saving count as time."""
        speed = self._images / (time.perf_counter() - self._started_s)
        return {**{name: total / self._updates for name, total in self._sums.items()}, "images_per_s": speed}


def _open(config: TrainConfig, *, fresh: bool) -> Session:
    accelerator = Accelerator(mixed_precision="bf16" if config.loop.precision == "bf16" else "no")
    roles = build_roles(config, accelerator.device)
    if fresh and config.init is None:
        _whiten(config, roles)
    ema = Ema(roles.trained, config.loop.ema_decay)
    options = config.optimiser
    optimiser = torch.optim.AdamW(
        roles.trained.parameters(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )
    trained = cast("nn.Module", accelerator.prepare(roles.trained))
    optimiser = cast("torch.optim.Optimizer", accelerator.prepare(optimiser))
    folder = checkpoint.run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    return Session(
        config=config,
        folder=folder,
        accelerator=accelerator,
        roles=replace(roles, trained=trained),
        ema=ema,
        optimiser=optimiser,
        validation=validation_set(config.data),
    )


def _whiten(config: TrainConfig, roles: Roles) -> None:
    """Set the first layer of the network in training by the statistics of the run's first images."""
    crops = TrainingCrops(config.data, config.degradation, seed=config.run.seed, start=0, stop=WHITENING_IMAGES)
    batch = Batch(*default_collate([crops[index] for index in range(WHITENING_IMAGES)]))
    pair = to_pair(Batch(*(part.to(roles.prompt.device) for part in batch)))
    if isinstance(roles.trained, Autoencoder):
        whiten_input(roles.trained.vae.encoder.conv_in, pair.original)
    elif isinstance(roles.trained, UNet):
        whiten_input(roles.trained.conv_in, unet_input(roles, pair.upsampled))


def _start(session: Session, *, resume: bool) -> int:
    """Bring back saved state, or claim an unused folder; return the images seen so far."""
    path = session.folder / checkpoint.STATE_FILE
    if resume:
        state = checkpoint.load_state(path, session.config)
        checkpoint.restore(state, _unwrapped(session), session.ema, session.optimiser)
        return state.images
    if path.exists():
        raise TrainingError(
            f"expected a run folder without saved state, got {path}: give --resume, or another run.name"
        )
    return 0


def _update(session: Session, batch: Batch, images: int) -> dict[str, float]:
    """Do one optimiser step; return the mean losses, the gradient norm and the rate."""
    config, accelerator = session.config, session.accelerator
    rate = learning_rate(config.optimiser, images, config.loop.images)
    for group in session.optimiser.param_groups:
        group["lr"] = rate
    # Seeded by the clock, so that there is no generator state to save.
    generator = torch.Generator().manual_seed(config.run.seed + images + accelerator.process_index)
    with accelerator.autocast():
        losses = update_losses(session.roles, to_pair(batch), config.losses, generator)
    total = _weighted(losses, config.losses)
    session.optimiser.zero_grad()
    accelerator.backward(total)
    norm = accelerator.clip_grad_norm_(session.roles.trained.parameters(), config.optimiser.clip_norm)
    values = {name: float(loss.detach().mean()) for name, loss in losses.items()}
    values |= {"grad_norm": float(cast("Tensor", norm)), "lr": rate}
    _check_finite(session, batch, images, values)
    session.optimiser.step()
    session.ema.update(_unwrapped(session), images // session.images_per_update)
    return values


def _weighted(losses: Losses, weights: LossWeights) -> Tensor:
    return torch.stack([getattr(weights, name) * loss.mean() for name, loss in losses.items()]).sum()


def _check_finite(session: Session, batch: Batch, images: int, values: dict[str, float]) -> None:
    """Stop before the weights are touched where a loss or the gradient is not finite."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    path = session.folder / f"not_finite_{images}.safetensors"
    tensors = {name: value.cpu().contiguous() for name, value in batch._asdict().items()}
    checkpoint.save_atomically(path, tensors, {"images": str(images)})
    raise TrainingError(
        f"expected finite losses, got {', '.join(f'{name} {values[name]}' for name in wrong)} at {images} images:"
        f" lower optimiser.lr or use precision fp32; the batch is in {path}"
    )


def _unwrapped(session: Session) -> nn.Module:
    return cast("nn.Module", session.accelerator.unwrap_model(session.roles.trained))


def _crossed(images: int, step: int, every: int) -> bool:
    return images // every != (images - step) // every


def _record(session: Session, kind: str, images: int, values: dict[str, float]) -> None:
    """Log a line, and add it to the run's metrics file."""
    if not values or not session.accelerator.is_main_process:
        return
    logger.info("%s %d | %s", kind, images, " | ".join(f"{name} {value:.5g}" for name, value in values.items()))
    with (session.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "images": images, **values}) + "\n")


def _save(session: Session, images: int) -> None:
    if not session.accelerator.is_main_process:
        return
    state = checkpoint.capture(_unwrapped(session), session.ema, session.optimiser, images)
    checkpoint.save_state(session.folder / checkpoint.STATE_FILE, state, session.config)
    checkpoint.save_record(session.folder, session.config)
    logger.info("saved %s at %d images", session.folder / checkpoint.STATE_FILE, images)
