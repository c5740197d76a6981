"""Names of other layouts, checked against diffusers' own conversion and rows copied from the files themselves."""

from contextlib import suppress

import pytest
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from ldm import unet_to_ldm, vae_to_ldm
from torch import nn

from gendr_core.errors import CheckpointError
from gendr_core.header import Shape
from gendr_core.layouts import PREFIXES, identify, locate
from gendr_core.nets import VAE, UNet
from gendr_core.spec import UNetArch, VAEArch

UNETS = (
    UNetArch(),
    UNetArch(block_out_channels=(32,), attention_levels=(True,), layers_per_block=1, head_dim=32),
    UNetArch(block_out_channels=(32, 64, 96), attention_levels=(False, True, False), layers_per_block=3, head_dim=32),
    UNetArch(block_out_channels=(32,) * 5, attention_levels=(False,) * 5, layers_per_block=1, head_dim=32),
)
VAES = (
    VAEArch(),
    VAEArch(latent_channels=4, block_out_channels=(128, 256, 512, 512)),
    VAEArch(block_out_channels=(32, 32, 64), layers_per_block=1, quant_conv=False),
    VAEArch(block_out_channels=(32,), layers_per_block=3, mid_attention=False),
)


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    """Return the shape of every tensor of a network."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def unet_shapes(arch: UNetArch = UNETS[1]) -> dict[str, Shape]:
    """Return a UNet's shapes without making it."""
    return shapes_of(UNet(arch, device="meta"))


def vae_shapes(arch: VAEArch = VAES[2]) -> dict[str, Shape]:
    """Return a VAE's shapes without making it."""
    return shapes_of(VAE(arch, device="meta"))


@pytest.mark.parametrize("arch", UNETS, ids=("sd21", "one level", "three deep", "no attention"))
def test_ldm_unet_names_agree_with_diffusers(arch: UNetArch) -> None:
    ours = {name: name for name in unet_shapes(arch)}
    ldm = unet_to_ldm(ours, arch)
    prefixed = {PREFIXES["unet"] + name: value for name, value in ldm.items()}
    theirs = convert_ldm_unet_checkpoint(dict(prefixed), {"layers_per_block": arch.layers_per_block})
    assert theirs == ours  # the names made by the test are those that diffusers expects
    shapes = unet_shapes(arch)
    found = locate("unet", {name: shapes[value] for name, value in ldm.items()})
    assert found.layout == "ldm"
    assert {name: ldm[source] for name, source in found.sources.items()} == ours
    assert found.shapes == shapes


@pytest.mark.parametrize("arch", VAES, ids=("vae16", "sd", "no quant", "one level"))
def test_ldm_vae_names_agree_with_diffusers(arch: VAEArch) -> None:
    shapes, num_levels = vae_shapes(arch), len(arch.block_out_channels)
    ours = {name: name for name in shapes}
    ldm = vae_to_ldm(ours, num_levels)
    tensors = {PREFIXES["vae16"] + name: nn.Parameter() for name in ldm}
    config = {"down_block_types": ["D"] * num_levels, "up_block_types": ["U"] * num_levels}
    theirs = convert_ldm_vae_checkpoint(dict(tensors), config)
    found = locate("vae16", {name: shapes[value] for name, value in ldm.items()})
    assert found.layout == "ldm"
    assert found.sources.keys() == theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensors[PREFIXES["vae16"] + found.sources[name]] is tensor
    assert {name: ldm[source] for name, source in found.sources.items()} == ours
    assert found.shapes == shapes


SD21_NAMES = {
    "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
    "input_blocks.3.0.op.bias": "down_blocks.0.downsamplers.0.conv.bias",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.8.1.transformer_blocks.0.norm1.bias": "down_blocks.2.attentions.1.transformer_blocks.0.norm1.bias",
    "input_blocks.11.0.emb_layers.1.weight": "down_blocks.3.resnets.1.time_emb_proj.weight",
    "middle_block.1.proj_in.weight": "mid_block.attentions.0.proj_in.weight",
    "middle_block.2.out_layers.3.weight": "mid_block.resnets.1.conv2.weight",
    "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
    "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
    "output_blocks.11.1.norm.weight": "up_blocks.3.attentions.2.norm.weight",
    "out.2.weight": "conv_out.weight",
    "time_embed.2.bias": "time_embedding.linear_2.bias",
}
SD_VAE_NAMES = {
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down.0.downsample.conv.weight": "encoder.down_blocks.0.downsamplers.0.conv.weight",
    "encoder.mid.attn_1.proj_out.weight": "encoder.mid_block.attentions.0.to_out.0.weight",
    "decoder.mid.attn_1.norm.bias": "decoder.mid_block.attentions.0.group_norm.bias",
    "decoder.mid.block_2.conv1.weight": "decoder.mid_block.resnets.1.conv1.weight",
    "decoder.up.3.upsample.conv.weight": "decoder.up_blocks.0.upsamplers.0.conv.weight",
    "decoder.up.0.block.2.norm2.weight": "decoder.up_blocks.3.resnets.2.norm2.weight",
    "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
    "post_quant_conv.bias": "post_quant_conv.bias",
}


def test_names_from_the_published_files() -> None:
    ldm_unet = unet_to_ldm(unet_shapes(UNETS[0]), UNETS[0])
    assert len(ldm_unet) == 686  # tensors in the UNet of v2-1_512-ema-pruned
    unet = {source: name for name, source in locate("unet", ldm_unet).sources.items()}
    assert {name: unet[name] for name in SD21_NAMES} == SD21_NAMES
    vae = {source: name for name, source in locate("vae16", vae_to_ldm(vae_shapes(VAES[1]), 4)).sources.items()}
    assert len(vae) == 248
    assert {name: vae[name] for name in SD_VAE_NAMES} == SD_VAE_NAMES


def test_old_diffusers_vae_attention() -> None:
    new = vae_shapes()
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old: dict[str, Shape] = {}
    for name, shape in new.items():
        for current, former in renames.items():
            name = name.replace(f"attentions.0.{current}", f"attentions.0.{former}")
        old[name] = shape
    assert sum("query" in name for name in old) == 4
    found = locate("vae16", old)
    assert found.layout == "diffusers"
    assert found.shapes == new


@pytest.mark.parametrize("kind", ["unet", "vae16"])
def test_attention_as_1x1_convolutions_is_squeezed(kind: str) -> None:
    shapes = unet_shapes() if kind == "unet" else vae_shapes()
    parts = ("proj_in.weight", "proj_out.weight") if kind == "unet" else (".to_q.weight", ".to_out.0.weight")
    convolved = {
        name: (*shape, 1, 1) if name.endswith(parts) and "transformer" not in name else shape
        for name, shape in shapes.items()
    }
    assert convolved != shapes
    assert locate(kind, convolved).shapes == shapes  # type: ignore[arg-type]


def test_a_convolution_stays_one() -> None:
    found = locate("vae16", vae_shapes(VAES[0]))
    assert found.shapes["quant_conv.weight"] == (32, 32, 1, 1)
    assert found.shapes["encoder.down_blocks.2.resnets.0.conv_shortcut.weight"] == (256, 128, 1, 1)


@settings(max_examples=8, deadline=None)
@given(ldm=st.booleans(), prefixed=st.booleans(), unet=st.sampled_from(UNETS[1:]), vae=st.sampled_from(VAES[2:]))
def test_layouts_and_prefixes(ldm: bool, prefixed: bool, unet: UNetArch, vae: VAEArch) -> None:
    for kind, shapes in (("unet", unet_shapes(unet)), ("vae16", vae_shapes(vae))):
        named = shapes
        if ldm:
            named = unet_to_ldm(shapes, unet) if kind == "unet" else vae_to_ldm(shapes, len(vae.block_out_channels))
        if prefixed:
            named = {PREFIXES[kind] + name: shape for name, shape in named.items()}  # type: ignore[index]
        found = locate(kind, named)  # type: ignore[arg-type]
        assert found.shapes == shapes
        assert found.layout == ("ldm" if ldm else "diffusers")
        assert set(found.sources.values()) == set(named)


def whole_checkpoint() -> dict[str, Shape]:
    """Return the shapes of a Stable Diffusion checkpoint with everything in it."""
    unet = {PREFIXES["unet"] + name: shape for name, shape in unet_to_ldm(unet_shapes(), UNETS[1]).items()}
    vae = {PREFIXES["vae16"] + name: shape for name, shape in vae_to_ldm(vae_shapes(), 3).items()}
    rest = {"cond_stage_model.model.ln_final.weight": (8,), "betas": (1000,), "model_ema.decay": ()}
    return unet | vae | rest


def test_a_whole_checkpoint_gives_what_is_asked_for() -> None:
    shapes = whole_checkpoint()
    assert identify(shapes) == "checkpoint"
    assert locate("unet", shapes).shapes == unet_shapes()
    assert locate("vae16", shapes).shapes == vae_shapes()


FOREIGN = {
    "lora": ["lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight"],
    "text_encoder": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "controlnet": ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "diffusion_transformer": ["model.diffusion_model.double_blocks.0.img_attn.proj.weight"],
    "unknown": ["model.0.weight", "model.1.sub.0.weight"],
}


@pytest.mark.parametrize(("code", "names"), FOREIGN.items(), ids=FOREIGN.keys())
def test_foreign_files_are_named(code: str, names: list[str]) -> None:
    words = {
        "lora": r"a LoRA \(merge it into its base model first\)",
        "text_encoder": "a text encoder",
        "controlnet": "a ControlNet",
        "diffusion_transformer": r"a diffusion transformer \(SD3, FLUX and others\)",
        "unknown": "a network that GenDR does not know",
    }[code]
    shapes = dict.fromkeys(names, (4, 4))
    assert identify(shapes) == code
    with pytest.raises(CheckpointError, match=rf"expected a UNet of SD2\.1's kind, got {words}: choose"):
        locate("unet", shapes)
    with pytest.raises(CheckpointError, match=f"expected a VAE, got {words}"):
        locate("vae16", shapes)


def test_a_peft_lora_over_unet_names_is_a_lora() -> None:
    shapes = {f"{name.removesuffix('.weight')}.lora_A.weight": shape for name, shape in unet_shapes().items()}
    assert identify(shapes) == "lora"


@pytest.mark.parametrize("extra", ["add_embedding.linear_1.weight", "class_embedding.linear_1.weight"])
def test_conditioned_unets_are_refused(extra: str) -> None:
    with pytest.raises(CheckpointError, match="got a UNet with extra conditioning, such as SDXL's"):
        locate("unet", unet_shapes() | {extra: (4, 4)})


def test_a_whole_sdxl_checkpoint_still_gives_its_vae() -> None:
    shapes = whole_checkpoint() | {"model.diffusion_model.label_emb.0.0.weight": (4, 4)}
    assert locate("vae16", shapes).shapes == vae_shapes()
    with pytest.raises(CheckpointError, match="SDXL"):
        locate("unet", shapes)


def test_unet_and_vae_are_told_apart() -> None:
    with pytest.raises(CheckpointError, match=r"expected a UNet of SD2\.1's kind, got a VAE: choose"):
        locate("unet", vae_shapes())
    with pytest.raises(CheckpointError, match="expected a VAE, got a UNet: choose"):
        locate("vae16", unet_shapes())


def test_the_same_tensor_under_two_names_is_an_error() -> None:
    arch = UNETS[1]
    shapes = unet_to_ldm(unet_shapes(arch), arch)
    with pytest.raises(CheckpointError, match=r"are the same tensor 'conv_in\.weight': drop one of them"):
        locate("unet", shapes | {"conv_in.weight": (32, 16, 3, 3)})


@settings(max_examples=15, deadline=None)
@given(
    names=st.lists(
        st.from_regex(
            r"(input|output)_blocks\.[0-9]{1,6}\.[0-9]\.(op|conv)?(\.weight)?|(en|de)coder\.(up|down)\.[0-9]{1,6}\.block\.0\.x",
            fullmatch=True,
        ),
        unique=True,
    )
)
def test_absurd_names_never_raise_anything_else(names: list[str]) -> None:
    shapes: dict[str, Shape] = dict.fromkeys(names, (1,))
    for kind in PREFIXES:
        with suppress(CheckpointError):
            locate(kind, shapes)
