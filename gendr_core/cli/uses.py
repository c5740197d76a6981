"""What a weight file is good for: in words, and the commands and nodes that take it, ComfyUI's own included.

Role: what ``inspect`` says beyond ``checkpoint.inspect``. Goes by the header alone; a pickle is known by its name only.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from ..checkpoint import FileReport
from ..errors import CheckpointError
from ..header import LENGTH_BYTES, PICKLE_SUFFIXES, Header, Shape
from ..hub import load_catalog
from ..layouts import PROMPT_NAMES, WORDS, locate
from ..pickled_child import VALUES_KEY
from ..relatives import REFUSED, RELATIVES, Published, recognise_refused
from ..spec import ModelSpec, UNetArch, VAESpec
from ..tensorfile import READABLE_DTYPES
from ..textfile import is_usable, recognise_encoder
from ..untagged import SD1_CONTEXT_DIM, infer_unet_arch

VAE16_CHANNELS, SD_CHANNELS = 16, 4

HYPIR_ENDS = (".lora_A.default.weight", ".lora_B.default.weight")
"""How every name ends in a file that has adapters only and says nothing else, as HYPIR's."""

STARTS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"\x80": "a pickle",
    b"GGUF": "a GGUF file, which ComfyUI-GGUF and llama.cpp read",
    b"<": "a web page, saved in place of a file",
    b"version https://git-lfs": "a note of git LFS in place of the file (git lfs pull fetches it)",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}
"""What a file is, by its first bytes."""

CORE = {
    "unet": "ComfyUI: Load Diffusion Model",
    "conditioned_unet": "ComfyUI: Load Diffusion Model, or Load Checkpoint for a whole one",
    "diffusion_transformer": "ComfyUI: Load Diffusion Model, or Load Checkpoint for a whole one",
    "vae16": "ComfyUI: Load VAE",
    "checkpoint": "ComfyUI: Load Checkpoint",
    "lora": "ComfyUI: Load LoRA, beside its base model",
    "controlnet": "ComfyUI: Load ControlNet Model",
    "text_encoder": "ComfyUI: Load CLIP",
}
"""The host's own nodes by what a file holds."""

BASE = "gendr convert RELATIVE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What a file is and what takes it."""

    what: str
    takers: tuple[str, ...] = ()
    """Commands and nodes; none where nothing that is known takes it."""


def use_of(path: Path, header: Header | None, report: FileReport) -> Use:
    """Return what a file is good for.

    Args:
        path: the file.
        header: of the file; None where it cannot be read.
        report: what ``checkpoint.inspect`` says of it.
    """
    if header is None:
        return _unreadable(path)
    names = header.tensors.keys()
    if names and names <= set(PROMPT_NAMES):
        return Use(what="prompts for a UNet", takers=(f"{BASE} --prompt {path.name}",))
    refused = recognise_refused(names)
    if refused is not None:
        return Use(what=f"a file of {refused.title}, which GenDR cannot run: {refused.reason}")
    published = _relative(header)
    if published is not None:
        return Use(what=published[1], takers=(f"gendr convert {published[0]} --adapter {path.name}",))
    if report.kind == "unet":
        return _unet(path, header, report)
    if report.kind == "vae16":
        return _vae(path, report)
    encoder = recognise_encoder(header.shapes)
    takers = list(_as_base(path, header, report)) if report.kind == "checkpoint" else []
    if encoder is not None and is_usable(header.shapes):
        takers.append(f"gendr bake-prompt --encoder {path.name}")
    what = WORDS[report.kind]
    if encoder is not None:
        what = f"{what}: {encoder}" if report.kind == "text_encoder" else f"{what}, and {encoder}"
    return Use(what=what, takers=(*takers, *_core(report.kind)))


def _core(kind: str) -> Iterator[str]:
    if kind in CORE:
        yield CORE[kind]


def _unreadable(path: Path) -> Use:
    """Return what the first bytes and the name of a file say that is no whole safetensors file."""
    with path.open("rb") as file:
        start = file.read(32)
    pickled = path.suffix.lower() in PICKLE_SUFFIXES
    if not start:
        return Use(what="an empty file")
    if start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{":
        named = f"a safetensors file under the name of a pickle: rename it to {path.stem}.safetensors"
        return Use(what=named if pickled else "a safetensors file, damaged or cut short")
    what = next((words for mark, words in STARTS.items() if start.startswith(mark)), "a file of an unknown format")
    if not pickled:
        return Use(what=what)
    what = "a pickle, which is not opened here" if start.startswith((b"PK\x03\x04", b"\x80")) else what
    for model in load_catalog().values():
        if model.kind == "relative" and any(Path(file.name).name == path.name for file in model.files):
            reasons = [f", which GenDR cannot run: {each.reason}" for each in REFUSED if each.key == model.name]
            part = "vae" if path.stem == "vae" else "adapter"
            known = [f"gendr convert {each.key} --{part} {path.name}" for each in RELATIVES if each.key == model.name]
            named = f"{what}; by its name that of {model.title}{''.join(reasons)}"
            return Use(what=named, takers=tuple(known))
    return Use(what=what, takers=(f"{BASE} --adapter {path.name}, if a relative published it",))


def _relative(header: Header) -> tuple[str, str] | None:
    """Return the key of the relative that published a file, and what it is; None where that cannot be told."""
    try:
        values: object = json.loads(header.metadata.get(VALUES_KEY, "{}"))
    except (ValueError, RecursionError):
        values = None
    # Only names count.
    nothing = torch.empty(0, device="meta")
    named: Mapping[str, object] = cast("dict[str, object]", values) if isinstance(values, dict) else {}
    published = Published(dict.fromkeys(header.tensors, nothing), named)
    for relative in RELATIVES:
        if relative.marks and all(map(published.has, relative.marks)):
            return relative.key, f"the published file of {relative.title}"
    if header.tensors and all(name.endswith(HYPIR_ENDS) for name in header.tensors):
        return "hypir-sd2", "adapters without a word of whose, laid out as those of HYPIR-SD2"
    return None


def _unet(path: Path, header: Header, report: FileReport) -> Use:
    if isinstance(report.spec, ModelSpec):
        needs = " --vae VAE" if report.spec.needs_vae else ""
        what = "a UNet that GenDR runs" + (f", {report.spec.title}" if report.spec.title else "")
        node = "node Load GenDR UNet" + (", with Load GenDR VAE16" if needs else "")
        return Use(what=what, takers=(f"gendr restore --unet {path.name}{needs}", node))
    try:
        shapes: Mapping[str, Shape] = locate("unet", header.shapes).shapes
    except CheckpointError:
        return Use(what="a UNet whose tensors contradict each other")
    arch = unet_arch_of(header)
    if report.format_version is not None:
        return Use(what="a UNet of GenDR's format that cannot be used")
    if arch is None:
        text = shapes.get("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", ())
        sd1 = len(text) > 1 and text[1] == SD1_CONTEXT_DIM
        return Use(what="a UNet of SD1.x" if sd1 else "a UNet of another shape than SD2.1's", takers=(CORE["unet"],))
    channels = (arch.in_channels, arch.out_channels)
    if channels == (VAE16_CHANNELS, VAE16_CHANNELS):
        takers = (f"gendr bake-prompt --into {path.name}",) if _readable(report) else ()
        return Use(what="a UNet of GenDR's kind without a prompt", takers=takers)
    if channels == (SD_CHANNELS, SD_CHANNELS):
        return Use(what="a UNet of SD2.1's kind: a base model", takers=tuple(_as_base(path, header, report)))
    return Use(what=f"a UNet of SD2.1's kind from {channels[0]} to {channels[1]} channels", takers=(CORE["unet"],))


def unet_arch_of(header: Header) -> UNetArch | None:
    """Return the shape of a UNet that comes without GenDR's metadata, None where there is none that GenDR can run."""
    try:
        return infer_unet_arch(locate("unet", header.shapes).shapes)
    except CheckpointError:
        return None


def _as_base(path: Path, header: Header, report: FileReport) -> Iterator[str]:
    """Return what takes the UNet of a file as the base of a relative, and the VAE where it is there."""
    arch = unet_arch_of(header)
    if arch is not None and (arch.in_channels, arch.out_channels) == (SD_CHANNELS, SD_CHANNELS) and _readable(report):
        yield f"{BASE} --unet {path.name}" + (f" --vae {path.name}" if report.kind == "checkpoint" else "")
    if report.kind == "unet":
        yield CORE["unet"]


def _vae(path: Path, report: FileReport) -> Use:
    if not isinstance(report.spec, VAESpec):
        ours = report.format_version is not None
        what = "a VAE of GenDR's format that cannot be used" if ours else "a VAE that is none of GenDR's"
        return Use(what=what, takers=() if ours else (CORE["vae16"],))
    channels = report.spec.arch.latent_channels
    takers = [f"gendr restore --unet UNET --vae {path.name}", "node Load GenDR VAE16"]
    if channels == SD_CHANNELS and report.format_version is None:
        takers = [f"{BASE} --vae {path.name}", *takers, CORE["vae16"]]
    return Use(what=f"a VAE with {channels} latent channels", takers=tuple(takers))


def _readable(report: FileReport) -> bool:
    return all(dtype in READABLE_DTYPES for dtype in report.dtypes)
