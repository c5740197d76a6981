"""What a network is and how it is run, as frozen values read from a checkpoint: parameterisation is data.

Role: made by ``checkpoint``, read by ``nets`` (the architectures), ``step`` (the rest). No torch here.
Symbols and numbers: docs/algorithm.md, sections A1 and A2.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import CheckpointError

Prediction = Literal["epsilon", "v_prediction"]
Front = Literal["vae16", "pixel_unshuffle8"]
Back = Literal["vae16", "pixel_shuffle8"]

Fold = Literal[
    "time", "prompt", "norms", "scale", "qkv", "feed_forward", "ends", "phases", "prefix", "packed", "fp8", "fused"
]
"""What ``specialise`` can fold: the timestep; keys and values of the prompt; affine parameters of norms; the scale of
attention; queries, keys and values in one; the feed-forward layer's way out; latent scaling and 1x1 convolutions at
both ends; enlarging before a convolution; what guidance would compute twice; weights in the order in which
the processor reads them; weights in 8 bits, the only one that changes what comes out (docs/memory.md); norms with what
follows them, by kernels of our own (docs/speed.md)."""
OPTIONAL_FOLDS: tuple[Fold, ...] = ("fp8", "fused")
"""Only where they are asked for; an error where they cannot be."""
UNET_FOLDS: tuple[Fold, ...] = tuple(fold for fold in get_args(Fold) if fold not in OPTIONAL_FOLDS)
VAE_FOLDS: tuple[Fold, ...] = ("norms", "scale", "qkv", "ends", "phases")
FILE_FOLDS: tuple[Fold, ...] = ("time", "prompt", "norms", "scale", "qkv", "feed_forward", "ends")
"""What a baked file's weights can have: what makes them fewer. The rest is for running only, and done after loading."""

SPATIAL_FACTOR = 8
"""Pixels per cell of pixel (un)shuffle, on each axis, and per latent cell of a model that does not say otherwise."""
CELL_SIZES = (2, 4, 8, 16)
"""Pixels per latent cell, on each axis, that GenDR runs: each stride-2 level of a VAE doubles them."""
PIXEL_CHANNELS = 3 * SPATIAL_FACTOR**2
"""Channels of a pixel-unshuffled RGB image: 192."""
PROMPT_TOKENS = 77
"""Length of a prompt of SD2.1's text encoder."""

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
"""The "scaled linear" noise schedule of Stable Diffusion 2.1: beta is linear in its square root."""

MAX_CHANNELS = 4096
MAX_LEVELS = 8
MAX_LAYERS_PER_BLOCK = 8
"""Caps on what an untrusted file may ask us to build; SD2.1 uses 1280, 4 and 2."""


def alpha_bar(timestep: int) -> float:
    """Return the cumulative signal power of the SD2.1 schedule, prod_{s<=t} (1 - beta_s), in float64.

    Args:
        timestep: 0 to 999.

    Raises:
        CheckpointError: the timestep lies outside the schedule.
    """
    if not 0 <= timestep < NUM_TRAIN_TIMESTEPS:
        raise CheckpointError(f"expected a timestep from 0 to {NUM_TRAIN_TIMESTEPS - 1}, got {timestep}")
    start, end = math.sqrt(BETA_START), math.sqrt(BETA_END)
    betas = ((start + (end - start) * s / (NUM_TRAIN_TIMESTEPS - 1)) ** 2 for s in range(timestep + 1))
    return math.prod(1.0 - beta for beta in betas)


def one_step_coefficients(prediction: Prediction, signal_power: float) -> tuple[float, float]:
    """Return (c_skip, c_out) with z_SR = c_skip * z_LQ + c_out * network(z_LQ).

    With a = signal_power: (1/sqrt(a), -sqrt(1-a)/sqrt(a)) for epsilon, (sqrt(a), -sqrt(1-a)) for v
    (algorithm.md A2; GenDR uses a = 0.5).

    Args:
        prediction: what the network predicts.
        signal_power: alpha_bar at the step, in (0, 1).
    """
    signal, noise = math.sqrt(signal_power), math.sqrt(1.0 - signal_power)
    if prediction == "epsilon":
        return 1.0 / signal, -noise / signal
    return signal, -noise


def _check_widths(what: str, widths: tuple[int, ...], layers: int, groups: int) -> None:
    if not 1 <= len(widths) <= MAX_LEVELS:
        raise CheckpointError(f"expected 1 to {MAX_LEVELS} levels in the {what}, got {len(widths)}")
    if not 1 <= layers <= MAX_LAYERS_PER_BLOCK:
        raise CheckpointError(f"expected 1 to {MAX_LAYERS_PER_BLOCK} layers per block in the {what}, got {layers}")
    if groups < 1:
        raise CheckpointError(f"expected at least 1 normalisation group in the {what}, got {groups}")
    for width in widths:
        if not 1 <= width <= MAX_CHANNELS or width % groups:
            raise CheckpointError(
                f"expected {what} widths from 1 to {MAX_CHANNELS} that divide by {groups} groups, got {widths}"
            )


def _check_channels(what: str, *counts: int) -> None:
    for count in counts:
        if not 1 <= count <= MAX_CHANNELS:
            raise CheckpointError(f"expected 1 to {MAX_CHANNELS} {what}, got {count}")


def _check_cells(cell_px: int) -> None:
    if cell_px not in CELL_SIZES:
        raise CheckpointError(
            f"expected {', '.join(map(str, CELL_SIZES[:-1]))} or {CELL_SIZES[-1]} pixels per latent cell, got {cell_px}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetArch:
    """Shape of an SD2.1-style UNet; the defaults are GenDR's UNet16 (865,979,856 parameters)."""

    in_channels: int = 16
    out_channels: int = 16
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    """Which levels, finest first, follow each resnet with a transformer block."""
    layers_per_block: int = 2
    head_dim: int = 64
    """Channels of one attention head; every width with attention must be a multiple of it."""
    cross_attention_dim: int = 1024
    norm_groups: int = 32

    def __post_init__(self) -> None:
        """Check that the shape can be built.

        Raises:
            CheckpointError: a number is out of bounds or they contradict each other.
        """
        _check_widths("UNet", self.block_out_channels, self.layers_per_block, self.norm_groups)
        _check_channels("UNet channels", self.in_channels, self.out_channels, self.head_dim, self.cross_attention_dim)
        if len(self.attention_levels) != len(self.block_out_channels):
            raise CheckpointError(
                f"expected one attention flag per level, got {len(self.attention_levels)} flags"
                f" for {len(self.block_out_channels)} levels"
            )
        # The mid block always has attention, at the coarsest width.
        attended = [w for w, on in zip(self.block_out_channels, self.attention_levels, strict=True) if on]
        for width in [*attended, self.block_out_channels[-1]]:
            if width % self.head_dim:
                raise CheckpointError(
                    f"expected UNet widths with attention to divide by head_dim {self.head_dim}, got {width}"
                )

    @property
    def num_levels(self) -> int:
        """Number of resolutions, the finest included."""
        return len(self.block_out_channels)


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEArch:
    """Shape of a KL VAE, 2^(levels - 1) pixels per latent cell; the defaults are VAE16 (57,266,643 parameters)."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 128, 256, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    quant_conv: bool = True
    """Whether 1x1 convolutions stand between encoder, latent and decoder."""
    mid_attention: bool = True
    mid_block: bool = True
    """Whether resnets stand between the coarsest level and the latent; attention there needs them."""

    def __post_init__(self) -> None:
        """Check that the shape can be built.

        Raises:
            CheckpointError: a number is out of bounds or they contradict each other.
        """
        _check_widths("VAE", self.block_out_channels, self.layers_per_block, self.norm_groups)
        _check_channels("VAE channels", self.in_channels, self.out_channels, self.latent_channels)
        if self.mid_attention and not self.mid_block:
            raise CheckpointError("expected mid_attention false in a VAE without a middle block, got true")

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell on each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """How a GenDR UNet is run: everything that its file says besides the weights."""

    arch: UNetArch
    timestep: int = 354
    """Fed to the UNet; 354 is where alpha_bar of the SD2.1 schedule is closest to 0.5."""
    prediction: Prediction = "epsilon"
    c_skip: float = math.sqrt(2.0)
    c_out: float = -1.0
    """z_SR = c_skip * z_LQ + c_out * network(z_LQ), on scaled latents."""
    guidance: float = 1.0
    """Default classifier-free guidance weight; 1.0 runs the UNet once."""
    front: Front = "vae16"
    back: Back = "vae16"
    scale: float = 4.0
    """Default output size over input size."""
    latent_scaling: float = 0.2614
    """VAE latents times this are what the UNet sees and gives; pixels are not scaled."""
    cell_px: int = SPATIAL_FACTOR
    """Output pixels per latent cell, on each axis: those of its VAE, 8 with pixel (un)shuffle."""
    title: str = ""
    license: str = ""
    source: str = ""
    trained_on: str = ""

    def __post_init__(self) -> None:
        """Check that the numbers are usable.

        Raises:
            CheckpointError: a value is unknown, not finite or out of range, or front and channels disagree.
        """
        if not 0 <= self.timestep < NUM_TRAIN_TIMESTEPS:
            raise CheckpointError(f"expected timestep from 0 to {NUM_TRAIN_TIMESTEPS - 1}, got {self.timestep}")
        for name, allowed in (("prediction", Prediction), ("front", Front), ("back", Back)):
            if getattr(self, name) not in get_args(allowed):
                raise CheckpointError(
                    f"expected {name} to be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}"
                )
        for name in ("c_skip", "c_out", "guidance", "scale", "latent_scaling"):
            if not math.isfinite(getattr(self, name)):
                raise CheckpointError(f"expected a finite {name}, got {getattr(self, name)}")
        for name in ("scale", "latent_scaling"):
            if getattr(self, name) <= 0.0:
                raise CheckpointError(f"expected {name} above 0, got {getattr(self, name)}")
        for name, pixel_form, channels in (
            ("front", "pixel_unshuffle8", self.arch.in_channels),
            ("back", "pixel_shuffle8", self.arch.out_channels),
        ):
            if getattr(self, name) == pixel_form and channels != PIXEL_CHANNELS:
                raise CheckpointError(f"expected {PIXEL_CHANNELS} channels with {name} {pixel_form}, got {channels}")
            if getattr(self, name) == pixel_form and self.cell_px != SPATIAL_FACTOR:
                raise CheckpointError(f"expected cell_px {SPATIAL_FACTOR} with {name} {pixel_form}, got {self.cell_px}")
        _check_cells(self.cell_px)
        if self.c_skip != 0.0 and self.arch.in_channels != self.arch.out_channels:
            raise CheckpointError(
                f"expected c_skip 0 where input and output channels differ ({self.arch.in_channels} and"
                f" {self.arch.out_channels}), got {self.c_skip}"
            )

    @property
    def needs_vae(self) -> bool:
        """Whether a VAE takes part at either end."""
        return "vae16" in (self.front, self.back)

    @property
    def input_scaling(self) -> float:
        """What the UNet's input is multiplied by; pixels are not scaled."""
        return self.latent_scaling if self.front == "vae16" else 1.0

    @property
    def output_scaling(self) -> float:
        """What the restored latent is divided by; pixels are not scaled."""
        return self.latent_scaling if self.back == "vae16" else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class VAESpec:
    """How a VAE is run: everything that its file says besides the weights."""

    arch: VAEArch
    latent_scaling: float = 0.2614
    title: str = ""
    license: str = ""
    source: str = ""
    trained_on: str = ""

    def __post_init__(self) -> None:
        """Check that the VAE fits the pipeline.

        Raises:
            CheckpointError: the scaling factor is unusable, or a latent cell has a size that GenDR does not run.
        """
        if not (math.isfinite(self.latent_scaling) and self.latent_scaling > 0.0):
            raise CheckpointError(f"expected a finite latent_scaling above 0, got {self.latent_scaling}")
        _check_cells(self.arch.spatial_factor)
