"""Stage 4 of 5: latent to pixels. Left neighbour ``step``, right neighbour ``color``."""

import torch.nn.functional as F
from torch import Tensor

from . import graphs
from .errors import ShapeError
from .geometry import Extent
from .host import Meter
from .model import GenDRVAE, required_vae
from .plan import DEFAULT_PLAN, StagePlan
from .precision import device_settings
from .spec import PIXEL_CHANNELS, SPATIAL_FACTOR, Back
from .windows import BandedFrame


def decode(
    latent: Tensor,
    back: Back,
    vae: GenDRVAE | None = None,
    *,
    plan: StagePlan = DEFAULT_PLAN,
    meter: Meter | None = None,
) -> Tensor:
    """Return the image of a latent: through the VAE's decoder, or shuffled back to pixels (GenDR-Pix).

    Args:
        latent: [B, latent_channels, h, w], unscaled, or [B, 192, h, w].
        back: how the model before gives its output.
        vae: needed with back ``vae16``, ignored otherwise.
        plan: how large the VAE's bands are, and whether it computes some things twice.
        meter: told of the work done; knows the host, where networks live.

    Returns:
        [B, 3, H, W], H = h * pixels per latent cell (8 for pixels), nominally in [-1, 1] but not clamped, float32, on
        the network's device.

    Raises:
        OptionError: the back needs a VAE and none was given.
        ShapeError: the latent does not have the channels that the back expects.
    """
    if back == "pixel_shuffle8":
        if latent.shape[1] != PIXEL_CHANNELS:
            raise ShapeError(
                f"expected a latent of {PIXEL_CHANNELS} channels, got {latent.shape[1]}: use the matching model"
            )
        return F.pixel_shuffle(latent, SPATIAL_FACTOR).float()
    vae = required_vae(vae)
    meter = meter or Meter()
    device = meter.host.residency.acquire(vae.network, plan.activation_bytes)
    network = vae.network

    def compute(meter: Meter, inputs: tuple[Tensor, ...]) -> Tensor:
        run = BandedFrame(
            plan.bands, network.operations, meter=meter, device=device, channels_last=network.channels_last
        )
        return network.decode(*inputs, run=run)

    cells = Extent(*latent.shape[2:])
    one_pass = graphs.Pass(network=network, plan=plan, meter=meter, cells=cells, constants=("decode",))
    with device_settings(device, vae.dtype):
        return graphs.run(one_pass, compute, (latent.to(device, vae.dtype),)).float()
