"""Stage 2 of 5: pixels to latent. Left neighbour ``prepare``, right neighbour ``step``."""

import torch.nn.functional as F
from torch import Tensor

from . import graphs
from .geometry import Extent
from .host import Meter
from .model import GenDRVAE, required_vae
from .plan import DEFAULT_PLAN, StagePlan
from .precision import device_settings
from .spec import SPATIAL_FACTOR, Front
from .windows import BandedFrame


def encode(
    pixels: Tensor,
    front: Front,
    vae: GenDRVAE | None = None,
    *,
    plan: StagePlan = DEFAULT_PLAN,
    meter: Meter | None = None,
) -> Tensor:
    """Return the latent of an image: the VAE's posterior mode, or the pixels unshuffled by 8 (GenDR-Pix).

    Args:
        pixels: [B, 3, H, W] in [-1, 1], float32, sides multiples of the pixels per latent cell.
        front: how the model that follows takes its input.
        vae: needed with front ``vae16``, ignored otherwise.
        plan: how large the VAE's bands are.
        meter: told of the work done; knows the host, where networks live.

    Returns:
        [B, latent_channels, h, w], unscaled, with H = h * pixels per cell, or [B, 192, H/8, W/8]; float32, on the CPU
        or the network's device.

    Raises:
        OptionError: the front needs a VAE and none was given.
    """
    if front == "pixel_unshuffle8":
        return F.pixel_unshuffle(pixels, SPATIAL_FACTOR)
    vae = required_vae(vae)
    meter = meter or Meter()
    device = meter.host.residency.acquire(vae.network, plan.activation_bytes)
    network, (height, width) = vae.network, pixels.shape[2:]

    def compute(meter: Meter, inputs: tuple[Tensor, ...]) -> Tensor:
        run = BandedFrame(
            plan.bands, network.operations, meter=meter, device=device, channels_last=network.channels_last
        )
        return network.encode(*inputs, run=run)

    cell_px = vae.spec.arch.spatial_factor
    cells = Extent(height // cell_px, width // cell_px)
    one_pass = graphs.Pass(network=network, plan=plan, meter=meter, cells=cells, constants=("encode",))
    with device_settings(device, vae.dtype):
        return graphs.run(one_pass, compute, (pixels.to(device, vae.dtype),)).float()
