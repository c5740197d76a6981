"""Names of a file's tensors: which network they are, and what diffusers calls them.

Role: used by ``checkpoint`` on the checked ``header``, before any tensor is read. Knows the diffusers layout (also its
older names for the VAE's attention) and the LDM layout (CompVis, ComfyUI), each with or without the prefix that a whole
Stable Diffusion checkpoint puts before it.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from .errors import CheckpointError
from .header import Shape
from .metadata import Kind

Layout = Literal["diffusers", "ldm"]

PREFIXES: dict[Kind, str] = {"unet": "model.diffusion_model.", "vae16": "first_stage_model."}
"""Of whole checkpoints."""
OTHER_PREFIXES: dict[Kind, tuple[str, ...]] = {"unet": (), "vae16": ("vaeDe4.", "state_dict/vaeDe4.")}
"""Of the file that TVT publishes its VAE in: as tensors alone, and as it was pickled."""
PROMPT_NAMES = ("prompt.positive", "prompt.negative")
SCALE_SUFFIX = "_scale"
"""Behind the name of a weight in 8 bits: what to multiply its output channels with."""

CONDITIONED = re.compile(r"(add_embedding|label_emb|class_embedding)\.")
"""UNet tensors of SDXL, unCLIP and upscaling models, which ask for inputs that GenDR does not have."""

FOREIGN: dict[str, re.Pattern[str]] = {
    "controlnet": re.compile(r"control_model\.|controlnet_|input_hint_block\."),
    "diffusion_transformer": re.compile(r"(model\.diffusion_model\.)?(joint|double|transformer)_blocks\."),
    "text_encoder": re.compile(r"cond_stage_model\.|text_model\.|transformer\.resblocks\.|encoder\.block\."),
}
"""How names start in files that people give by mistake."""

WORDS = {
    "unet": "a UNet",
    "vae16": "a VAE",
    "checkpoint": "a checkpoint with UNet and VAE",
    "lora": "a LoRA (merge it into its base model first)",
    "conditioned_unet": "a UNet with extra conditioning, such as SDXL's",
    "controlnet": "a ControlNet",
    "diffusion_transformer": "a diffusion transformer (SD3, FLUX and others)",
    "text_encoder": "a text encoder",
    "unknown": "a network that GenDR does not know",
}
"""What a file may hold, in words."""

WANTED: dict[Kind, str] = {"unet": "a UNet of SD2.1's kind", "vae16": "a VAE"}
"""What GenDR runs, in words."""


@dataclass(frozen=True, slots=True)
class Located:
    """The tensors of one network in a file."""

    layout: Layout
    sources: Mapping[str, str]
    """Name in the file by diffusers name."""
    shapes: Mapping[str, Shape]
    """Shape that the network expects (1x1 convolutions as linear layers) by diffusers name."""
    scales: Mapping[str, str]
    """Name in the file of the scales of a weight by the weight's diffusers name, for those that have some."""


def identify(names: Collection[str]) -> str:
    """Return what the names look like: a key of ``WORDS``. Only names are seen, so this is a guess to be checked."""
    contents = _contents(names)
    return "checkpoint" if contents[:2] == ["unet", "vae16"] else contents[0]


def locate(kind: Kind, shapes: Mapping[str, Shape]) -> Located:
    """Return the tensors of the network that is asked for, under diffusers names; the rest of the file is ignored.

    What is ignored: where the network's prefix is used, everything without it; prompts; a VAE's training loss. Names
    that no layout has are kept, so that they show up when names are compared with those of the network.

    Args:
        kind: which network.
        shapes: shape of every tensor by its name in the file.

    Raises:
        CheckpointError: the file holds no such network, or two of its tensors get the same name.
    """
    contents = _contents(shapes.keys())
    stripped = _strip(kind, shapes.keys())
    layout = _layout(kind, stripped)
    if layout is None or kind not in contents:
        raise CheckpointError(
            f"expected {WANTED[kind]}, got {WORDS[contents[0]]}: choose a file that holds {WANTED[kind]}"
        )
    rename = _renamer(kind, layout, stripped)
    scaled = {name: stripped.pop(name + SCALE_SUFFIX) for name in list(stripped) if name + SCALE_SUFFIX in stripped}
    sources: dict[str, str] = {}
    for name, source in stripped.items():
        renamed = rename(name)
        if renamed in sources:
            raise CheckpointError(
                f"{sources[renamed]!r} and {source!r} are the same tensor {renamed!r}: drop one of them"
            )
        sources[renamed] = source
    squeezed = {name: _squeeze(name, shapes[source]) for name, source in sources.items()}
    return Located(layout, sources, squeezed, {rename(name): scales for name, scales in scaled.items()})


def _contents(names: Collection[str]) -> list[str]:
    """Return the keys of ``WORDS`` that apply, networks that GenDR runs first; never empty."""
    if any("lora_" in name or ".lora." in name for name in names):
        return ["lora"]
    contents: list[str] = [kind for kind in PREFIXES if _layout(kind, _strip(kind, names))]
    if "unet" in contents and any(CONDITIONED.match(name) for name in _strip("unet", names)):
        contents[0] = "conditioned_unet"
    contents += [code for code, start in FOREIGN.items() if any(start.match(name) for name in names)]
    return contents or ["unknown"]


def _strip(kind: Kind, names: Collection[str]) -> dict[str, str]:
    """Return the names in the file by their names without the network's prefix."""
    for prefix in (PREFIXES[kind], *OTHER_PREFIXES[kind]):
        stripped = {name[len(prefix) :]: name for name in names if name.startswith(prefix)}
        if stripped:
            return stripped
    return {name: name for name in names if name not in PROMPT_NAMES and not name.startswith("loss.")}


def _layout(kind: Kind, names: Collection[str]) -> Layout | None:
    """Return the layout whose way down and way up are both there."""
    marks: dict[Layout, tuple[str, str]] = (
        {"diffusers": ("down_blocks.", "up_blocks."), "ldm": ("input_blocks.", "output_blocks.")}
        if kind == "unet"
        else {"diffusers": ("encoder.down_blocks.", "decoder.up_blocks."), "ldm": ("encoder.down.", "decoder.up.")}
    )
    for layout, starts in marks.items():
        if all(any(name.startswith(start) for name in names) for start in starts):
            return layout
    return None


def count_distinct(names: Collection[str], pattern: str) -> int:
    """Return how many different texts the group of ``pattern`` has where it matches the start of a name."""
    return len({match[1] for match in (re.match(pattern, name) for name in names) if match})


_LINEAR = re.compile(r".*attentions\.\d+\.(proj_in|proj_out|to_q|to_k|to_v|to_out\.0)\.weight")


def _squeeze(name: str, shape: Shape) -> Shape:
    """Return the linear form of attention weights that some files keep as 1x1 convolutions."""
    return shape[:2] if _LINEAR.fullmatch(name) and shape[2:] in ((1, 1), (1,)) else shape


def _renamer(kind: Kind, layout: Layout, names: Collection[str]) -> Callable[[str], str]:
    if kind == "vae16":
        num_levels = count_distinct(names, r"decoder\.up\.(\d+)\.")
        return lambda name: _rename_vae(name, num_levels)
    if layout == "diffusers":
        return lambda name: name
    # Input block 0 is conv_in; then each level has its layers and, but for the last level, one block that downsamples.
    num_levels = 1 + count_distinct(names, r"input_blocks\.(\d+)\.0\.op\.")
    period = max(1, count_distinct(names, r"input_blocks\.(\d+)\.") // num_levels)
    return lambda name: _rename_unet(name, period)


_LDM_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_LDM_UNET = {
    "input_blocks.0.0.": "conv_in.",
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
_LDM_UNET_BLOCK = re.compile(r"(input|output)_blocks\.(\d{1,4})\.(\d)\.(?:(op|conv)(?=\.))?(.*)")


def _rename_unet(name: str, period: int) -> str:
    """Return the diffusers name of an LDM one; ``period`` is the number of blocks per level."""
    for old, new in _LDM_UNET.items():
        if name.startswith(old):
            return new + _rename_resnet(name[len(old) :])
    match = _LDM_UNET_BLOCK.fullmatch(name)
    if match is None:
        return name
    way, block, part, resampler, rest = match.groups()
    # conv_in takes the first place on the way down; nothing does on the way up.
    level, layer = divmod(int(block) - (way == "input"), period)
    side = "down" if way == "input" else "up"
    if resampler is not None:
        return f"{side}_blocks.{level}.{side}samplers.0.conv{rest}"
    if part == "0":
        return f"{side}_blocks.{level}.resnets.{layer}.{_rename_resnet(rest)}"
    return f"{side}_blocks.{level}.attentions.{layer}.{rest}"


def _rename_resnet(rest: str) -> str:
    module, _, leaf = rest.rpartition(".")
    return f"{_LDM_RESNET[module]}.{leaf}" if module in _LDM_RESNET else rest


_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
"""LDM's names, then those of diffusers before 0.15, by the current ones."""


def _rename_vae(name: str, num_levels: int) -> str:
    """Return the diffusers name of an LDM or old diffusers one; LDM counts the decoder's levels from the finest."""
    side, _, rest = name.partition(".")
    if match := re.fullmatch(r"(?:mid\.attn_1|mid_block\.attentions\.0)\.(\w+)\.(\w+)", rest):
        return f"{side}.mid_block.attentions.0.{_VAE_ATTENTION.get(match[1], match[1])}.{match[2]}"
    if match := re.fullmatch(r"mid\.block_([12])\.(.+)", rest):
        return f"{side}.mid_block.resnets.{int(match[1]) - 1}.{_shortcut(match[2])}"
    if match := re.fullmatch(r"(down|up)\.(\d{1,4})\.(?:block\.(\d+)|(?:down|up)sample)\.(.+)", rest):
        way, number, layer, leaf = match.groups()
        level = int(number) if way == "down" else num_levels - 1 - int(number)
        part = f"{way}samplers.0" if layer is None else f"resnets.{layer}"
        return f"{side}.{way}_blocks.{level}.{part}.{_shortcut(leaf)}"
    return f"{side}.conv_{rest}" if re.fullmatch(r"norm_out\.\w+", rest) else name


def _shortcut(leaf: str) -> str:
    return leaf.replace("nin_shortcut", "conv_shortcut")
