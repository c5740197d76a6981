"""Stage 3 of 5: the one pass through the UNet. Left neighbour ``encode``, right neighbour ``decode``."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import graphs
from .errors import OptionError, ShapeError
from .geometry import Extent, Span
from .host import Meter
from .model import GenDRUNet
from .plan import DEFAULT_PLAN, StagePlan
from .precision import device_settings
from .tiling import run_tiles
from .windows import BandedFrame


def one_step(
    latent: Tensor,
    unet: GenDRUNet,
    *,
    guidance: float | None = None,
    plan: StagePlan = DEFAULT_PLAN,
    meter: Meter | None = None,
    on_part: Callable[[Tensor, Span, Span], None] | None = None,
) -> Tensor:
    """Return the restored latent, z_SR = c_skip * z_LQ + c_out * network(z_LQ, t, prompt) (algorithm.md A2).

    With guidance w other than 1 the network runs once on a batch of both prompts and
    network = n_negative + w * (n_positive - n_negative) (A3).

    Args:
        latent: [B, C, h, w], unscaled; float32.
        unet: the network and how to run it.
        guidance: w; None takes the model's own.
        plan: as a whole or in tiles, how large bands are, what self-attention sees.
        meter: told of the work done; knows the host, where networks live.
        on_part: told of finished tiles, as ``tiling.run_tiles`` does.

    Returns:
        [B, out_channels, h, w], unscaled, float32, on the network's device or where ``plan.tiles`` says.

    Raises:
        ShapeError: the latent does not have the channels of this model.
        OptionError: guidance is asked of a model without a negative prompt.
    """
    spec = unet.spec
    if latent.shape[1] != spec.arch.in_channels:
        raise ShapeError(
            f"expected a latent of {spec.arch.in_channels} channels (front {spec.front}), got {latent.shape[1]}:"
            " encode with the model's own front"
        )
    weight = guidance_weight(unet, guidance)
    meter = meter or Meter()
    device = meter.host.residency.acquire(unet.network, plan.activation_bytes)

    def restored(part: Tensor) -> Tensor:
        with device_settings(device, unet.dtype, repeats=plan.tiles is not None):
            return _restored(part.to(device), unet, weight, plan, meter)

    if plan.tiles is None:
        return restored(latent)
    canvas_device = device if plan.tiles.canvas == "device" else "cpu"
    frames = [
        run_tiles(
            frame[None],
            plan.tiles,
            restored,
            out_channels=spec.arch.out_channels,
            canvas_device=canvas_device,
            on_part=on_part,
        )
        for frame in latent
    ]
    return frames[0] if len(frames) == 1 else torch.cat(frames)


def guidance_weight(unet: GenDRUNet, guidance: float | None) -> float:
    """Return the guidance that ``guidance`` means for this model: None is its own.

    Raises:
        OptionError: it is not 1 and the model has no negative prompt.
    """
    weight = unet.spec.guidance if guidance is None else guidance
    if weight != 1.0 and unet.negative is None:
        raise OptionError(
            f"expected a model with a negative prompt for guidance {weight}, got one without: set guidance to 1"
        )
    return weight


def _restored(latent: Tensor, unet: GenDRUNet, weight: float, plan: StagePlan, meter: Meter) -> Tensor:
    """Return z_SR of ``latent`` [B, C, h, w] on the network's device: float32, unscaled."""
    spec, folded = unet.spec, "ends" in unet.folds
    scaled = latent if folded or spec.input_scaling == 1.0 else latent * spec.input_scaling
    # In place from here on: at this size every copy counts.
    restored = _predict(scaled.to(unet.dtype), unet, weight, plan, meter).float()
    if not folded:
        restored.mul_(spec.c_out / spec.output_scaling)
    if spec.c_skip != 0.0:
        restored.add_(scaled, alpha=spec.c_skip * (spec.input_scaling if folded else 1.0) / spec.output_scaling)
    return restored


def _predict(latent: Tensor, unet: GenDRUNet, weight: float, plan: StagePlan, meter: Meter) -> Tensor:
    """Return the guided prediction, [B, C, h, w] in the dtype of ``latent``."""
    batch, network, timestep = latent.shape[0], unet.network, unet.spec.timestep
    prompts = unet.positive.to(latent).expand(batch, -1, -1)
    twice = unet.negative is not None and weight != 1.0
    if unet.negative is not None and twice:
        prompts = torch.cat([unet.negative.to(latent).expand(batch, -1, -1), prompts])
    # What joins the two predictions: the network itself where they share its beginning, else what follows below.
    guidance = weight if twice and "prefix" in unet.folds else None
    joined = guidance is not None or not twice
    latent = latent if joined else latent.repeat(2, 1, 1, 1)

    def compute(meter: Meter, inputs: tuple[Tensor, ...]) -> Tensor:
        run = BandedFrame(
            plan.bands, network.operations, windows=plan.windows, meter=meter, channels_last=network.channels_last
        )
        latent, prompts = inputs
        return network(latent, timestep, prompts, run=run, guidance=guidance)

    one_pass = graphs.Pass(
        network=network,
        plan=plan,
        meter=meter,
        cells=Extent(*latent.shape[2:]),
        constants=("step", timestep, guidance),
        # Where the timestep is not folded, its embedding begins on the processor.
        recordable=network.time_embedding is None,
    )
    predicted = graphs.run(one_pass, compute, (latent, prompts))
    if joined:
        return predicted
    unguided, guided = predicted.chunk(2)
    return unguided + weight * (guided - unguided)
