"""From the published file of a relative and its base model to GenDR's own files.

Role: above ``relatives`` (whose weights are merged how), ``pickled`` (their files) and ``checkpoint`` (the base, and
what is written). Prompts come as embeddings in a file; whoever computes them from text writes such a file.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from .adapters import State
from .checkpoint import SpecOverrides, UNetCheckpoint, VAECheckpoint, read_unet, read_vae, write_unet, write_vae
from .errors import CheckpointError, OptionError, errors_about, listed
from .header import read_header
from .host import NEVER, Interrupt
from .layouts import PROMPT_NAMES
from .metadata import METADATA_KEY
from .pickled import unpickled
from .pickled_child import VALUES_KEY
from .relatives import Bases, Degradation, Merged, Published, Relative, check_published
from .tensorfile import READABLE_DTYPES, SUFFIXES, check_dtypes, read_tensors

LATENT_SCALING = 0.18215
"""Of the 4-channel VAE of SD2.1 and SD-Turbo, which all of them use."""
LATENT_CHANNELS = 4
SCALE = 4.0
"""What all of them were trained for."""

FOLDERS = {"unet": ("unet", "."), "vae": ("vae", ".")}
"""Where a diffusers folder keeps its networks."""
FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
"""What it calls them, the more exact one first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """The files that a conversion reads."""

    adapter: Path
    """What the relative publishes, pickled or safetensors."""
    unet: Path
    """Base UNet: a diffusers folder, or a .safetensors file with a UNet or a whole checkpoint."""
    vae: Path
    """Base VAE, likewise; TVT's own may be pickled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What is made of which files.

    Raises:
        OptionError: the degradation is missing, out of range, or means nothing.
    """

    relative: Relative
    """From ``relatives.find_relative``."""
    sources: Sources
    degradation: Degradation | None = None
    """For S3Diff only."""
    dtype: torch.dtype = torch.float16
    """Of the weights that are written; they are merged in float32 before."""

    def __post_init__(self) -> None:
        """Check the degradation."""
        relative, degradation = self.relative, self.degradation
        if not relative.needs_degradation:
            if degradation is not None:
                raise OptionError(
                    f"expected no --degradation: the weights of {relative.title} are the same for every image"
                )
            return
        if degradation is None:
            raise OptionError(
                f"{relative.title} changes its weights with the blur and noise that it estimates in each image, and a"
                " file holds one state. Give --degradation BLUR NOISE, each from 0 (none) to 1, for the images it is"
                " meant for"
            )
        if not all(0.0 <= value <= 1.0 for value in degradation):
            raise OptionError(f"expected blur and noise from 0 to 1, got {degradation[0]:g} and {degradation[1]:g}")

    def words(self, part: str = "") -> dict[str, str]:
        """Return what a new file says of itself, by the fields of its spec: title, license and source.

        Args:
            part: of ``Relative.parts``, for a UNet; the VAE says what the first one says.
        """
        title, relative, sources = self.relative.title, self.relative, self.sources
        if self.degradation is not None:
            title += f" at blur {self.degradation[0]:g}, noise {self.degradation[1]:g}"
        source = (
            f"{relative.source} ({sources.adapter.name}), merged into {relative.base}"
            f" ({sources.unet.name}, {sources.vae.name})"
        )
        return {"title": f"{title} ({part} only)" if part else title, "license": relative.license, "source": source}


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Embeddings that are stored in the UNet's file."""

    positive: Tensor
    """[tokens, cross_attention_dim]; 77 x 1024 from the text encoder of SD2.x."""
    negative: Tensor | None
    """As ``positive``; needed where guidance is not 1."""


def read_prompts(path: Path) -> Prompts:
    """Return the embeddings of a .safetensors file: ``prompt.positive``, and ``prompt.negative`` where it has one.

    Raises:
        CheckpointError: the file cannot be read or has no such tensor.
    """
    with errors_about(path):
        header = read_header(path)
        names = [name for name in PROMPT_NAMES if name in header.tensors]
        if PROMPT_NAMES[0] not in names:
            raise CheckpointError(
                f"expected a tensor {PROMPT_NAMES[0]} of [tokens, width], found {listed(header.tensors) or 'none'}"
            )
        check_dtypes(header, names)
        found = read_tensors(path, {name: name for name in names}, header.shapes)
    return Prompts(found[PROMPT_NAMES[0]], found.get(PROMPT_NAMES[1]))


def convert(conversion: Conversion, prompts: Prompts, folder: Path, interrupt: Interrupt = NEVER) -> list[Path]:
    """Write a relative as GenDR's files and return them: the UNet, further UNets (PiSA-SR), the VAE.

    All files appear whole, or none does.

    Args:
        conversion: what is made of which files.
        prompts: what is stored with the UNet.
        folder: where to; it exists, and has no files of these names.
        interrupt: asked between files, between tensors that are merged, and while a pickled file is read.

    Raises:
        CheckpointError: a file cannot be read or written, or does not fit the others.
        OptionError: the folder is missing, or a file is in the way.
    """
    relative, adapter = conversion.relative, conversion.sources.adapter
    targets = _targets(relative, folder)
    bases = _read_bases(conversion, prompts, interrupt)
    interrupt.check()
    with published_file(adapter, interrupt) as published:
        with errors_about(adapter):
            check_published(published, relative)
            unet, vae = bases
            merged = relative.merge(published, Bases(unet=unet.state, vae=vae.state), conversion.degradation)
        _write(targets, merged, bases, conversion, interrupt)
    return list(targets.values())


@contextmanager
def published_file(path: Path, interrupt: Interrupt = NEVER) -> Generator[Published]:
    """Give the content of a relative's file, pickled or safetensors, for as long as the block lasts.

    Raises:
        CheckpointError: it cannot be read.
    """
    if path.suffix.lower() in SUFFIXES:
        yield _published(path, path)
    else:
        with unpickled(path, interrupt=interrupt) as target:
            yield _published(target, path)


def _published(target: Path, path: Path) -> Published:
    with errors_about(path):
        header = read_header(target)
        # Counters and the like are integers; nothing that is merged is.
        floats = [name for name, info in header.tensors.items() if info.dtype in READABLE_DTYPES]
        tensors = read_tensors(target, {name: name for name in floats}, header.shapes)
        try:
            values: object = json.loads(header.metadata.get(VALUES_KEY, "{}"))
        except ValueError as error:
            raise CheckpointError(f"its metadata {VALUES_KEY!r} is not valid JSON ({error})") from error
    return Published(tensors, cast("Mapping[str, object]", values) if isinstance(values, dict) else {})


def find_weights(path: Path, kind: str) -> Path:
    """Return the file that a user means by a file, or by a folder as diffusers writes it.

    Args:
        path: a .safetensors file, a folder with one, or one with a subfolder of the network's name.
        kind: ``unet`` or ``vae``.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir():
        return path
    for found in _candidates(path, kind):
        if found.is_file():
            return found
    raise CheckpointError(
        f"expected {kind}/{FILES[0]} in the folder {path.name}, found none: choose the folder of the whole model, of"
        f" its {kind}, or a .safetensors file"
    )


def _candidates(path: Path, kind: str) -> Iterator[Path]:
    for folder in FOLDERS[kind]:
        yield from (path / folder / file for file in FILES)


def _read_bases(conversion: Conversion, prompts: Prompts, interrupt: Interrupt) -> tuple[UNetCheckpoint, VAECheckpoint]:
    relative, sources = conversion.relative, conversion.sources
    unet_path, vae_path = find_weights(sources.unet, "unet"), find_weights(sources.vae, "vae")
    for path in (unet_path, vae_path):
        if path.suffix.lower() not in SUFFIXES:
            continue
        with errors_about(path):
            if METADATA_KEY in read_header(path).metadata:
                raise CheckpointError(f"expected a file of {relative.base}, got one that is GenDR's already")
    skip, out = relative.coefficients
    interrupt.check()
    unet = read_unet(
        unet_path,
        SpecOverrides(
            timestep=relative.timestep,
            prediction="epsilon",
            c_skip=skip,
            c_out=out,
            guidance=relative.guidance,
            latent_scaling=LATENT_SCALING,
            scale=SCALE,
            positive=prompts.positive,
            negative=prompts.negative,
        ),
    )
    interrupt.check()
    vae = _read_vae(vae_path, relative, interrupt)
    channels, cells, cell_px = "latent channels", "pixels per latent cell", vae.spec.arch.spatial_factor
    for path, what, expected, found in (
        (sources.unet, channels, LATENT_CHANNELS, unet.spec.arch.in_channels),
        (sources.unet, channels, LATENT_CHANNELS, unet.spec.arch.out_channels),
        (sources.vae, channels, LATENT_CHANNELS, vae.spec.arch.latent_channels),
        (sources.vae, cells, relative.cell_px, cell_px),
    ):
        if found != expected:
            raise CheckpointError(f"{path.name}: expected {relative.base} with {expected} {what}, got {found}")
    return replace(unet, spec=replace(unet.spec, cell_px=cell_px)), vae


def _read_vae(path: Path, relative: Relative, interrupt: Interrupt) -> VAECheckpoint:
    overrides = SpecOverrides(latent_scaling=LATENT_SCALING)
    if path.suffix.lower() in SUFFIXES or not relative.pickled_vae:
        return read_vae(path, overrides)
    with unpickled(path, interrupt=interrupt) as target, errors_about(path):
        vae = read_vae(target, overrides)
        # Mapped from a file that is about to go.
        return replace(vae, state={name: tensor.clone() for name, tensor in vae.state.items()})


def _targets(relative: Relative, folder: Path) -> dict[str, Path]:
    """Return where each UNet goes by what sets it apart, and the VAE under ``vae``."""
    if not folder.is_dir():
        raise OptionError(f"expected a folder to write to, found none at {folder}: make it first")
    stems = {part: f"{relative.key}-{part}-unet" if part else f"{relative.key}-unet" for part in relative.parts}
    targets = {part: folder / f"{stem}{SUFFIXES[0]}" for part, stem in {**stems, "vae": f"{relative.key}-vae"}.items()}
    there = [path.name for path in targets.values() if path.exists()]
    if there:
        raise OptionError(f"{', '.join(there)} exist already: move them away or choose another folder")
    return targets


def _write(
    targets: Mapping[str, Path],
    merged: Merged,
    bases: tuple[UNetCheckpoint, VAECheckpoint],
    conversion: Conversion,
    interrupt: Interrupt,
) -> None:
    """Write all files, or none."""
    unet, vae = bases
    dtype = conversion.dtype
    with ExitStack() as undo:
        for path in targets.values():
            undo.callback(path.unlink, missing_ok=True)
        # No name on what is rounded: the next network would be made beside it.
        for part, state in merged.unets.items():
            spec = replace(unet.spec, **conversion.words(part))
            write_unet(targets[part], spec, _rounded(state, dtype, interrupt), unet.positive, unet.negative)
        write_vae(targets["vae"], replace(vae.spec, **conversion.words()), _rounded(merged.vae, dtype, interrupt))
        undo.pop_all()


def _rounded(state: State, dtype: torch.dtype, interrupt: Interrupt) -> dict[str, Tensor]:
    rounded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        interrupt.check()
        rounded[name] = tensor.to(dtype)
    return rounded
