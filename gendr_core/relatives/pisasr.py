"""PiSA-SR (arXiv:2412.03017): z - network(z) at timestep 1; adapters for pixels and for semantics, the VAE untouched.

File: pisa_sr.pkl, a dict with six lists of layers, two ranks and the UNet's tensors. Two UNets come of it: with both
kinds of adapters (the model itself), and with those for pixels only. Strengths (p, s) of both kinds are

    z_SR = z + p * (z_pixel - z) + s * (z_both - z_pixel),

with z_pixel and z_both the results of the two UNets; p = s = 1 is the model itself, s = 0 with p = 1 the pixel UNet.
"""

from ..adapters import merge, peft_scale, split_adapters
from ..errors import CheckpointError
from .osediff import unet_layers
from .relative import SD2_BASE, Bases, Degradation, Merged, Published, Relative

PIXEL = "pixel"
"""What sets the UNet without semantics apart."""


def merged(published: Published, bases: Bases, degradation: Degradation | None) -> Merged:
    """Return both UNets, and the base's own VAE.

    Raises:
        CheckpointError: the file is incomplete or does not fit the base.
    """
    del degradation
    found = split_adapters(published.group("state_dict_unet"))
    if found.trained:
        raise CheckpointError(
            f"expected adapters only, got {len(found.trained)} other tensors in state_dict_unet: the file is no PiSA-SR"
        )
    pixel = merge(bases.unet, unet_layers(published, found, "_pix"), peft_scale)
    both = merge(pixel, unet_layers(published, found, "_sem"), peft_scale)
    return Merged(unets={"": both, PIXEL: pixel}, vae=bases.vae)


PISASR = Relative(
    key="pisa-sr",
    title="PiSA-SR",
    license="Apache-2.0; base model: CreativeML Open RAIL++-M",
    source="https://github.com/csslc/PiSA-SR",
    base=SD2_BASE,
    timestep=1,
    coefficients=(1.0, -1.0),
    marks=frozenset({"unet_lora_encoder_modules_pix", "unet_lora_encoder_modules_sem"}),
    parts=("", PIXEL),
    merge=merged,
)
