"""What a weight file holds besides the weights themselves, as its header tells.

Role: the middle of ``checkpoint``. ``metadata`` (values) and ``layouts`` (names and shapes) say what the file is; a
network of its shape is sketched without memory and compared with it. Nothing but prompts is read here.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .blank import blank_unet, blank_vae
from .errors import CheckpointError
from .header import Header
from .layouts import PROMPT_NAMES, Located, locate
from .metadata import SpecOverrides, model_spec, parse_metadata, stored_folds, unet_arch, vae_arch, vae_spec
from .spec import Fold, ModelSpec, VAESpec
from .tensorfile import check_dtypes, check_network, check_prompts, check_weights, read_tensors
from .untagged import infer_unet_arch, infer_vae_arch, unstated_unet, unstated_vae

FOLDED_IN: dict[str, Fold] = {
    "timestep": "time",
    "prediction": "ends",
    "c_out": "ends",
    "latent_scaling": "ends",
    "positive": "prompt",
    "negative": "prompt",
}
"""Fields of ``SpecOverrides`` that nobody can change any more, by the fold that has put them into the weights."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UNetCheckpoint:
    """A UNet file's content; tensors are on the CPU, in the file's own dtype and mapped from it until copied.

    Weights that the file has in 8 bits are in bfloat16.
    """

    spec: ModelSpec
    state: dict[str, Tensor]
    """Weights under diffusers names: exactly those of ``blank_unet(spec, folds)``."""
    positive: Tensor
    """Prompt embedding [tokens, cross_attention_dim]; with the fold ``prompt``, keys and values [tokens, width]."""
    negative: Tensor | None
    """Negative prompt embedding, same shape, or None."""
    folds: frozenset[Fold] = frozenset()
    """What is folded in the weights, out of ``spec.FILE_FOLDS``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VAECheckpoint:
    """A VAE file's content; tensors as in ``UNetCheckpoint``."""

    spec: VAESpec
    state: dict[str, Tensor]
    """Weights under diffusers names: exactly those of ``blank_vae(spec, folds)``."""
    folds: frozenset[Fold] = frozenset()
    """What is folded in the weights."""


def sketch_unet(path: Path, header: Header, overrides: SpecOverrides) -> tuple[UNetCheckpoint, Located]:
    """Return all but the weights, which are checked as far as the header tells, and where the weights are.

    Args:
        path: the file, for its prompts.
        header: of the file.
        overrides: see ``checkpoint.read_unet``.

    Raises:
        CheckpointError: the file cannot be used.
    """
    values = parse_metadata(header.metadata, "unet")
    found = locate("unet", header.shapes)
    arch = infer_unet_arch(found.shapes) if values is None else unet_arch(values)
    folds = frozenset[Fold]() if values is None else stored_folds(values, "unet")
    _check_overrides(overrides, folds)
    spec = model_spec(arch, unstated_unet(arch) if values is None else values, overrides)
    network = blank_unet(spec, folds)
    check_network(network, found.shapes)
    check_weights(header, found)
    names = [name for name in PROMPT_NAMES if name in header.tensors]
    check_dtypes(header, names)
    stored = read_tensors(path, {name: name for name in names}, header.shapes)
    positive, negative = (
        stored.get(name) if given is None else given
        for name, given in zip(PROMPT_NAMES, (overrides.positive, overrides.negative), strict=True)
    )
    if positive is None:
        raise CheckpointError(
            "the file has no prompt embedding (prompt.positive): give SpecOverrides(positive=...) of shape"
            f" [tokens, {arch.cross_attention_dim}], or write the file with one"
        )
    check_prompts(network.context_width, spec.guidance, positive, negative)
    return UNetCheckpoint(spec=spec, state={}, positive=positive, negative=negative, folds=folds), found


def sketch_vae(header: Header, overrides: SpecOverrides) -> tuple[VAECheckpoint, Located]:
    """Return all but the weights, which are checked as far as the header tells, and where the weights are.

    Args:
        header: of the file.
        overrides: see ``checkpoint.read_vae``.

    Raises:
        CheckpointError: the file cannot be used.
    """
    values = parse_metadata(header.metadata, "vae16")
    found = locate("vae16", header.shapes)
    if values is None:
        arch, values = infer_vae_arch(found.shapes), unstated_vae(num_parameters_of(header, found))
    else:
        arch = vae_arch(values)
    spec, folds = vae_spec(arch, values, overrides), stored_folds(values, "vae16")
    check_network(blank_vae(spec, folds), found.shapes)
    check_weights(header, found)
    return VAECheckpoint(spec=spec, state={}, folds=folds), found


def _check_overrides(overrides: SpecOverrides, folds: frozenset[Fold]) -> None:
    """Raise where a value is given that the weights have taken in."""
    fixed = [name for name, fold in FOLDED_IN.items() if fold in folds and getattr(overrides, name) is not None]
    if fixed:
        raise CheckpointError(
            f"{' and '.join(fixed)} cannot be given for this file, whose weights have them baked in: use the file that"
            " it was baked from"
        )


def num_parameters_of(header: Header, found: Located) -> int:
    """Return how many parameters a network in a file has."""
    return sum(header.tensors[source].num_elements for source in found.sources.values())
