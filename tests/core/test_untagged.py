"""Files without metadata: shapes give the architecture back, and only what the paper says goes without saying."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gendr_core.errors import CheckpointError
from gendr_core.header import Shape
from gendr_core.metadata import SpecOverrides, model_spec
from gendr_core.nets import VAE, UNet
from gendr_core.spec import ModelSpec, UNetArch, VAEArch
from gendr_core.untagged import infer_unet_arch, infer_vae_arch, unstated_unet, unstated_vae

WIDTHS = st.sampled_from((64, 128, 192))


def unet_shapes(arch: UNetArch) -> dict[str, Shape]:
    """Return a UNet's shapes without making it."""
    return {name: tuple(tensor.shape) for name, tensor in UNet(arch, device="meta").state_dict().items()}


def vae_shapes(arch: VAEArch) -> dict[str, Shape]:
    """Return a VAE's shapes without making it."""
    return {name: tuple(tensor.shape) for name, tensor in VAE(arch, device="meta").state_dict().items()}


@settings(max_examples=12, deadline=None)
@given(data=st.data(), levels=st.integers(1, 4), layers=st.integers(1, 3))
def test_unet_arch_from_shapes(data: st.DataObject, levels: int, layers: int) -> None:
    arch = UNetArch(
        in_channels=data.draw(st.sampled_from((4, 16, 192))),
        out_channels=data.draw(st.sampled_from((4, 16, 192))),
        block_out_channels=tuple(data.draw(WIDTHS) for _ in range(levels)),
        attention_levels=tuple(data.draw(st.booleans()) for _ in range(levels)),
        layers_per_block=layers,
        cross_attention_dim=data.draw(st.sampled_from((8, 1024))),
    )
    assert infer_unet_arch(unet_shapes(arch)) == arch


@settings(max_examples=12, deadline=None)
@given(data=st.data(), levels=st.integers(1, 5), layers=st.integers(1, 3))
def test_vae_arch_from_shapes(data: st.DataObject, levels: int, layers: int) -> None:
    mid_block = data.draw(st.booleans())
    arch = VAEArch(
        latent_channels=data.draw(st.sampled_from((4, 16))),
        block_out_channels=tuple(data.draw(WIDTHS) for _ in range(levels)),
        layers_per_block=layers,
        quant_conv=data.draw(st.booleans()),
        mid_attention=mid_block and data.draw(st.booleans()),
        mid_block=mid_block,
    )
    assert infer_vae_arch(vae_shapes(arch)) == arch


def test_full_size_arch_from_shapes() -> None:
    assert infer_unet_arch(unet_shapes(UNetArch())) == UNetArch()
    assert infer_vae_arch(vae_shapes(VAEArch())) == VAEArch()


SMALL = UNetArch(block_out_channels=(64,), attention_levels=(True,), layers_per_block=1, cross_attention_dim=8)


def test_sd1_unets_are_refused() -> None:
    shapes = unet_shapes(UNetArch(block_out_channels=(64,), attention_levels=(True,), cross_attention_dim=768))
    with pytest.raises(
        CheckpointError, match=r"heads of 64 channels, got SD 1\.x \(text width 768, 8 heads at every width"
    ):
        infer_unet_arch(shapes)


def test_widths_that_do_not_divide_say_what_was_assumed() -> None:
    arch = UNetArch(block_out_channels=(96,), attention_levels=(True,), head_dim=32)
    with pytest.raises(CheckpointError, match=r"divide by head_dim 64, got 96 \(no GenDR metadata: 32 norm groups"):
        infer_unet_arch(unet_shapes(arch))
    vae = VAEArch(block_out_channels=(24,), norm_groups=8)
    with pytest.raises(CheckpointError, match=r"divide by 32 groups, got \(24,\) \(no GenDR metadata: 32 norm groups"):
        infer_vae_arch(vae_shapes(vae))


@pytest.mark.parametrize(
    "name", ["conv_in.weight", "conv_out.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
)
def test_a_needed_tensor_that_is_missing_or_flat(name: str) -> None:
    shapes = unet_shapes(SMALL)
    with pytest.raises(CheckpointError, match=rf"expected \d axes in {name}, got shape \[5\]"):
        infer_unet_arch(shapes | {name: (5,)})
    del shapes[name]
    with pytest.raises(CheckpointError, match=f"the tensor {name} is missing"):
        infer_unet_arch(shapes)


def spec_of(in_channels: int, out_channels: int, **given: object) -> ModelSpec:
    """Return the spec of a UNet without metadata and these user values."""
    arch = UNetArch(in_channels=in_channels, out_channels=out_channels)
    return model_spec(arch, unstated_unet(arch), SpecOverrides(**given))  # type: ignore[arg-type]


def test_sixteen_channels_are_gendr() -> None:
    assert spec_of(16, 16) == ModelSpec(arch=UNetArch())


def test_a_timestep_keeps_the_papers_coefficients() -> None:
    spec = spec_of(16, 16, timestep=499)
    assert (spec.timestep, spec.c_skip, spec.c_out) == (499, math.sqrt(2.0), -1.0)


def test_a_prediction_sets_the_coefficients() -> None:
    spec = spec_of(16, 16, prediction="v_prediction")
    assert (spec.c_skip, spec.c_out) == pytest.approx((math.sqrt(0.5), -math.sqrt(0.5)), rel=1e-12)


def test_four_channels_need_the_user() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"not say c_out, c_skip, latent_scaling, prediction, timestep: .* SpecOverrides\(c_out=\.\.\., c_skip=",
    ):
        spec_of(4, 4)
    with pytest.raises(CheckpointError, match=r"does not say latent_scaling: .* give SpecOverrides"):
        spec_of(4, 4, timestep=999, prediction="epsilon")


def test_public_relatives_from_their_user_values() -> None:
    osediff = spec_of(4, 4, timestep=999, prediction="epsilon", latent_scaling=0.18215)
    assert (osediff.c_skip, osediff.c_out) == pytest.approx((14.648814, -14.614641), rel=1e-6)
    hypir = spec_of(4, 4, timestep=200, prediction="epsilon", latent_scaling=0.18215)
    assert (hypir.c_skip, hypir.c_out) == pytest.approx((1.151869, -0.571666), rel=1e-5)
    pisa = spec_of(4, 4, timestep=1, c_skip=1.0, c_out=-1.0, latent_scaling=0.18215)
    assert (pisa.c_skip, pisa.c_out, pisa.prediction) == (1.0, -1.0, "epsilon")


def test_192_channels_are_pixels() -> None:
    spec = spec_of(192, 192, timestep=354, c_skip=0.0, c_out=1.0)
    assert (spec.front, spec.back, spec.latent_scaling) == ("pixel_unshuffle8", "pixel_shuffle8", 1.0)


def test_pixels_at_one_end_have_nothing_to_skip() -> None:
    encoderless = spec_of(192, 16, timestep=354, c_out=1.0, latent_scaling=0.2614)
    assert (encoderless.front, encoderless.back, encoderless.c_skip) == ("pixel_unshuffle8", "vae16", 0.0)
    assert spec_of(16, 192, timestep=354, c_out=1.0, latent_scaling=0.2614).back == "pixel_shuffle8"
    for channels in ((192, 16), (16, 192)):
        with pytest.raises(CheckpointError, match="does not say latent_scaling"):
            spec_of(*channels, timestep=354, c_out=1.0)


def test_inpainting_unets_are_refused() -> None:
    with pytest.raises(CheckpointError, match="as many channels out as in, got 9 in and 4 out"):
        spec_of(9, 4)


def test_scaling_by_number_of_parameters() -> None:
    for arch, scaling in (
        (VAEArch(), 0.2614),
        (VAEArch(latent_channels=4, block_out_channels=(128, 256, 512, 512)), 0.18215),
    ):
        assert unstated_vae(sum(math.prod(shape) for shape in vae_shapes(arch).values())) == {"latent_scaling": scaling}
    assert unstated_vae(12345) == {}


def test_the_vae_of_others_with_as_many_channels_is_named() -> None:
    arch = VAEArch(latent_channels=16, block_out_channels=(128, 256, 512, 512), quant_conv=False)
    with pytest.raises(CheckpointError, match=r"expected VAE16 .* got the VAE of SD3 or FLUX"):
        unstated_vae(sum(math.prod(shape) for shape in vae_shapes(arch).values()))
