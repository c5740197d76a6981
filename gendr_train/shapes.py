"""The networks of training as shapes: made without memory, counted, and run for their cost.

Role: ``passes`` names networks and inputs, this makes them on torch's meta device and hands them to ``meter``. A shape
is the value that describes a network, so what was measured once is remembered.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from gendr_core.checkpoint import inspect
from gendr_core.nets import VAE, UNet
from gendr_core.spec import UNetArch, VAEArch, VAESpec

from .adversary import FeatureHead, PatchAdversary
from .features import FeatureNetwork, Projection, TimmFeatures, TransformerFeatures, VaeFeatures
from .frames import TrainingFrame, middle
from .lora import acting, adapter_parameters, add_adapters
from .meter import PassCost, measure_pass
from .schema import Precision
from .sections import AdversaryConfig, FeatureConfig, LoraConfig

Part = Literal["whole", "middle", "encode", "decode"]
ROLE = "role"
"""Name of the one adapter of a sketched UNet."""


class ProjectionShape(NamedTuple):
    """REPA's head."""

    channels: int
    hidden: int
    target: int


class HeadShape(NamedTuple):
    """The discriminator's head on features."""

    channels: int


Shape = UNetArch | VAEArch | AdversaryConfig | FeatureConfig | ProjectionShape | HeadShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One pass of one network over the images of a batch."""

    network: Shape
    part: Part = "whole"
    """middle: a UNet up to its middle; encode, decode: one half of a VAE."""
    images: int
    channels: int
    side: int
    """Of the input, in its own cells."""
    tokens: int = 1
    """Of a UNet's prompt."""
    timesteps: int = 1
    """Of a UNet: 1 for all images, or one for each."""
    learns: bool = False
    """Whether parameters get gradients."""
    through: bool = False
    """Whether the input gets gradients."""
    lora: LoraConfig | None = None
    """Adapters beside a frozen UNet; they are what learns."""


@lru_cache(maxsize=64)
def num_parameters(shape: Shape) -> int:
    """Return the number of parameters of a network.

    Args:
        shape: of the network.
    """
    return sum(parameter.numel() for parameter in _network(shape).parameters())


@lru_cache(maxsize=8)
def num_adapter_parameters(arch: UNetArch, lora: LoraConfig, part: Part) -> int:
    """Return the number of parameters of one adapter.

    Args:
        arch: of the UNet.
        lora: size of the adapter.
        part: ``middle`` for an adapter that ends there.

    Raises:
        TrainingError: peft is not installed.
    """
    return sum(parameter.numel() for parameter in adapter_parameters(_adapted(arch, lora, part), ROLE))


def feature_channels(config: FeatureConfig) -> int:
    """Return the channels of the last map of a feature network.

    Args:
        config: of the network; it need not be on this machine.
    """
    return cast("FeatureNetwork", _network(config)).channels[-1]


def features_note(config: FeatureConfig) -> str | None:
    """Return what stands in for a feature network, None where it is itself.

    Args:
        config: of the network; neither it nor its package need be on this machine.
    """
    network = cast("FeatureNetwork", _network(config))
    if config.kind != "vae16" and isinstance(network, VaeFeatures):
        return f"the package {config.kind} is missing: VAE16's encoder stands in for {config.name}"
    if config.kind == "transformers" and not Path(config.name).exists():
        return f"{config.name}: DINOv2-B's shape, unless transformers knows another on this machine"
    if config.kind == "vae16" and inspect(config.name).spec is None:
        return f"{config.name} is not there or not usable: the full-size encoder stands in"
    return None


@lru_cache(maxsize=256)
def cost(one: Pass, *, checkpointing: bool, precision: Precision) -> PassCost:
    """Return what a pass costs.

    Args:
        one: the pass.
        checkpointing: whether the inside of blocks is computed twice.
        precision: of the run.

    Raises:
        TrainingError: peft is not installed.
    """
    network = _network(one.network) if one.lora is None else _adapted(_unet_arch(one), one.lora, one.part)
    inputs = torch.empty(one.images, one.channels, one.side, one.side, device="meta", requires_grad=one.through)
    taps = {middle(network): "middle"} if isinstance(network, UNet) and one.part == "middle" else {}
    measure = partial(
        measure_pass,
        network,
        partial(_run, one, network, inputs),
        differentiates=one.learns or one.through,
        precision=precision,
        frame=partial(TrainingFrame, checkpointing=checkpointing, taps=taps, taps_only=bool(taps)),
    )
    if one.lora is not None:
        return measure(acts=partial(acting, network, ROLE, trains=one.learns))
    network.requires_grad_(one.learns)
    return measure()


def _unet_arch(one: Pass) -> UNetArch:
    assert isinstance(one.network, UNetArch), "only UNets have adapters"
    return one.network


def _run(one: Pass, network: nn.Module, inputs: Tensor, frame: TrainingFrame) -> Tensor:
    if isinstance(network, UNet):
        context = torch.empty(one.images, one.tokens, network.arch.cross_attention_dim, device="meta")
        result = network(inputs, torch.zeros(one.timesteps, device="meta"), context, run=frame)
        return frame.tapped["middle"] if one.part == "middle" else result
    if isinstance(network, VAE):
        # The VAE that is used and not trained runs as the core has it, without recomputation (``FrozenVAE``).
        if one.part == "encode":
            return network.encode(inputs)
        if one.part == "decode":
            return network.decode(inputs)
        return network.decode(network.moments(inputs, run=frame)[0], run=frame)
    if isinstance(network, FeatureNetwork):
        return torch.cat([features.float().flatten() for features in network(inputs)])
    return network(inputs)


@lru_cache(maxsize=16)
def _network(shape: Shape) -> nn.Module:
    with torch.device("meta"):
        match shape:
            case UNetArch():
                return UNet(shape)
            case VAEArch():
                return VAE(shape)
            case AdversaryConfig():
                return PatchAdversary(channels=shape.channels, layers=shape.layers)
            case FeatureConfig():
                return _features(shape)
            case ProjectionShape():
                return Projection(*shape)
            case HeadShape():
                return FeatureHead(shape.channels)


@lru_cache(maxsize=4)
def _adapted(arch: UNetArch, lora: LoraConfig, part: Part) -> UNet:
    with torch.device("meta"):
        unet = UNet(arch)
        add_adapters(unet, [ROLE], lora, encoders=[ROLE] if part == "middle" else [])
    return unet


def _features(config: FeatureConfig) -> FeatureNetwork:
    try:
        if config.kind == "transformers":
            return _transformer_features(config)
        if config.kind == "timm":
            return _timm_features(config)
    except ImportError:
        # A dry run goes on without the package: VAE16's encoder stands in, and ``features_note`` says so.
        return VaeFeatures(VAE(VAEArch()), (0, 1, 2))
    return _vae_features(config)


def _vae_features(config: FeatureConfig) -> FeatureNetwork:
    spec = inspect(config.name).spec
    return VaeFeatures(VAE(spec.arch if isinstance(spec, VAESpec) else VAEArch()), config.layers)


def _transformer_features(config: FeatureConfig) -> FeatureNetwork:
    """Return the model that is on this machine; nothing is downloaded: else DINOv2-B's shape, transformers' default."""
    from transformers import AutoConfig, AutoModel, Dinov2Config

    try:
        found: Any = cast("Any", AutoConfig).from_pretrained(config.name, local_files_only=True)
    except (OSError, ValueError):
        found = Dinov2Config(image_size=518)
    return TransformerFeatures(cast("Any", AutoModel).from_config(found), config.layers)


def _timm_features(config: FeatureConfig) -> FeatureNetwork:
    timm: Any = import_module("timm")
    network: nn.Module = timm.create_model(config.name, pretrained=False, features_only=True)
    return TimmFeatures(network, config.layers)
