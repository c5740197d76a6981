"""Names of a text encoder's tensors: whose encoder a file holds, and what transformers calls its tensors.

Role: for ``text`` what ``layouts`` is for networks; works on the checked ``header``, before any tensor is read. Knows
the layouts of OpenCLIP (whole SD2 checkpoints) and transformers (diffusers, ComfyUI), with any prefix before them.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .errors import CheckpointError, listed
from .header import Shape
from .layouts import WORDS, count_distinct, identify

Layout = Literal["openclip", "transformers"]

WHOSE = {
    512: "CLIP ViT-B",
    768: "CLIP-L, of SD1.x, SDXL and FLUX",
    1280: "OpenCLIP bigG, of SDXL",
}
"""Text encoders by their width."""
CHOOSE = "choose the text_encoder of SD2.1 (gendr download sd21-text-encoder), or a whole SD2.1 checkpoint"

MARK = re.compile(r"(?P<prefix>.*?)(?P<transformers>(?:text_model\.)?embeddings\.)?token_embedding\.weight")
"""The one tensor that every CLIP text encoder has; what stands before it stands before all of them."""
T5 = re.compile(r"(?:.*\.)?(?:shared\.weight|encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextArch:
    """Shape of a CLIP text encoder; the defaults are SD2's: OpenCLIP ViT-H/14 without its last layer."""

    width: int = 1024
    layers: int = 23
    heads: int = 16
    hidden: int = 4096
    """Width inside the two-layer networks."""
    tokens: int = 77
    """Length of every prompt."""
    words: int = 49_408
    """Size of the vocabulary; the last two are the start and the end of a text."""


SD2 = TextArch()


class Piece(NamedTuple):
    """Where one tensor lies in a file."""

    source: str
    """Name in the file."""
    third: int | None
    """Which third of its rows it is, where OpenCLIP keeps query, key and value in one; None for all of them."""


def recognise_encoder(shapes: Mapping[str, Shape]) -> str | None:
    """Return whose text encoder a file holds, in words; None where it has none. ``is_usable`` says if GenDR can run it.

    Args:
        shapes: shape of every tensor by its name in the file.
    """
    marks = _marks(shapes)
    if len(marks) > 1:
        return f"{len(marks)} text encoders, as of SDXL or SD3"
    if marks:
        width = _width(shapes, marks[0])
        if width == SD2.width:
            return "the text encoder of SD2.x" if is_usable(shapes) else f"a CLIP of width {width}, not that of SD2.x"
        return WHOSE.get(width, f"a CLIP of width {width}")
    return "T5, of SD3, FLUX and others" if any(map(T5.fullmatch, shapes)) else None


def is_usable(shapes: Mapping[str, Shape], arch: TextArch = SD2) -> bool:
    """Return whether ``locate_encoder`` finds the text encoder of this shape."""
    try:
        locate_encoder(shapes, arch)
    except CheckpointError:
        return False
    return True


def locate_encoder(shapes: Mapping[str, Shape], arch: TextArch = SD2) -> dict[str, Piece]:
    """Return where each tensor lies, by the name it has in transformers without ``text_model.``; the rest is ignored.

    Of a file with one layer more than ``arch`` the last is left out, as SD2 does.

    Args:
        shapes: shape of every tensor by its name in the file.
        arch: the shape that is expected.

    Raises:
        CheckpointError: the file holds no text encoder, several, another one, or half of it.
    """
    marks = _marks(shapes)
    if len(marks) != 1:
        found = recognise_encoder(shapes) or WORDS[identify(shapes.keys())]
        raise CheckpointError(f"expected the text encoder of SD2.x, got {found}: {CHOOSE}")
    mark = marks[0]
    width = _width(shapes, mark)
    if width != arch.width:
        whose = WHOSE.get(width, "another text encoder")
        raise CheckpointError(
            f"expected the text encoder of SD2.x, {arch.width} wide, got one of {width} ({whose}): {CHOOSE}"
        )
    layout: Layout = "openclip" if mark["transformers"] is None else "transformers"
    root = mark["prefix"] + (mark["transformers"] or "").removesuffix("embeddings.")
    blocks = "transformer.resblocks" if layout == "openclip" else "encoder.layers"
    layers = count_distinct(shapes.keys(), rf"{re.escape(root + blocks)}\.(\d+)\.")
    if layers not in (arch.layers, arch.layers + 1):
        raise CheckpointError(
            f"expected the text encoder of SD2.x with {arch.layers} layers, or {arch.layers + 1} of which the last is"
            f" not used, got {layers}: {CHOOSE}"
        )
    expected = dict(_tensors(arch))
    pieces = {name: _piece(root, name, layout) for name in expected}
    _check(shapes, expected, pieces)
    return pieces


def _marks(names: Collection[str]) -> list[re.Match[str]]:
    return [match for match in map(MARK.fullmatch, names) if match is not None]


def _width(shapes: Mapping[str, Shape], mark: re.Match[str]) -> int:
    return (shapes[mark[0]] or (0,))[-1]


def _tensors(arch: TextArch) -> Iterator[tuple[str, Shape]]:
    """Return the name of every tensor and its shape."""
    wide = (arch.width,)
    yield "embeddings.token_embedding.weight", (arch.words, arch.width)
    yield "embeddings.position_embedding.weight", (arch.tokens, arch.width)
    modules: dict[str, Shape] = {
        **dict.fromkeys(("layer_norm1", "layer_norm2"), wide),
        **{f"self_attn.{part}_proj": (arch.width, arch.width) for part in ("q", "k", "v", "out")},
        "mlp.fc1": (arch.hidden, arch.width),
        "mlp.fc2": (arch.width, arch.hidden),
    }
    for layer in range(arch.layers):
        for module, shape in modules.items():
            yield f"encoder.layers.{layer}.{module}.weight", shape
            yield f"encoder.layers.{layer}.{module}.bias", shape[:1]
    yield "final_layer_norm.weight", wide
    yield "final_layer_norm.bias", wide


_OPENCLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPENCLIP_MODULES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_IN_ONE = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}
"""Parts of ``attn.in_proj``, in the order of torch.nn.MultiheadAttention."""


def _piece(root: str, name: str, layout: Layout) -> Piece:
    if layout == "transformers":
        return Piece(root + name, None)
    if name in _OPENCLIP:
        return Piece(root + _OPENCLIP[name], None)
    layer, _, rest = name.removeprefix("encoder.layers.").partition(".")
    module, _, leaf = rest.rpartition(".")
    block = f"{root}transformer.resblocks.{layer}"
    if module in _IN_ONE:
        return Piece(f"{block}.attn.in_proj_{leaf}", _IN_ONE[module])
    return Piece(f"{block}.{_OPENCLIP_MODULES[module]}.{leaf}", None)


def _check(shapes: Mapping[str, Shape], expected: Mapping[str, Shape], pieces: Mapping[str, Piece]) -> None:
    """Raise unless every piece is in the file in its shape."""
    missing = sorted({piece.source for piece in pieces.values() if piece.source not in shapes})
    if missing:
        raise CheckpointError(f"the text encoder lacks {len(missing)} tensors ({listed(missing)}): get the file again")
    for name, (source, third) in pieces.items():
        rows, *rest = expected[name]
        wanted = (rows if third is None else 3 * rows, *rest)
        if shapes[source] != wanted:
            raise CheckpointError(
                f"expected the text encoder of SD2.x, whose {source} is {list(wanted)}, got {list(shapes[source])}:"
                f" {CHOOSE}"
            )
