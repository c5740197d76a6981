"""Pictures from nothing but prompts: a file of stage base is a text-to-image model too.

Role: behind ``gendr-train sample``; reads exported files, so it shows what users get. The solver is diffusers'
DPM-Solver++ on SD2.1's schedule as it is. Its last step keeps 0.5 % of the signal's power where sampling starts from
pure noise, but training does not rescale it to zero terminal SNR (arXiv:2305.08891), so neither does this.
"""
# diffusers annotates in part only.
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gendr_core.errors import OptionError
from gendr_core.image_io import write_image
from gendr_core.model import GenDRUNet, GenDRVAE, load_unet, load_vae
from gendr_core.spec import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS, SPATIAL_FACTOR, Prediction
from gendr_core.tensors import to_image

from .prompts import TextEncoder
from .rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOptions:
    """Which pictures, and how they are made."""

    captions: tuple[str, ...] = ()
    """One picture each; none makes ``count`` pictures of the prompt in the file."""
    negative: str = ""
    """What guidance leads away from; only beside captions."""
    text_encoder: str | None = None
    """Folder or hub name with ``tokenizer`` and ``text_encoder``; captions need it."""
    count: int = 4
    width_px: int = 512
    height_px: int = 512
    steps: int = 25
    guidance: float = 7.5
    """Weight of the prompt against the negative one, Stable Diffusion's usual; 1 runs the UNet once per step."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that pictures can be made.

        Raises:
            OptionError: captions come without a text encoder, or a number is out of range.
        """
        if self.captions and self.text_encoder is None:
            raise OptionError(f"expected a text encoder for {len(self.captions)} captions, got none: name its folder")
        if not 1 <= self.steps <= NUM_TRAIN_TIMESTEPS:
            raise OptionError(f"expected 1 to {NUM_TRAIN_TIMESTEPS} steps, got {self.steps}")
        if self.count < 1 or not math.isfinite(self.guidance):
            raise OptionError(f"expected a count of at least 1 and finite guidance, got {self.count}, {self.guidance}")
        for side in (self.width_px, self.height_px):
            if side < SPATIAL_FACTOR or side % SPATIAL_FACTOR:
                raise OptionError(f"expected sides that are multiples of {SPATIAL_FACTOR} pixels, got {side}")


class Conditions(NamedTuple):
    """The prompts of the pictures."""

    positive: Tensor
    """[B, tokens, dim] float32, one per picture."""
    negative: Tensor | None
    """[tokens, dim] float32, for all of them; guidance other than 1 needs it."""


def integrate(predict: Callable[[Tensor, int], Tensor], noise: Tensor, steps: int, prediction: Prediction) -> Tensor:
    """Return clean latents, float32: DPM-Solver++ of second order, multistep (arXiv:2211.01095, algorithm 2).

    Args:
        predict: what the network says about (z_t, timestep), of the shape of ``noise``.
        noise: standard normal, of any shape.
        steps: how often ``predict`` is called, from timestep 999 on, at the noise levels of arXiv:2206.00364, eq. 5.
        prediction: what the network predicts.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        algorithm_type="dpmsolver++",
        solver_order=2,
        # Measured on normals of deviation 0.2, 25 steps: 0.2 % off the exact solution; even timesteps are 29 % off.
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(steps)
    # Counted, not looked up: with many steps neighbours are rounded to one timestep.
    scheduler.set_begin_index(0)
    latent = noise.float()
    for timestep in cast("list[int]", cast("Any", scheduler.timesteps).tolist()):
        output = predict(latent, timestep).float()
        latent = cast("Any", scheduler).step(output, timestep, latent, return_dict=False)[0]
    return latent


@torch.inference_mode()
def sample(unet: GenDRUNet, vae: GenDRVAE, conditions: Conditions, options: SampleOptions) -> Tensor:
    """Return pictures [B, H, W, 3] in 0 to 1, float32, on the CPU; each depends on the seed, its prompt and its place.

    Args:
        unet: of stage base, on any device.
        vae: its VAE, on the same device.
        conditions: prompts.
        options: size, steps, guidance and seed.

    Raises:
        OptionError: guidance lacks a negative prompt, or the networks do not belong together.
    """
    _check(unet, vae, conditions, options)
    count, device = len(conditions.positive), next(unet.network.parameters()).device
    size = (options.height_px // SPATIAL_FACTOR, options.width_px // SPATIAL_FACTOR)
    noise = Draws(options.seed, range(count), device).normal(unet.spec.arch.in_channels, *size)
    negative = None if options.guidance == 1.0 else conditions.negative
    positive = conditions.positive.to(device, unet.dtype)
    prompts = positive if negative is None else torch.cat([negative.to(positive).expand_as(positive), positive])

    def predict(latent: Tensor, timestep: int) -> Tensor:
        latent = latent.to(unet.dtype)
        if negative is None:
            return unet.network(latent, timestep, prompts)
        without, prompted = unet.network(latent.repeat(2, 1, 1, 1), timestep, prompts).float().chunk(2)
        return without + options.guidance * (prompted - without)

    latents = integrate(predict, noise, options.steps, unet.spec.prediction) / unet.spec.output_scaling
    # One by one: the decoder's memory is that of one picture.
    return torch.cat([to_image(vae.network.decode(latent[None].to(vae.dtype))).cpu() for latent in latents])


def write_samples(path: str | Path, unet_file: str, vae_file: str, options: SampleOptions, *, device: str) -> None:
    """Write one picture with all samples side by side, as square as their number allows; whole or not at all.

    Args:
        path: of the picture, such as samples.png.
        unet_file: exported by stage base.
        vae_file: exported by stage vae16, the one it was trained with.
        options: captions, size, steps, guidance and seed.
        device: where the networks run.

    Raises:
        CheckpointError: a file is not usable.
        OptionError: the networks do not belong together, or guidance lacks a negative prompt.
        TrainingError: the text encoder is not usable.
        ImageError: the picture cannot be written.
    """
    unet, vae = load_unet(unet_file, device=device, folds=()), load_vae(vae_file, device=device)
    write_image(path, as_grid(sample(unet, vae, conditions_of(unet, options), options)))


def conditions_of(unet: GenDRUNet, options: SampleOptions) -> Conditions:
    """Return the captions' prompts or, without captions, the file's own.

    Args:
        unet: with its prompts.
        options: captions, text encoder and count.

    Raises:
        TrainingError: the text encoder is not usable.
    """
    if options.text_encoder is None or not options.captions:
        return Conditions(unet.positive.expand(options.count, -1, -1), unet.negative)
    encoder = TextEncoder.load(options.text_encoder, unet.spec.arch.cross_attention_dim)
    embedded = encoder.encode((*options.captions, options.negative), next(unet.network.parameters()).device)
    return Conditions(embedded[:-1], embedded[-1])


def as_grid(images: Tensor) -> Tensor:
    """Return [1, rows * H, columns * W, C] of ``images`` [B, H, W, C], row by row; what stays empty is black."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    filled = F.pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - count))
    # One row of pixels of the grid crosses all columns.
    crossing = filled.reshape(rows, columns, height, width, channels).transpose(1, 2)
    return crossing.reshape(1, rows * height, columns * width, channels)


def _check(unet: GenDRUNet, vae: GenDRVAE, conditions: Conditions, options: SampleOptions) -> None:
    spec, latents = unet.spec, vae.spec.arch.latent_channels
    if (spec.front, spec.back) != ("vae16", "vae16") or (spec.arch.in_channels, spec.arch.out_channels) != (
        latents,
    ) * 2:
        raise OptionError(
            f"expected a UNet on the VAE's {latents} latent channels, got front {spec.front}, back {spec.back} with"
            f" {spec.arch.in_channels} channels in and {spec.arch.out_channels} out: take both files of one training"
        )
    if options.guidance != 1.0 and conditions.negative is None:
        raise OptionError(f"expected a negative prompt for guidance {options.guidance:g}, got none: set guidance to 1")
