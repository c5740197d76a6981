"""TVT (arXiv:2507.20291): one step from timestep 1 on latents with 4 pixels per cell, for finer structure.

Files: the folder TVTUNet, an SD2.1 UNet with a fifth, finest level; vae.ckpt, a VAE of its own without a middle block,
its tensors under ``vaeDe4.`` in a dict ``state_dict``; model_TVT.pkl, a dict with three lists of layers, a rank and the
UNet's tensors: adapters, and whole layers around the new level, which have adapters besides.
"""

from ..adapters import merge, peft_scale, split_adapters, with_trained
from ..errors import CheckpointError, listed
from .osediff import unet_layers
from .relative import Bases, Degradation, Merged, Published, Relative, epsilon_coefficients

TIMESTEP = 1
TRAINED = ("down_blocks.0.", "up_blocks.3.upsamplers.0.", "up_blocks.4.", "conv_in.", "conv_out.")
"""How names of tensors begin that the file has whole."""


def merged(published: Published, bases: Bases, degradation: Degradation | None) -> Merged:
    """Return the UNet with its trained layers and its adapters merged, and TVT's own VAE.

    Raises:
        CheckpointError: the file is incomplete or does not fit the base.
    """
    del degradation
    unet = split_adapters(published.group("state_dict_unet"))
    layers = unet_layers(published, unet)
    expected = {name for name in bases.unet if name.startswith(TRAINED)}
    missing, unknown = sorted(expected - unet.trained.keys()), sorted(unet.trained.keys() - expected)
    if missing or unknown:
        raise CheckpointError(
            f"expected {', '.join(TRAINED)} of the UNet whole and nothing else; missing are"
            f" {listed(missing) or 'none'}, unknown {listed(unknown) or 'none'}: the file is incomplete, or made"
            " for another UNet"
        )
    return Merged(
        unets={"": merge(with_trained(bases.unet, unet.trained, "UNet"), layers, peft_scale)},
        vae=bases.vae,
    )


TVT = Relative(
    key="tvt",
    title="TVT",
    license="Apache-2.0; base model: CreativeML Open RAIL++-M",
    source="https://github.com/Joyies/TVT",
    base="TVT's own UNet and VAE",
    timestep=TIMESTEP,
    coefficients=epsilon_coefficients(TIMESTEP),
    cell_px=4,
    pickled_vae=True,
    # The second is trained whole and has no adapter, so that its name is as in the UNet.
    marks=frozenset({"unet_lora_others_modules", "state_dict_unet/up_blocks.4.resnets.0.norm1.weight"}),
    merge=merged,
)
