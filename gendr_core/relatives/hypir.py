"""HYPIR on SD2 (arXiv:2507.20590): one step from timestep 200; adapters of high rank in the UNet, the VAE untouched.

File: HYPIR_sd2.pth, adapters only, without lists. Their scale is 1: the configuration sets alpha to the rank.
"""

from ..adapters import Adapter, check_layers, merge, split_adapters
from ..errors import CheckpointError
from .relative import SD2_BASE, Bases, Degradation, Merged, Published, Relative, epsilon_coefficients, suffix_layers

TIMESTEP = 200
LAYERS = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
)
"""Layers with adapters, by the ends of their names (``lora_modules`` of its configuration)."""


def merged(published: Published, bases: Bases, degradation: Degradation | None) -> Merged:
    """Return the UNet with its adapters merged, and the base's own VAE.

    Raises:
        CheckpointError: the file is incomplete or does not fit the base.
    """
    del degradation
    found = split_adapters(published.tensors)
    if found.trained:
        raise CheckpointError(
            f"expected adapters only, got {len(found.trained)} other tensors: the file is no HYPIR-SD2"
        )
    layers = found.layers("default")
    check_layers(layers, suffix_layers(bases.unet, LAYERS), "UNet")
    return Merged(unets={"": merge(bases.unet, layers, _scale)}, vae=bases.vae)


def _scale(adapter: Adapter) -> float:
    del adapter
    return 1.0


HYPIR = Relative(
    key="hypir-sd2",
    title="HYPIR-SD2",
    license="HYPIR Software License (non-commercial); base model: CreativeML Open RAIL++-M",
    source="https://github.com/XPixelGroup/HYPIR",
    base=SD2_BASE,
    timestep=TIMESTEP,
    coefficients=epsilon_coefficients(TIMESTEP),
    marks=frozenset(),
    merge=merged,
)
