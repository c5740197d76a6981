"""Weight files to validated weights with their spec, and back: safetensors only, the format described in docs.

Role: between files and ``model``. A file passes ``header`` (bytes) and ``contents`` (values, names and shapes) before
``tensorfile`` reads weights.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from .blank import blank_unet, blank_vae
from .contents import UNetCheckpoint, VAECheckpoint, num_parameters_of, sketch_unet, sketch_vae
from .errors import CheckpointError, errors_about
from .header import Header, read_header
from .layouts import PROMPT_NAMES, WORDS, identify, locate
from .metadata import SpecOverrides, dump_metadata, format_version
from .spec import Fold, ModelSpec, VAESpec
from .tensorfile import SUFFIXES, check_prompts, check_state, read_weights, write_tensors

__all__ = [
    "SUFFIXES",
    "FileReport",
    "SpecOverrides",
    "UNetCheckpoint",
    "VAECheckpoint",
    "inspect",
    "read_unet",
    "read_vae",
    "write_unet",
    "write_vae",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileReport:
    """What a file is, as far as it can be told; ``problem`` says why it cannot be used, or is None."""

    kind: str
    """``unet``, ``vae16``, ``checkpoint`` (UNet and VAE), another key of ``layouts.WORDS``, or ``unreadable``."""
    layout: str | None = None
    """``diffusers`` or ``ldm``."""
    format_version: int | None = None
    """Format of the GenDR metadata; None where there is none."""
    spec: ModelSpec | VAESpec | None = None
    num_parameters: int = 0
    """Of the network; of all tensors where the file does not hold exactly one network that GenDR runs."""
    dtypes: tuple[str, ...] = ()
    """Names as in the file, the most frequent first."""
    num_tensors: int = 0
    num_bytes: int = 0
    problem: str | None = None
    folds: tuple[Fold, ...] = ()
    """What is folded in the weights of a baked file, by name."""


def read_unet(
    path: str | os.PathLike[str], overrides: SpecOverrides | None = None, *, folded: bool = False
) -> UNetCheckpoint:
    """Return the UNet of a file, checked: names, shapes, dtypes, every weight finite.

    With GenDR metadata the file says everything. Without (diffusers or LDM layout, also inside a whole SD checkpoint)
    widths and depth are read from shapes, heads of 64 channels and 32 norm groups are taken as in SD2.1, and:

    - 16 channels in and out: timestep 354, c_skip sqrt(2), c_out -1 and latent scaling 0.2614, as in GenDR's paper.
    - 192 channels in or out: that end is pixel (un)shuffle.
    - Otherwise timestep, prediction (or c_skip and c_out) and latent_scaling must come from ``overrides``.
    - The prompt is ``prompt.positive`` in the file, or comes from ``overrides``.

    Args:
        path: a .safetensors file.
        overrides: values that the file lacks, or that replace the file's (see ``metadata.model_spec``).
        folded: whether the caller takes a baked file, whose weights are not those of a plain network.

    Raises:
        CheckpointError: the file cannot be used; the text names the file, what is wrong and what to do.
    """
    path = Path(path)
    with errors_about(path):
        header = read_header(path)
        sketch, found = sketch_unet(path, header, overrides or SpecOverrides())
        _check_plain(sketch.folds, folded=folded)
        return replace(sketch, state=read_weights(path, found))


def read_vae(
    path: str | os.PathLike[str], overrides: SpecOverrides | None = None, *, folded: bool = False
) -> VAECheckpoint:
    """Return the VAE of a file, checked as by ``read_unet``.

    Without GenDR metadata the scaling factor is known by the number of parameters for VAE16 (0.2614) and SD's 4-channel
    VAE (0.18215); SDXL's VAE has the same shapes as the latter and needs ``overrides`` to say 0.13025. Any other VAE
    needs ``overrides.latent_scaling``. 32 norm groups are taken.

    Args:
        path: a .safetensors file.
        overrides: only ``latent_scaling`` is used; it replaces the file's.
        folded: as for ``read_unet``.

    Raises:
        CheckpointError: the file cannot be used; the text names the file, what is wrong and what to do.
    """
    path = Path(path)
    with errors_about(path):
        header = read_header(path)
        sketch, found = sketch_vae(header, overrides or SpecOverrides())
        _check_plain(sketch.folds, folded=folded)
        return replace(sketch, state=read_weights(path, found))


def _check_plain(folds: frozenset[Fold], *, folded: bool) -> None:
    if folds and not folded:
        raise CheckpointError(
            f"expected plain weights, got baked ones ({', '.join(sorted(folds))}), which are for restoring only: use"
            " the file that they were baked from"
        )


def write_unet(
    path: str | os.PathLike[str],
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    positive: Tensor,
    negative: Tensor | None = None,
    folds: Collection[Fold] = (),
) -> None:
    """Write a UNet file that ``read_unet`` returns unchanged; an existing file is replaced only once all is written.

    Args:
        path: ends in .safetensors or .sft; its folder exists.
        spec: how the UNet is run.
        state: weights under diffusers names, float32, float16 or bfloat16, on any device; or float8 with their scales
            beside them (see ``tensorfile.check_state``), which are read as bfloat16.
        positive: prompt embedding [tokens, cross_attention_dim]; with the fold ``prompt``, keys and values.
        negative: negative prompt embedding, same shape; needed where ``spec.guidance`` is not 1.
        folds: what is folded in the weights, out of ``spec.FILE_FOLDS``.

    Raises:
        CheckpointError: weights or prompts do not fit the spec or are not finite, or the file cannot be written.
    """
    path = Path(path)
    with errors_about(path):
        metadata, network = dump_metadata("unet", spec, folds), blank_unet(spec, folds)
        check_state(network, state)
        check_prompts(network.context_width, spec.guidance, positive, negative)
        prompts = {
            name: prompt for name, prompt in zip(PROMPT_NAMES, (positive, negative), strict=True) if prompt is not None
        }
        write_tensors(path, {**state, **prompts}, metadata)


def write_vae(
    path: str | os.PathLike[str], spec: VAESpec, state: Mapping[str, Tensor], folds: Collection[Fold] = ()
) -> None:
    """Write a VAE file that ``read_vae`` returns unchanged; arguments and errors as for ``write_unet``.

    Raises:
        CheckpointError: weights do not fit the spec or are not finite, or the file cannot be written.
    """
    path = Path(path)
    with errors_about(path):
        metadata = dump_metadata("vae16", spec, folds)
        check_state(blank_vae(spec, folds), state)
        write_tensors(path, state, metadata)


def inspect(path: str | os.PathLike[str]) -> FileReport:
    """Return what a file is and whether it can be used; a wrong file is reported, never raised.

    The header and the prompts are read, the weights are not: NaN among them shows only when they are loaded. Values
    that only a user can give count as a problem.
    """
    path = Path(path)
    try:
        with errors_about(path):
            header = read_header(path)
            version = format_version(header.metadata)
    except CheckpointError as error:
        num_bytes = path.stat().st_size if path.is_file() else 0
        return FileReport(kind="unreadable", num_bytes=num_bytes, problem=str(error))
    kind = identify(header.tensors)
    num_parameters = sum(info.num_elements for info in header.tensors.values())
    layout, spec, problem, folds = None, None, None, frozenset[Fold]()
    try:
        with errors_about(path):
            if kind == "unet" or kind == "vae16":
                found = locate(kind, header.shapes)
                layout, num_parameters = found.layout, num_parameters_of(header, found)
            spec, folds = _sketch(kind, path, header)
    except CheckpointError as error:
        problem = str(error)
    return FileReport(
        kind=kind,
        layout=layout,
        format_version=version,
        spec=spec,
        num_parameters=num_parameters,
        dtypes=tuple(dtype for dtype, _ in Counter(info.dtype for info in header.tensors.values()).most_common()),
        num_tensors=len(header.tensors),
        num_bytes=header.num_bytes,
        problem=problem,
        folds=tuple(sorted(folds)),
    )


def _sketch(kind: str, path: Path, header: Header) -> tuple[ModelSpec | VAESpec | None, frozenset[Fold]]:
    """Return the spec and the folds of a file with one network, None and none for a usable one with two."""
    if kind not in ("unet", "vae16", "checkpoint"):
        raise CheckpointError(f"expected a UNet or a VAE, got {WORDS[kind]}: choose another file")
    unet = None if kind == "vae16" else sketch_unet(path, header, SpecOverrides())[0]
    vae = None if kind == "unet" else sketch_vae(header, SpecOverrides())[0]
    one = None if unet and vae else unet or vae
    return (None, frozenset()) if one is None else (one.spec, one.folds)
