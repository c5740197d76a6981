"""Weight files to validated weights with their spec, and back: safetensors only, the format described in docs.

Role: between files and ``model``. A file passes ``header`` (bytes), ``metadata`` (values) and ``layouts`` (names and
shapes) before a network of its shape is sketched without memory and compared with it; only then does ``tensorfile``
read weights.
"""

import os
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from .errors import CheckpointError
from .header import Header, read_header
from .layouts import PROMPT_NAMES, WORDS, Located, identify, locate
from .metadata import (
    SpecOverrides,
    dump_metadata,
    format_version,
    model_spec,
    parse_metadata,
    unet_arch,
    vae_arch,
    vae_spec,
)
from .nets import VAE, UNet
from .spec import ModelSpec, VAESpec
from .tensorfile import SUFFIXES, check_dtypes, check_network, check_prompts, check_state, read_tensors, write_tensors
from .untagged import infer_unet_arch, infer_vae_arch, unstated_unet, unstated_vae

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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UNetCheckpoint:
    """A UNet file's content; tensors are on the CPU, in the file's own dtype and mapped from it until copied."""

    spec: ModelSpec
    state: dict[str, Tensor]
    """Weights under diffusers names: exactly those of ``UNet(spec.arch)``."""
    positive: Tensor
    """Prompt embedding [tokens, cross_attention_dim]."""
    negative: Tensor | None
    """Negative prompt embedding, same shape, or None."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VAECheckpoint:
    """A VAE file's content; tensors as in ``UNetCheckpoint``."""

    spec: VAESpec
    state: dict[str, Tensor]
    """Weights under diffusers names: exactly those of ``VAE(spec.arch)``."""


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


def read_unet(path: str | os.PathLike[str], overrides: SpecOverrides | None = None) -> UNetCheckpoint:
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

    Raises:
        CheckpointError: the file cannot be used; the text names the file, what is wrong and what to do.
    """
    path = Path(path)
    with _errors_about(path):
        header = read_header(path)
        sketch, found = _sketch_unet(path, header, overrides or SpecOverrides())
        return replace(sketch, state=read_tensors(path, found.sources, found.shapes))


def read_vae(path: str | os.PathLike[str], overrides: SpecOverrides | None = None) -> VAECheckpoint:
    """Return the VAE of a file, checked as by ``read_unet``.

    Without GenDR metadata the scaling factor is known by the number of parameters for VAE16 (0.2614) and SD's 4-channel
    VAE (0.18215); SDXL's VAE has the same shapes as the latter and needs ``overrides`` to say 0.13025. Any other VAE
    needs ``overrides.latent_scaling``. 32 norm groups are taken.

    Args:
        path: a .safetensors file.
        overrides: only ``latent_scaling`` is used; it replaces the file's.

    Raises:
        CheckpointError: the file cannot be used; the text names the file, what is wrong and what to do.
    """
    path = Path(path)
    with _errors_about(path):
        header = read_header(path)
        sketch, found = _sketch_vae(header, overrides or SpecOverrides())
        return replace(sketch, state=read_tensors(path, found.sources, found.shapes))


def write_unet(
    path: str | os.PathLike[str],
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    positive: Tensor,
    negative: Tensor | None = None,
) -> None:
    """Write a UNet file that ``read_unet`` returns unchanged; an existing file is replaced only once all is written.

    Args:
        path: ends in .safetensors or .sft; its folder exists.
        spec: how the UNet is run.
        state: weights under diffusers names, float32, float16 or bfloat16, on any device.
        positive: prompt embedding [tokens, cross_attention_dim].
        negative: negative prompt embedding, same shape; needed where ``spec.guidance`` is not 1.

    Raises:
        CheckpointError: weights or prompts do not fit the spec or are not finite, or the file cannot be written.
    """
    path = Path(path)
    with _errors_about(path):
        check_state(UNet(spec.arch, device="meta"), state)
        check_prompts(spec, positive, negative)
        prompts = {
            name: prompt for name, prompt in zip(PROMPT_NAMES, (positive, negative), strict=True) if prompt is not None
        }
        write_tensors(path, {**state, **prompts}, dump_metadata("unet", spec))


def write_vae(path: str | os.PathLike[str], spec: VAESpec, state: Mapping[str, Tensor]) -> None:
    """Write a VAE file that ``read_vae`` returns unchanged; arguments and errors as for ``write_unet``.

    Raises:
        CheckpointError: weights do not fit the spec or are not finite, or the file cannot be written.
    """
    path = Path(path)
    with _errors_about(path):
        check_state(VAE(spec.arch, device="meta"), state)
        write_tensors(path, state, dump_metadata("vae16", spec))


def _sketch_unet(path: Path, header: Header, overrides: SpecOverrides) -> tuple[UNetCheckpoint, Located]:
    """Return all but the weights, which are checked as far as the header tells, and where the weights are."""
    values = parse_metadata(header.metadata, "unet")
    found = locate("unet", header.shapes)
    arch = infer_unet_arch(found.shapes) if values is None else unet_arch(values)
    spec = model_spec(arch, unstated_unet(arch) if values is None else values, overrides)
    check_network(UNet(arch, device="meta"), found.shapes)
    check_dtypes(header, found.sources.values())
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
    check_prompts(spec, positive, negative)
    return UNetCheckpoint(spec=spec, state={}, positive=positive, negative=negative), found


def _sketch_vae(header: Header, overrides: SpecOverrides) -> tuple[VAECheckpoint, Located]:
    """Return all but the weights, which are checked as far as the header tells, and where the weights are."""
    values = parse_metadata(header.metadata, "vae16")
    found = locate("vae16", header.shapes)
    if values is None:
        arch, values = infer_vae_arch(found.shapes), unstated_vae(_num_parameters(header, found))
    else:
        arch = vae_arch(values)
    spec = vae_spec(arch, values, overrides)
    check_network(VAE(arch, device="meta"), found.shapes)
    check_dtypes(header, found.sources.values())
    return VAECheckpoint(spec=spec, state={}), found


def _num_parameters(header: Header, found: Located) -> int:
    return sum(header.tensors[source].num_elements for source in found.sources.values())


def inspect(path: str | os.PathLike[str]) -> FileReport:
    """Return what a file is and whether it can be used; a wrong file is reported, never raised.

    The header and the prompts are read, the weights are not: NaN among them shows only when they are loaded. Values
    that only a user can give count as a problem.
    """
    path = Path(path)
    try:
        with _errors_about(path):
            header = read_header(path)
            version = format_version(header.metadata)
    except CheckpointError as error:
        num_bytes = path.stat().st_size if path.is_file() else 0
        return FileReport(kind="unreadable", num_bytes=num_bytes, problem=str(error))
    kind = identify(header.tensors)
    num_parameters = sum(info.num_elements for info in header.tensors.values())
    layout, spec, problem = None, None, None
    try:
        with _errors_about(path):
            if kind == "unet" or kind == "vae16":
                found = locate(kind, header.shapes)
                layout, num_parameters = found.layout, _num_parameters(header, found)
            spec = _sketch(kind, path, header)
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
    )


def _sketch(kind: str, path: Path, header: Header) -> ModelSpec | VAESpec | None:
    """Return the spec of a file with one network, None for a usable one with two."""
    if kind not in ("unet", "vae16", "checkpoint"):
        raise CheckpointError(f"expected a UNet or a VAE, got {WORDS[kind]}: choose another file")
    unet = None if kind == "vae16" else _sketch_unet(path, header, SpecOverrides())[0].spec
    vae = None if kind == "unet" else _sketch_vae(header, SpecOverrides())[0].spec
    return None if unet and vae else unet or vae


@contextmanager
def _errors_about(path: Path) -> Generator[None]:
    """Put the file's name before every message; not its folder, which may tell more than the user wants to show."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
