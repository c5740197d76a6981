"""OSEDiff (arXiv:2406.08177): one step from timestep 999; adapters in the UNet and in the VAE's encoder.

File: osediff.pkl, a dict with three lists of layers, a rank, and the tensors of UNet and VAE. ``conv_in`` of the UNet
is trained as a whole and has an adapter besides.
"""

from ..adapters import Adapted, Adapter, check_layers, merge, peft_scale, split_adapters, with_trained
from .relative import SD2_BASE, Bases, Degradation, Merged, Published, Relative, epsilon_coefficients

UNET_PARTS = ("encoder", "decoder", "others")
TIMESTEP = 999


def merged(published: Published, bases: Bases, degradation: Degradation | None) -> Merged:
    """Return the UNet and the VAE with their adapters merged.

    Raises:
        CheckpointError: the file is incomplete or does not fit the base.
    """
    del degradation
    unet = split_adapters(published.group("state_dict_unet"))
    layers = unet_layers(published, unet)
    vae = split_adapters(published.group("state_dict_vae"))
    vae_layers = vae.layers("default_encoder")
    check_layers(vae_layers, published.names("vae_lora_encoder_modules"), "VAE")
    return Merged(
        unets={"": merge(with_trained(bases.unet, unet.trained, "UNet"), layers, peft_scale)},
        vae=merge(with_trained(bases.vae, vae.trained, "VAE"), vae_layers, peft_scale),
    )


def unet_layers(published: Published, unet: Adapted, kind: str = "") -> dict[str, Adapter]:
    """Return the UNet's adapters of all parts, by layer.

    Args:
        published: the file, which lists the layers that have some.
        unet: its tensors of the UNet.
        kind: how the names of the parts go on, where a file has several adapters of a layer.

    Raises:
        CheckpointError: a layer that is listed has none, or the other way round.
    """
    layers = unet.layers(*(f"default_{part}{kind}" for part in UNET_PARTS))
    named = {layer for part in UNET_PARTS for layer in published.names(f"unet_lora_{part}_modules{kind}")}
    check_layers(layers, named, f"UNet{kind}")
    return layers


OSEDIFF = Relative(
    key="osediff",
    title="OSEDiff",
    license="Apache-2.0; base model: CreativeML Open RAIL++-M",
    source="https://github.com/cswry/OSEDiff",
    base=SD2_BASE,
    timestep=TIMESTEP,
    coefficients=epsilon_coefficients(TIMESTEP),
    marks=frozenset({"unet_lora_encoder_modules", "vae_lora_encoder_modules"}),
    merge=merged,
)
