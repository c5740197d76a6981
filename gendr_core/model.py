"""Networks together with the values that say how to run them, loaded from files.

Role: between ``checkpoint`` (files) and the stages ``encode``, ``step`` and ``decode`` (computation).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import SpecOverrides, read_unet, read_vae
from .errors import CheckpointError, OptionError
from .nets import TORCH_OPERATIONS, VAE, Operations, UNet
from .spec import ModelSpec, VAESpec

WEIGHTS_DIR = Path(__file__).parent / "weights"
DEFAULT_UNET = "gendr-mini-pixel.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenDRUNet:
    """A UNet, its spec and its prompts."""

    network: UNet
    spec: ModelSpec
    positive: Tensor
    """[tokens, cross_attention_dim], the prompt embedding."""
    negative: Tensor | None
    """As ``positive``, for guidance; None where the file has none."""
    dtype: torch.dtype
    """In which activations are computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenDRVAE:
    """A VAE and its spec."""

    network: VAE
    spec: VAESpec
    dtype: torch.dtype
    """In which activations are computed."""


def required_vae(vae: GenDRVAE | None) -> GenDRVAE:
    """Return ``vae``.

    Raises:
        OptionError: it is None.
    """
    if vae is None:
        raise OptionError("this model works on VAE16 latents: expected a VAE, got none; load one and pass it")
    return vae


def bundled_weights() -> dict[str, Path]:
    """Return the weight files inside this package, by file name."""
    return {path.name: path for path in sorted(WEIGHTS_DIR.glob("*.safetensors"))}


def resolve_weights(name: str | Path) -> Path:
    """Return the file that ``name`` means: a path, or the file name of a bundled model.

    Raises:
        CheckpointError: there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = bundled_weights()
    if str(name) in bundled:
        return bundled[str(name)]
    raise CheckpointError(
        f"expected a weight file, found none at {path}: give a path or one of {', '.join(bundled) or 'none bundled'}"
    )


def default_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype in which ``device`` runs well without losing quality: float16 on CUDA, float32 elsewhere."""
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def default_vae_dtype(device: torch.device | str) -> torch.dtype:
    """Return ``default_dtype`` for a VAE, whose family overflows float16: bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def load_unet(
    path: str | Path = DEFAULT_UNET,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Operations = TORCH_OPERATIONS,
    overrides: SpecOverrides | None = None,
) -> GenDRUNet:
    """Return the UNet of a checkpoint file, ready to run.

    Args:
        path: a safetensors file, or the name of a bundled one; the default model is gendr-mini in pixel space.
        device: where the weights go.
        dtype: of weights and activations; None takes ``default_dtype``.
        operations: namespace of layer classes.
        overrides: values that the file does not say, or says wrongly.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or says too little.
    """
    dtype = dtype or default_dtype(device)
    checkpoint = read_unet(resolve_weights(path), overrides)
    network = UNet(checkpoint.spec.arch, operations=operations, device="meta")
    _fill(network, checkpoint.state, device, dtype)
    return GenDRUNet(
        network=network,
        spec=checkpoint.spec,
        positive=checkpoint.positive.float(),
        negative=None if checkpoint.negative is None else checkpoint.negative.float(),
        dtype=dtype,
    )


def load_vae(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Operations = TORCH_OPERATIONS,
    overrides: SpecOverrides | None = None,
) -> GenDRVAE:
    """Return the VAE of a checkpoint file, ready to run.

    Arguments and errors as ``load_unet``, but dtype None takes ``default_vae_dtype``.
    """
    dtype = dtype or default_vae_dtype(device)
    checkpoint = read_vae(resolve_weights(path), overrides)
    network = VAE(checkpoint.spec.arch, operations=operations, device="meta")
    _fill(network, checkpoint.state, device, dtype)
    return GenDRVAE(network=network, spec=checkpoint.spec, dtype=dtype)


def _fill(network: nn.Module, state: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype) -> None:
    """Give a network made on the meta device its weights, for inference only."""
    # Copied, so that no parameter stays mapped from the file: it can then be moved or replaced while the model lives.
    converted = {name: tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in state.items()}
    network.load_state_dict(converted, assign=True)
    network.requires_grad_(False).train(False)
