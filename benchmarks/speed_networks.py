"""Speed: the networks and the images that it measures with, the same ones for every contender.

Role: a part of ``speed``; ``speed_contenders`` makes contenders of what comes from here.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendr_core.geometry import Extent
from gendr_core.image_io import read_image
from gendr_core.model import DEFAULT_UNET, GenDRUNet, GenDRVAE, load_unet
from gendr_core.nets import VAE, UNet
from gendr_core.spec import PROMPT_TOKENS, ModelSpec, UNetArch, VAEArch, VAESpec

ARCHITECTURES = {"mini": DEFAULT_UNET, "full": "UNet16 and VAE16, random"}
"""And what their weights are."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PHOTO = Path(__file__).parents[1] / "examples" / "courtyard.jpg"
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """A UNet and its VAE as a file would have them: float32, on the processor, nothing folded, with both prompts."""

    unet: GenDRUNet
    vae: GenDRVAE | None


def networks(arch: str) -> Networks:
    """Return the networks of an architecture, always the same ones; nobody else has a hand in their tensors.

    A negative prompt of noise stands in for the one that the bundled model lacks.

    Args:
        arch: ``mini`` is the bundled model, ``full`` UNet16 and VAE16 with random weights.
    """
    torch.manual_seed(SEED)
    vae = None
    if arch == "full":
        unet = random_unet(ModelSpec(arch=UNetArch()), "cpu", torch.float32)
        vae = random_vae(VAESpec(arch=VAEArch()), "cpu", torch.float32)
    else:
        unet = load_unet(DEFAULT_UNET, dtype=torch.float32, folds=())
    return Networks(unet=replace(unet, negative=torch.randn_like(unet.positive)), vae=vae)


def random_unet(spec: ModelSpec, device: str, dtype: torch.dtype) -> GenDRUNet:
    """Return a UNet with random weights and a random prompt, nothing folded."""
    network = UNet(spec.arch, device="meta", dtype=dtype)
    _randomise(network, device)
    positive = torch.randn(PROMPT_TOKENS, spec.arch.cross_attention_dim)
    return GenDRUNet(network=network, spec=spec, positive=positive, negative=None, dtype=dtype)


def random_vae(spec: VAESpec, device: str, dtype: torch.dtype) -> GenDRVAE:
    """Return a VAE with random weights, nothing folded."""
    network = VAE(spec.arch, device="meta", dtype=dtype)
    _randomise(network, device)
    return GenDRVAE(network=network, spec=spec, dtype=dtype)


def _randomise(network: nn.Module, device: str) -> None:
    """Give a network on the meta device weights that keep activations near 1: speed must not meet denormals or NaN.

    Uniform numbers, because a billion normal ones take minutes on one core.
    """
    network.to_empty(device=device).requires_grad_(False).train(False)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:  # norms multiply by 1, biases add 0
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            bound = (3.0 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound)


def place(network: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Bring the weights of a network where and how a diffusers user has them: in torch's plain order."""
    for parameter in network.parameters():
        moved = parameter.data.to(device, dtype)
        parameter.data = moved.contiguous(memory_format=torch.contiguous_format)


def photo(extent: Extent) -> Tensor:
    """Return the example photo cropped and resized to ``extent``: [1, height, width, 3] in 0 to 1, float32."""
    planes = read_image(PHOTO).image.permute(0, 3, 1, 2)
    height, width = planes.shape[2:]
    scale = min(height / extent.height, width / extent.width)
    rows, columns = round(scale * extent.height), round(scale * extent.width)
    size = (extent.height, extent.width)
    planes = planes[:, :, :rows, :columns]
    resized = F.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp_(0.0, 1.0).permute(0, 2, 3, 1).contiguous()
