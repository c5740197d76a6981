"""Several roles on one UNet: a frozen base and, per role, low-rank adapters (LoRA, arXiv:2106.09685) made by peft.

Role: used by stage cida, whose generator, scores and discriminator are adapters of one base. ``acting`` chooses the one
that a pass goes through, ``merged_state`` makes a plain UNet of it for ``export``.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import TrainingError
from .sections import LoraConfig

_ENCODER = r"down_blocks|mid_block"
_LAYERS = (
    r"to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2"
    r"|conv1|conv2|conv_shortcut|(down|up)samplers\.0\.conv"
)
"""Every layer that mixes channels but those of the time embedding."""


@dataclass(slots=True)
class _Switch:
    """What of a network's adapters is in use. All adapted layers share one, so that turning it is one assignment."""

    names: tuple[str, ...]
    scale: float
    """Of the product of the two low-rank matrices: alpha / rank."""
    active: list[str]
    """At most one name; peft's layers read this very list."""
    trains: bool


class AdapterLinear(nn.Linear):
    """One of the two matrices of an adapter, which learns only where the pass says so."""

    switch: _Switch

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out] of [..., in]."""
        return F.linear(input, self.weight if self.switch.trains else self.weight.detach())


class AdapterConv(nn.Conv2d):
    """As ``AdapterLinear``, of a convolution."""

    switch: _Switch

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, out, H', W'] of [B, in, H, W]."""
        return self._conv_forward(input, self.weight if self.switch.trains else self.weight.detach(), None)


_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: AdapterLinear, nn.Conv2d: AdapterConv}
"""What takes the place of the layers that peft makes."""


def add_adapters(unet: nn.Module, names: Sequence[str], lora: LoraConfig, *, encoders: Collection[str] = ()) -> None:
    """Freeze a UNet and put adapters beside its layers, in place.

    Afterwards no adapter acts. The first matrix of an adapter is random, from torch's global generator, the second is
    zero: every adapter starts as the base. Parameters of the base are found under other names: ``<layer>.base_layer``.

    Args:
        unet: a ``gendr_core.nets.UNet`` without adapters.
        names: one adapter each.
        lora: their size.
        encoders: those of ``names`` that are only used up to the middle of the UNet, and have nothing on the way up.

    Raises:
        TrainingError: peft is not installed.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise TrainingError("expected the package peft for adapters, found none: pip install peft") from error
    for name in names:
        inner, outer = (_ENCODER, "conv_in") if name in encoders else (f"{_ENCODER}|up_blocks", "conv_in|conv_out")
        targets = rf"{outer}|({inner})\..*\.({_LAYERS})"
        inject_adapter_in_model(PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets), unet, name)
        # peft leaves its config there and warns when it finds the last one's; what we need of it is in the switch.
        delattr(unet, "peft_config")
    switch = _Switch(names=tuple(names), scale=lora.alpha / lora.rank, active=[], trains=False)
    cast("Any", unet).lora_switch = switch
    unet.requires_grad_(False)
    for layer in (cast("Any", module) for module in unet.modules() if hasattr(module, "lora_A")):
        layer._active_adapter = switch.active
        for half in (*layer.lora_A.values(), *layer.lora_B.values()):
            # In place, so that the layer keeps its weights and its name.
            half.__class__ = _OURS[type(half)]
            half.switch = switch
            half.requires_grad_(True)


@contextmanager
def acting(unet: nn.Module, adapter: str, *, trains: bool) -> Generator[Callable[[], AbstractContextManager[object]]]:
    """Let passes inside go through one adapter; gives what enters the same state again, for ``TrainingFrame``.

    Gradients flow to the inputs in any case. They reach the adapter's parameters only if it trains, those of the base
    and of other adapters never. Passes of several adapters may be followed by one backward. Inside an adapter that does
    not train, layers see detached weights: ``requires_grad`` is never switched, which wrappers for many devices
    (DDP, FSDP, ZeRO) would not survive.

    Args:
        unet: with adapters.
        adapter: the name of one.
        trains: whether it learns from what is computed inside.

    Raises:
        TrainingError: there is no such adapter.
    """
    switch = _switch(unet, adapter)
    before = switch.active.copy(), switch.trains
    switch.active[:], switch.trains = [adapter], trains
    try:
        yield partial(acting, unet, adapter, trains=trains)
    finally:
        switch.active[:], switch.trains = before


@contextmanager
def without_adapters(unet: nn.Module) -> Generator[Callable[[], AbstractContextManager[object]]]:
    """Let passes inside go through the frozen base alone; otherwise as ``acting``.

    Args:
        unet: with adapters.

    Raises:
        TrainingError: it has none.
    """
    switch = _switch(unet)
    before = switch.active.copy()
    switch.active.clear()
    try:
        yield partial(without_adapters, unet)
    finally:
        switch.active[:] = before


def adapter_parameters(unet: nn.Module, adapter: str) -> list[nn.Parameter]:
    """Return the parameters of one adapter, in the order of the layers.

    Args:
        unet: with adapters.
        adapter: the name of one.

    Raises:
        TrainingError: there is no such adapter.
    """
    _switch(unet, adapter)
    ends = tuple(f".lora_{half}.{adapter}.weight" for half in "AB")
    return [parameter for name, parameter in unet.named_parameters() if name.endswith(ends)]


def merged_state(unet: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Return the weights of a plain UNet that does what the base does with one adapter: W + alpha / rank * B A.

    Args:
        unet: with adapters.
        adapter: the name of one.

    Returns:
        float32 tensors under diffusers names; unchanged float32 weights are the base's own, not copies.

    Raises:
        TrainingError: there is no such adapter.
    """
    scale = _switch(unet, adapter).scale
    state: dict[str, Tensor] = unet.state_dict()
    merged: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        value = value.float()
        layer = name.removesuffix(".base_layer.weight")
        down, up = (state.get(f"{layer}.lora_{half}.{adapter}.weight") for half in "AB")
        if layer != name and down is not None and up is not None:
            # A convolution's B is 1x1: composing them is a product over the channels between.
            product = up.float().flatten(1) @ down.float().flatten(1)
            value = value + scale * product.reshape(value.shape)
        merged[name.replace(".base_layer.", ".")] = value
    return merged


def _switch(unet: nn.Module, adapter: str | None = None) -> _Switch:
    switch: _Switch | None = getattr(unet, "lora_switch", None)
    if switch is None:
        raise TrainingError("expected a UNet with adapters, got one without: call add_adapters first")
    if adapter is not None and adapter not in switch.names:
        raise TrainingError(f"expected one of the adapters {', '.join(switch.names)}, got {adapter!r}")
    return switch
