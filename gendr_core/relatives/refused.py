"""Relatives that no GenDR model can be made of, with the reasons; recognised by name or by their files' tensors."""

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A relative that computes something else."""

    key: str
    """Its name on the command line."""
    title: str
    reason: str
    mark: re.Pattern[str]
    """How names of tensors begin that only its file has."""


REFUSED = (
    Refused(
        key="tsd-sr",
        title="TSD-SR",
        reason="its network is the transformer of Stable Diffusion 3, not a UNet",
        mark=re.compile(r"(transformer\.)?transformer_blocks\.\d+\."),
    ),
    Refused(
        key="sinsr",
        title="SinSR",
        reason="its network is a Swin UNet on the latents of a VQ autoencoder, trained by itself, not a UNet of SD2.1",
        mark=re.compile(r"(state_dict/|module\.)*(input|middle|output)_blocks?\.[\d.]+.*relative_position_bias_table"),
    ),
    Refused(
        key="invsr",
        title="InvSR",
        reason="it leaves SD-Turbo as it is and adds noise that a second network predicts, which GenDR's one step has"
        " no place for",
        mark=re.compile(r"(state_dict/|module\.)*encoder\..*time_emb_proj\."),
    ),
    Refused(
        key="adcsr",
        title="AdcSR",
        reason="its UNet is pruned to three quarters of the width, without timestep and prompt, and ends inside the"
        " decoder",
        mark=re.compile(r"(state_dict/|module\.)*body\.\d+\."),
    ),
    Refused(
        key="ctmsr",
        title="CTMSR",
        reason="its network is a UNet of the EDM kind, trained by itself on a VQ autoencoder, not a UNet of SD2.1",
        mark=re.compile(r"(params_ema/|params/|module\.|model\.)*map_layer0\."),
    ),
)


def recognise_refused(names: Collection[str]) -> Refused | None:
    """Return which of them the names of a file's tensors belong to, or None."""
    for refused in REFUSED:
        if any(refused.mark.match(name) for name in names):
            return refused
    return None
