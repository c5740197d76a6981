"""How much memory a weight file will take when it is run, by its header.

Role: asks ``planner``, as ``gendr plan`` does, about one network and the usual other one, without memory.
"""

from dataclasses import dataclass

import torch

from ..config import MAX_SCALE, MIN_SCALE, MemoryOptions, RestoreOptions
from ..errors import GenDRError, OutOfMemoryError
from ..geometry import Extent
from ..header import Header
from ..layouts import PROMPT_NAMES
from ..model import GenDRUNet, GenDRVAE, runnable_folds
from ..plan import Plan
from ..planner import Planner, Task
from ..sketch import UNetKind, VAEKind, sketched_unet, sketched_vae
from ..spec import PROMPT_TOKENS, UNET_FOLDS, VAE_FOLDS, ModelSpec, UNetArch, VAEArch, VAESpec

DEVICE, DTYPE = "cpu", torch.float32
SIZES = {1: Extent(1024, 1024), 8: Extent(2160, 3840)}
"""Outputs to plan for, by about how many megapixels they have."""
PLENTY_BYTES = 2**62
SD_VAE = VAEArch(latent_channels=4, block_out_channels=(128, 256, 512, 512))
"""The VAE of SD 1 and 2, which relatives work on; 83,653,863 parameters."""
TVT_VAE = VAEArch(latent_channels=4, block_out_channels=(128, 256, 256), mid_attention=False, mid_block=False)
"""That of TVT, the one relative with cells of 4 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Memory for one output size: weights and activations together, at the peak."""

    megapixels: int
    output: str
    peak_bytes: int
    """Run in the fastest way."""
    least_bytes: int
    """Run in the way that needs least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Memory for every size of ``SIZES``, and under which assumptions."""

    needs: tuple[Need, ...]
    assumed: str


def forecast(spec: ModelSpec | VAESpec, header: Header) -> Forecast | None:
    """Return how much memory a file takes on the processor; None where it cannot be run at these sizes.

    A UNet on latents is taken with VAE16, or with SD's or TVT's VAE if it works on 4 channels of such cells; with
    other channels or cells, with a VAE of VAE16's widths. A VAE is taken with a full-size UNet.

    Args:
        spec: of the file's network.
        header: of the file, for the length of its prompts.
    """
    unet_spec, vae_spec, other = _pair(spec)
    stored = header.tensors.get(PROMPT_NAMES[0])
    tokens = PROMPT_TOKENS if stored is None or len(stored.shape) != 2 else stored.shape[0]
    kind = UNetKind(unet_spec, DTYPE, runnable_folds(UNET_FOLDS, DEVICE, DTYPE))
    unet = sketched_unet(kind, tokens, guidable=True)
    vae = None if vae_spec is None else sketched_vae(VAEKind(vae_spec, DTYPE, frozenset(VAE_FOLDS)))
    try:
        needs = tuple(_need(unet, vae, size) for size in SIZES)
    except GenDRError:
        return None
    return Forecast(needs=needs, assumed=f"in fp32 on {DEVICE}{other}, input image left out")


def _pair(spec: ModelSpec | VAESpec) -> tuple[ModelSpec, VAESpec | None, str]:
    """Return the specs of both networks, and what is said of the one that was made up."""
    if isinstance(spec, VAESpec):
        channels = spec.arch.latent_channels
        arch = UNetArch(in_channels=channels, out_channels=channels)
        return ModelSpec(arch=arch, cell_px=spec.arch.spatial_factor), spec, ", with a full-size UNet"
    if not spec.needs_vae:
        return spec, None, ""
    channels = spec.arch.in_channels if spec.front == "vae16" else spec.arch.out_channels
    for known, title in ((SD_VAE, "SD2.1"), (TVT_VAE, "TVT")):
        if (channels, spec.cell_px) == (known.latent_channels, known.spatial_factor):
            return spec, VAESpec(arch=known), f", with the VAE of {title}"
    finest, *others = VAEArch().block_out_channels
    widths = (finest, finest, *others)[-spec.cell_px.bit_length() :]
    return spec, VAESpec(arch=VAEArch(latent_channels=channels, block_out_channels=widths)), ", with VAE16"


def _need(unet: GenDRUNet, vae: GenDRVAE | None, megapixels: int) -> Need:
    size = SIZES[megapixels]
    scale = min(max(unet.spec.scale, MIN_SCALE), MAX_SCALE)
    source = Extent(*(max(1, round(edge / scale)) for edge in (size.height, size.width)))
    task = Task(source=source)

    def planned(budget_bytes: int) -> Plan:
        memory = MemoryOptions(budget_bytes=budget_bytes)
        options = RestoreOptions(longest_edge=max(size.height, size.width), memory=memory)
        return Planner(unet, vae, task, options, device_type=DEVICE).plan()

    plan = smallest = planned(PLENTY_BYTES)
    while True:
        try:
            smaller = planned(smallest.peak_bytes - 1)
        except OutOfMemoryError:
            break
        if smaller.peak_bytes >= smallest.peak_bytes:
            break
        smallest = smaller
    return Need(
        megapixels=megapixels,
        output=str(plan.output),
        peak_bytes=plan.peak_bytes,
        least_bytes=smallest.peak_bytes,
    )
