import pytest

from gendr_core.errors import CheckpointError
from gendr_core.header import Shape
from gendr_core.textfile import SD2, TextArch, is_usable, locate_encoder, recognise_encoder

SMALL = TextArch(width=4, layers=1, heads=1, hidden=8, tokens=3, words=5)


def openclip(arch: TextArch, prefix: str = "cond_stage_model.model.") -> dict[str, Shape]:
    """Return what OpenCLIP keeps, by hand."""
    wide, block = (arch.width,), {}
    for layer in range(arch.layers):
        for module, shape in (
            ("ln_1.", wide),
            ("ln_2.", wide),
            ("attn.in_proj_", (3 * arch.width, arch.width)),
            ("attn.out_proj.", (arch.width, arch.width)),
            ("mlp.c_fc.", (arch.hidden, arch.width)),
            ("mlp.c_proj.", (arch.width, arch.hidden)),
        ):
            block[f"transformer.resblocks.{layer}.{module}weight"] = shape
            block[f"transformer.resblocks.{layer}.{module}bias"] = shape[:1]
    outside = {
        "token_embedding.weight": (arch.words, arch.width),
        "positional_embedding": (arch.tokens, arch.width),
        "ln_final.weight": wide,
        "ln_final.bias": wide,
    }
    return {prefix + name: shape for name, shape in {**block, **outside}.items()}


def clip_l(prefix: str) -> dict[str, Shape]:
    return {f"{prefix}text_model.embeddings.token_embedding.weight": (49_408, 768)}


def test_sd2_is_found_with_340_million_parameters() -> None:
    pieces = locate_encoder(openclip(SD2))
    assert len(pieces) == 4 + 23 * 16
    assert pieces["encoder.layers.22.self_attn.k_proj.bias"] == (
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_bias",
        1,
    )
    with_last = openclip(TextArch(layers=24))
    assert locate_encoder(with_last) == pieces
    assert recognise_encoder(with_last) == "the text encoder of SD2.x"


@pytest.mark.parametrize(
    ("shapes", "whose"),
    [
        (clip_l("cond_stage_model.transformer."), "768 .CLIP-L, of SD1.x"),
        (clip_l(""), "768 .CLIP-L"),
        (openclip(TextArch(width=1280, layers=1), ""), "1280 .OpenCLIP bigG, of SDXL"),
        (openclip(TextArch(width=640, layers=1), ""), "640 .another text encoder"),
        (
            {**clip_l("conditioner.embedders.0.transformer."), **openclip(TextArch(width=1280), "conditioner.e.1.")},
            "got 2 text encoders, as of SDXL or SD3",
        ),
        ({"shared.weight": (32_128, 4096), "encoder.block.0.layer.0.layer_norm.weight": (4096,)}, "got T5, of SD3"),
        ({"down_blocks.0.w": (1,), "up_blocks.0.w": (1,)}, "got a UNet"),
        ({"x": (1,)}, "got a network that GenDR does not know"),
    ],
)
def test_other_encoders_are_refused_by_name_with_what_to_choose(shapes: dict[str, Shape], whose: str) -> None:
    with pytest.raises(CheckpointError, match=rf"expected the text encoder of SD2\.x.*{whose}.*: choose the text_enco"):
        locate_encoder(shapes)
    assert not is_usable(shapes)


def test_other_encoders_are_recognised() -> None:
    assert recognise_encoder(clip_l("")) == "CLIP-L, of SD1.x, SDXL and FLUX"
    assert recognise_encoder({"x.token_embedding.weight": (3, 640)}) == "a CLIP of width 640"
    assert recognise_encoder({"x.token_embedding.weight": (3, 1024)}) == "a CLIP of width 1024, not that of SD2.x"
    assert recognise_encoder({"x.shared.weight": (1, 1)}) == "T5, of SD3, FLUX and others"
    assert recognise_encoder({"token_embedding.weight": ()}) == "a CLIP of width 0"
    assert recognise_encoder({"conv_in.weight": (1,)}) is None


@pytest.mark.parametrize("layers", [0, 3])
def test_another_number_of_layers_is_refused(layers: int) -> None:
    shapes = openclip(TextArch(width=4, layers=layers, hidden=8, tokens=3, words=5))
    with pytest.raises(CheckpointError, match=rf"with 1 layers, or 2 of which the last is not used, got {layers}"):
        locate_encoder(shapes, SMALL)


def test_every_tensor_is_needed_in_its_shape() -> None:
    shapes = openclip(SMALL)
    locate_encoder(shapes, SMALL)
    for name in shapes:
        if "resblocks" not in name and "token_embedding" not in name:
            rest = {other: shape for other, shape in shapes.items() if other != name}
            with pytest.raises(CheckpointError, match=rf"lacks 1 tensors \({name}\)"):
                locate_encoder(rest, SMALL)
        if "token_embedding" not in name:
            with pytest.raises(CheckpointError, match=rf"whose {name} is .*, got \[7\]"):
                locate_encoder({**shapes, name: (7,)}, SMALL)
    # What is beside it does not matter.
    assert is_usable({**shapes, "visual.conv1.weight": (1,), "cond_stage_model.model.logit_scale": ()}, SMALL)
