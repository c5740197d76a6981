"""Networks together with the values that say how to run them, loaded from files.

Role: between ``checkpoint`` (files) and the stages ``encode``, ``step`` and ``decode`` (computation).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .blank import blank_unet, blank_vae
from .checkpoint import SpecOverrides, read_unet, read_vae
from .errors import CheckpointError, OptionError
from .float8 import FLOAT8
from .layouts import SCALE_SUFFIX
from .nets import TORCH_OPERATIONS, VAE, Operations, UNet
from .nets.compressed import compress
from .nets.fused import fuse
from .nets.packed import can_pack, pack
from .spec import UNET_FOLDS, VAE_FOLDS, Fold, ModelSpec, VAESpec
from .specialise import specialise_unet, specialise_vae

WEIGHTS_DIR = Path(__file__).parent / "weights"
DEFAULT_UNET = "gendr-mini-pixel.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenDRUNet:
    """A UNet, its spec and its prompts."""

    network: UNet
    spec: ModelSpec
    positive: Tensor
    """[tokens, width], the prompt as the network takes it, from ``prompt``."""
    negative: Tensor | None
    """As ``positive``, for guidance; None where the file has none."""
    dtype: torch.dtype
    """In which activations are computed."""
    folds: frozenset[Fold] = frozenset()
    """What ``specialise`` has folded."""
    prompt_weights: Tensor | None = None
    """[width, cross_attention_dim], which makes keys and values of an embedding; None where the network does it."""

    def prompt(self, embedding: Tensor) -> Tensor:
        """Return a prompt embedding [tokens, cross_attention_dim] as the network takes it: [tokens, width].

        Raises:
            OptionError: the file has keys and values of its prompt, but not what makes them.
        """
        if self.prompt_weights is None:
            if "prompt" in self.folds:
                raise OptionError(
                    "expected a model whose prompt can be changed, got one with its prompt baked in: load the file that"
                    " it was baked from"
                )
            return embedding
        wide = torch.promote_types(embedding.dtype, torch.float32)
        return embedding.to(wide) @ self.prompt_weights.to(wide).T


@dataclass(frozen=True, kw_only=True, slots=True)
class GenDRVAE:
    """A VAE and its spec."""

    network: VAE
    spec: VAESpec
    dtype: torch.dtype
    """In which activations are computed."""
    folds: frozenset[Fold] = frozenset()
    """What ``specialise`` has folded."""


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
    folds: Collection[Fold] = UNET_FOLDS,
) -> GenDRUNet:
    """Return the UNet of a checkpoint file, ready to run.

    Args:
        path: a safetensors file, or the name of a bundled one; the default model is gendr-mini in pixel space.
        device: where the weights go.
        dtype: of activations, and of weights unless these stay in 8 bits; None takes ``default_dtype``.
        operations: namespace of layer classes.
        overrides: values that the file does not say, or says wrongly.
        folds: what is folded for speed, besides what a baked file has folded; none of them leaves the network as its
            file has it. ``fp8`` is not for speed: it keeps weights in 8 bits. ``fused`` needs CUDA and Triton.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or says too little.
        OptionError: ``fp8`` is asked of a device, or ``fused`` of a device or of layers, that do not have it.
    """
    checkpoint = read_unet(resolve_weights(path), overrides, folded=True)
    network = blank_unet(checkpoint.spec, checkpoint.folds, operations)
    network.load_state_dict(checkpoint.state, assign=True)
    unet = GenDRUNet(
        network=network,
        spec=checkpoint.spec,
        positive=checkpoint.positive.float(),
        negative=None if checkpoint.negative is None else checkpoint.negative.float(),
        dtype=dtype or default_dtype(device),
        folds=checkpoint.folds,
    )
    return fold_unet(unet, folds, device=device)


def load_vae(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Operations = TORCH_OPERATIONS,
    overrides: SpecOverrides | None = None,
    folds: Collection[Fold] = VAE_FOLDS,
) -> GenDRVAE:
    """Return the VAE of a checkpoint file, ready to run.

    Arguments and errors as ``load_unet``, but dtype None takes ``default_vae_dtype``.
    """
    checkpoint = read_vae(resolve_weights(path), overrides, folded=True)
    network = blank_vae(checkpoint.spec, checkpoint.folds, operations)
    network.load_state_dict(checkpoint.state, assign=True)
    vae = GenDRVAE(
        network=network, spec=checkpoint.spec, dtype=dtype or default_vae_dtype(device), folds=checkpoint.folds
    )
    return fold_vae(vae, folds, device=device)


def fold_unet(
    unet: GenDRUNet, folds: Collection[Fold] = UNET_FOLDS, *, device: torch.device | str = "cpu"
) -> GenDRUNet:
    """Return a UNet with ``folds``, in its dtype; the network is changed in place and brought there.

    Args:
        unet: as its file has it, with weights of any dtype and perhaps some folds, but not ``packed`` or one of
            ``OPTIONAL_FOLDS``.
        folds: what is folded besides, as far as ``runnable_folds``.
        device: where the weights go.

    Raises:
        CheckpointError: one of the folds cannot follow those that the network has.
        OptionError: ``fp8`` is asked of a device, or ``fused`` of a device or of layers, that do not have it.
    """
    done = runnable_folds(unet.folds.union(folds), device, unet.dtype, unet.network.operations)
    prompt_weights = specialise_unet(unet.network, unet.spec, done, unet.folds)
    _place(unet.network, device, unet.dtype, done)
    if "packed" in done:
        pack(unet.network)
    if prompt_weights is None:
        return replace(unet, folds=done)
    folded = replace(unet, folds=done, prompt_weights=prompt_weights)
    negative = None if unet.negative is None else folded.prompt(unet.negative)
    return replace(folded, positive=folded.prompt(unet.positive), negative=negative)


def fold_vae(vae: GenDRVAE, folds: Collection[Fold] = VAE_FOLDS, *, device: torch.device | str = "cpu") -> GenDRVAE:
    """Return a VAE with ``folds``; arguments and errors as ``fold_unet``."""
    done = runnable_folds(vae.folds.union(folds), device, vae.dtype, vae.network.operations)
    specialise_vae(vae.network, done, vae.folds)
    _place(vae.network, device, vae.dtype, done)
    return replace(vae, folds=done)


def runnable_folds(
    folds: Collection[Fold],
    device: torch.device | str,
    dtype: torch.dtype,
    operations: Operations = TORCH_OPERATIONS,
) -> frozenset[Fold]:
    """Return those of ``folds`` that run there.

    ``packed`` only where oneDNN computes, in layers of torch's own. With ``fp8`` neither that, since its layers are
    others, nor ``phases``: sums of weights in 8 bits, rounded to 8 bits once more, cost gendr-mini's pair 4 dB.

    Raises:
        OptionError: ``fp8`` is among them, but the device has no such numbers; or ``fused``, but it is no CUDA device
            or layers are not torch's own.
    """
    kind = torch.device(device).type
    if "fused" in folds and (kind != "cuda" or operations is not TORCH_OPERATIONS):
        raise OptionError(
            f"expected a CUDA device and torch's own layers for fused kernels, got {kind} and"
            f" {type(operations).__name__}: take cuda, or leave out fused"
        )
    if "fp8" in folds:
        if kind == "mps":
            raise OptionError("expected a device with float8 for weights in 8 bits, got mps: leave out fp8")
        return frozenset(folds) - {"packed", "phases"}
    packs = kind == "cpu" and can_pack(dtype) and operations is TORCH_OPERATIONS
    return frozenset(folds) if packs else frozenset(folds) - {"packed"}


def exchange_layers(network: UNet | VAE, folds: Collection[Fold], device: torch.device | str) -> None:
    """Bring in the layers of ``OPTIONAL_FOLDS``, in place; weights in 8 bits are made on ``device``.

    Raises:
        OptionError: there is no Triton for ``fused``, and the network has memory to run.
    """
    if "fp8" in folds:
        compress(network, device, network.operations)
    if "fused" in folds:
        fuse(network)


def _place(network: UNet | VAE, device: torch.device | str, dtype: torch.dtype, folds: Collection[Fold]) -> None:
    """Bring a network to where and how it is used, for inference only."""
    exchange_layers(network, folds, device)
    channels_last = network.channels_last or torch.device(device).type == "cpu"
    for name, parameter in network.named_parameters():
        in_8_bits = parameter.dtype == FLOAT8 or name.endswith(SCALE_SUFFIX)
        # Copied: a parameter mapped from the file could not be moved or replaced while the model lives.
        order = torch.channels_last if parameter.ndim == 4 and channels_last else torch.contiguous_format
        final = parameter.dtype if in_8_bits else dtype
        parameter.data = parameter.data.to(device=device, dtype=final, copy=True, memory_format=order)
    network.requires_grad_(False).train(False)
