"""Frozen networks whose features are compared: for perceptual losses and for the alignment of REPA.

Role: built by the stages from ``FeatureConfig``; ``losses.perceptual`` and ``losses.alignment`` compare what comes out.
The packages that provide such networks are optional and imported here, when one is asked for.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendr_core.checkpoint import read_vae
from gendr_core.model import resolve_weights
from gendr_core.nets import VAE
from gendr_core.nets.layers import layers_of
from gendr_core.nets.vae import DownStage, Encoder

from .errors import TrainingError
from .frames import TrainingFrame
from .sections import FeatureConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1]: what DINOv2 and most networks of timm were trained on."""
CELL_PX = 16
"""Pixels of the image per token: a patch of 14 px then is 16 px of it, as in REPA (arXiv:2410.06940, appendix)."""


class FeatureNetwork(nn.Module, ABC):
    """Images to feature maps; its weights never change, gradients reach its input."""

    channels: tuple[int, ...]
    """Of every map."""

    def __init__(self, network: nn.Module, channels: tuple[int, ...]) -> None:
        """Freeze ``network``, whose maps have ``channels``."""
        super().__init__()
        self.network = network.requires_grad_(False)
        self.channels = channels
        self.train(False)

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Return itself in evaluation mode, whatever ``mode`` the stage around it goes into."""
        del mode
        return super().train(False)

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return one map [B, C_i, h_i, w_i] per layer of the config.

        Args:
            pixels: [B, 3, H, W] in [-1, 1].
        """


class TransformerFeatures(FeatureNetwork):
    """Patch tokens of a vision transformer, as maps [B, C, H / 16, W / 16], rounded."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, layers: Sequence[int]) -> None:
        """Take over a model of transformers; ``layers`` count its hidden states, patches 0, the last one normalised.

        Raises:
            TrainingError: it does not cut images into patches, or has fewer layers.
        """
        config: Any = network.config
        patch_px: int | None = getattr(config, "patch_size", None)
        if patch_px is None:
            raise TrainingError(f"expected a vision transformer with a patch_size, got {type(network).__name__}")
        super().__init__(network, (int(config.hidden_size),) * len(layers))
        self._patch_px = patch_px
        self._layers = _counted(layers, config.num_hidden_layers + 1)
        # Models whose positions are fixed unless told otherwise; DINOv2 always fits them to the image.
        fits = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if fits else {}
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return one map per layer, as ``FeatureNetwork``."""
        height, width = (max(1, round(side / CELL_PX)) for side in pixels.shape[2:])
        size = (height * self._patch_px, width * self._patch_px)
        resized = F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True)
        normalised = (0.5 * resized + 0.5 - self.mean) / self.std
        outputs = self.network(pixel_values=normalised, output_hidden_states=True, **self._options)
        # The last hidden state comes before the norm that the model ends with, and REPA compares what comes after.
        states = (*outputs.hidden_states[:-1], outputs.last_hidden_state)
        # Patches come last, after the class token and registers where there are any.
        maps = (states[layer][:, -height * width :].transpose(1, 2) for layer in self._layers)
        return [tokens.unflatten(2, (height, width)) for tokens in maps]


class TimmFeatures(FeatureNetwork):
    """Maps of the stages of a network of timm, at the image's own size."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, layers: Sequence[int]) -> None:
        """Take over a network made with ``features_only``; ``layers`` count its stages from the finest, 0.

        Raises:
            TrainingError: it has fewer stages.
        """
        stages: list[int] = cast("Any", network).feature_info.channels()
        counted = _counted(layers, len(stages))
        super().__init__(network, tuple(stages[layer] for layer in counted))
        self._layers = counted
        trained: dict[str, Any] = cast("Any", network).pretrained_cfg
        self.register_buffer("mean", torch.tensor(trained["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(trained["std"])[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return one map per layer, as ``FeatureNetwork``."""
        maps = self.network((0.5 * pixels.float() + 0.5 - self.mean) / self.std)
        return [maps[layer] for layer in self._layers]


class VaeFeatures(FeatureNetwork):
    """What a VAE's encoder makes of an image at each of its levels, [B, C, H / 2^level, W / 2^level]."""

    network: Encoder

    def __init__(self, vae: VAE, layers: Sequence[int]) -> None:
        """Take over the encoder; ``layers`` count its levels from the finest, 0.

        Raises:
            TrainingError: it has fewer levels.
        """
        widths = vae.arch.block_out_channels
        counted = _counted(layers, len(widths))
        super().__init__(vae.encoder, tuple(widths[layer] for layer in counted))
        self._layers = counted

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return one map per layer, as ``FeatureNetwork``; nothing beyond the last of them is computed."""
        stages = layers_of(self.network.down_blocks, DownStage)
        frame = TrainingFrame(taps={stages[i].resnets[-1]: str(i) for i in self._layers}, taps_only=True)
        self.network(pixels, frame)
        return [frame.tapped[str(layer)] for layer in self._layers]


def build_features(config: FeatureConfig) -> FeatureNetwork:
    """Return the network that a config names, frozen, float32, on the CPU.

    A hub name is downloaded by the package that knows it, where it is not there yet.

    Args:
        config: which one, and which of its layers.

    Raises:
        TrainingError: the package or the model is not there, or has fewer layers.
        CheckpointError: the VAE's file cannot be used.
    """
    if config.kind == "vae16":
        file = read_vae(resolve_weights(config.name))
        vae = VAE(file.spec.arch)
        vae.load_state_dict({name: value.float() for name, value in file.state.items()})
        return VaeFeatures(vae, config.layers)
    load, kind = (_transformer, TransformerFeatures) if config.kind == "transformers" else (_timm, TimmFeatures)
    try:
        network = load(config.name)
    except ImportError as error:
        raise TrainingError(
            f"expected the package {config.kind} for features, got: {error}; install it, or choose another kind"
        ) from error
    # What a hub answers for a name that it does not know, and what timm says of one.
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"expected a model that {config.kind} knows, got {config.name!r}: {error}") from error
    return kind(network.float(), config.layers)


class Projection(nn.Module):
    """REPA's head: features of the network in training to the channels of those that they are aligned with.

    Two 1x1 convolutions, SiLU between; 320 -> 1024 -> 768 for SD2.1 and DINOv2-B, as GenDR's authors describe it.
    """

    def __init__(self, channels: int, hidden: int, target_channels: int) -> None:
        """Build both convolutions."""
        super().__init__()
        self.conv_in = nn.Conv2d(channels, hidden, 1)
        self.conv_out = nn.Conv2d(hidden, target_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, target_channels, h, w] of ``features`` [B, channels, h, w]."""
        return self.conv_out(F.silu(self.conv_in(features)))


def _transformer(name: str) -> nn.Module:
    from transformers import AutoModel

    return cast("Any", AutoModel).from_pretrained(name)


def _timm(name: str) -> nn.Module:
    # By name: it needs torchvision, so it is no dependency, and a type checker need not know it.
    timm: Any = import_module("timm")
    return timm.create_model(name, pretrained=True, features_only=True)


def _counted(layers: Sequence[int], count: int) -> list[int]:
    """Return ``layers`` counted from the front.

    Raises:
        TrainingError: one of them lies outside.
    """
    for layer in layers:
        if not -count <= layer < count:
            raise TrainingError(f"expected features.layers from {-count} to {count - 1}, got {layer}")
    return [layer % count for layer in layers]
