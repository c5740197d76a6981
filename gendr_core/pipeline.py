"""The whole restoration: prepare -> encode -> step -> decode -> color. The file to read first."""

import torch
from torch import Tensor

from .color import match_color
from .config import RestoreOptions
from .decode import decode
from .encode import encode
from .errors import OptionError
from .geometry import Extent, output_extent
from .host import Host
from .model import GenDRUNet, GenDRVAE, required_vae
from .prepare import prepare, restore_layout
from .step import one_step
from .tensors import check_image, crop

STAGES_PER_FRAME = 3
"""Units of progress: encode, step and decode."""


def restore(
    image: Tensor,
    unet: GenDRUNet,
    vae: GenDRVAE | None = None,
    options: RestoreOptions | None = None,
    *,
    host: Host | None = None,
) -> Tensor:
    """Return the restored image at its final size.

    Every frame of a batch is restored by itself, so that a frame's result does not depend on its neighbours.

    Args:
        image: [B, H, W, C] in [0, 1], float, any size from 1x1; C is 1 (gray), 3 (RGB) or 4 (RGBA).
        unet: from ``load_unet``.
        vae: from ``load_vae``; needed where ``unet.spec.needs_vae``.
        options: size, colour and guidance; None takes the defaults of ``RestoreOptions``.
        host: progress, cancel and where networks live.

    Returns:
        [B, H', W', C] in [0, 1], float32, CPU, exactly the size that the options ask for.

    Raises:
        ImageError: the image is not one.
        OptionError: an option does not fit the image or the model.
    """
    options, host = options or RestoreOptions(), host or Host()
    check_image(image)
    check_pair(unet, vae)
    extent = output_extent(Extent(height=image.shape[1], width=image.shape[2]), options, unet.spec.scale)
    total = STAGES_PER_FRAME * image.shape[0]
    frames: list[Tensor] = []
    with torch.inference_mode():
        for index, frame in enumerate(image):
            done = index * STAGES_PER_FRAME
            prepared = prepare(frame[None], extent)
            latent = encode(prepared.pixels, unet.spec.front, vae, host=host)
            _report(host, done + 1, total)
            latent = one_step(latent, unet, guidance=options.guidance, host=host)
            _report(host, done + 2, total)
            pixels = crop(decode(latent, unet.spec.back, vae, host=host).cpu(), prepared.padding, extent)
            frames.append(restore_layout(match_color(pixels, prepared.reference, options.color), prepared))
            _report(host, done + 3, total)
    return torch.cat(frames)


def check_pair(unet: GenDRUNet, vae: GenDRVAE | None) -> None:
    """Check that the VAE is the one that the UNet was trained with, as far as their specs tell.

    Raises:
        OptionError: the VAE is missing or makes other latents.
    """
    if not unet.spec.needs_vae:
        return
    channels = unet.spec.arch.in_channels if unet.spec.front == "vae16" else unet.spec.arch.out_channels
    latent_channels = required_vae(vae).spec.arch.latent_channels
    if latent_channels != channels:
        raise OptionError(
            f"expected a VAE with {channels} latent channels, got {latent_channels}: load the UNet's own VAE"
        )


def _report(host: Host, done: int, total: int) -> None:
    host.interrupt.check()
    host.progress.update(done, total)
