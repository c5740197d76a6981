"""Config -> the stage that it describes.

Role: called by ``loop`` once per run; the one place that knows all stages.
"""

import torch

from ..schema import TrainConfig
from ..settings import (
    AdcSettings,
    BaseSettings,
    CidaSettings,
    PixSettings,
    RestorationSettings,
    Vae16Settings,
)
from .adc import AdcStage
from .base import BaseStage
from .cida import CidaStage
from .pix import PixStage
from .restoration import RestorationStage
from .stage import Stage
from .vae16 import Vae16Stage


def build_stage(config: TrainConfig) -> Stage:
    """Return the stage with weights from the files that the config names, else from the run's seed.

    Args:
        config: the run.

    Raises:
        CheckpointError: a file is not usable.
        TrainingError: a file holds another network than the config says, or a feature network or a text encoder is not
            usable.
    """
    # Layers draw their weights from the global generator: seed it here, and put it back.
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(config.run.seed)  # pyright: ignore[reportUnknownMemberType]
        return _build(config)


def _build(config: TrainConfig) -> Stage:
    settings, checkpointing = config.stage, config.loop.checkpointing
    match settings:
        case Vae16Settings():
            return Vae16Stage(settings, checkpointing=checkpointing)
        case RestorationSettings():
            return RestorationStage(settings, checkpointing=checkpointing)
        case BaseSettings():
            return BaseStage(settings, checkpointing=checkpointing)
        case CidaSettings():
            return CidaStage(settings, checkpointing=checkpointing)
        case AdcSettings():
            return AdcStage(settings, checkpointing=checkpointing)
        case PixSettings():
            return PixStage(settings, checkpointing=checkpointing)
