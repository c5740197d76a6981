"""Our pipeline against the reference pipeline on diffusers' modules, same seeded weights, fp32."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from networks import seeded, tiny_unet, tiny_vae
from torch import Tensor

from gendr_core.config import RestoreOptions
from gendr_core.errors import OptionError
from gendr_core.geometry import Extent
from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.nets import UNet
from gendr_core.pipeline import restore
from gendr_core.reference import GenDRReferencePipeline
from gendr_core.spec import (
    BETA_END,
    BETA_START,
    NUM_TRAIN_TIMESTEPS,
    ModelSpec,
    Prediction,
    alpha_bar,
    one_step_coefficients,
)

TOLERANCE = 1e-4
"""Bound on max |difference| of images in 0 to 1: a fortieth of an 8-bit step."""
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction")


def image_of(height: int, width: int, batch: int = 1) -> Tensor:
    # Within 0.2 to 0.8, so that few results are clamped and differences show.
    return 0.2 + 0.6 * torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(height + width))


def latent_unet(prediction: Prediction) -> GenDRUNet:
    c_skip, c_out = one_step_coefficients(prediction, alpha_bar(354))
    return tiny_unet(negative=True, prediction=prediction, c_skip=c_skip, c_out=c_out)


def both(
    image: Tensor, unet: GenDRUNet, vae: GenDRVAE | None, scale: float, guidance: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return our result and the reference's."""
    ours = restore(image, unet, vae, RestoreOptions(scale=scale, color="none", guidance=guidance))
    extent = Extent(height=ours.shape[1], width=ours.shape[2])
    return ours, GenDRReferencePipeline.from_gendr(unet, vae)(image, extent, guidance)


def assert_same_and_alive(ours: Tensor, reference: Tensor) -> None:
    # Most values unclamped and spread out: two black images would agree as well.
    inside = ((ours > 0.0) & (ours < 1.0)).float().mean()
    assert inside > 0.5
    assert ours.std() > 100 * TOLERANCE
    torch.testing.assert_close(ours, reference, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance", [None, 1.7])
def test_vae_path_equals_reference(prediction: Prediction, guidance: float | None) -> None:
    assert_same_and_alive(*both(image_of(20, 26), latent_unet(prediction), tiny_vae(), 2.0, guidance))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_pixel_path_equals_reference(prediction: Prediction) -> None:
    c_skip, c_out = one_step_coefficients(prediction, 0.5)
    unet = tiny_unet(
        192, prediction=prediction, front="pixel_unshuffle8", back="pixel_shuffle8", c_skip=c_skip, c_out=0.2 * c_out
    )
    assert_same_and_alive(*both(image_of(20, 26), unet, None, 2.0))


@pytest.mark.parametrize(
    "ends", [{"front": "pixel_unshuffle8", "back": "vae16"}, {"front": "vae16", "back": "pixel_shuffle8"}], ids=str
)
def test_mixed_ends_equal_reference(ends: dict[str, Any]) -> None:
    channels = {"vae16": 4, "pixel_unshuffle8": 192, "pixel_shuffle8": 192}
    plain = tiny_unet()
    arch = replace(plain.spec.arch, in_channels=channels[ends["front"]], out_channels=channels[ends["back"]])
    network = UNet(arch)
    seeded(network, 5)
    unet = replace(plain, network=network, spec=ModelSpec(arch=arch, c_skip=0.0, c_out=0.3, **ends))
    assert_same_and_alive(*both(image_of(20, 26), unet, tiny_vae(), 2.0))


def test_a_batch_shrunk_equals_reference() -> None:
    assert_same_and_alive(*both(image_of(150, 170, batch=3), latent_unet("epsilon"), tiny_vae(), 0.5, 1.3))


def test_guidance_reaches_the_reference() -> None:
    reference = GenDRReferencePipeline.from_gendr(latent_unet("epsilon"), tiny_vae())
    image, extent = image_of(32, 32), Extent(64, 64)
    plain = reference(image, extent)
    assert (reference(image, extent, 3.0) - plain).abs().max() > 10 * TOLERANCE
    assert torch.equal(reference(image, extent, 1.0), plain)


def test_reference_is_deterministic() -> None:
    reference = GenDRReferencePipeline.from_gendr(latent_unet("epsilon"), tiny_vae())
    image, extent = image_of(20, 26), Extent(40, 52)
    first = reference(image, extent)
    torch.manual_seed(7)
    assert torch.equal(reference(image, extent), first)


def test_reference_shares_our_weights_and_is_a_usable_pipeline() -> None:
    unet, vae = latent_unet("epsilon"), tiny_vae()
    reference = GenDRReferencePipeline.from_gendr(unet, vae)
    assert reference.vae is not None
    ours = {**dict(unet.network.named_parameters()), **dict(vae.network.named_parameters())}
    theirs = {**dict(reference.unet.named_parameters()), **dict(reference.vae.named_parameters())}
    assert {name: p.data_ptr() for name, p in ours.items()} == {name: p.data_ptr() for name, p in theirs.items()}
    assert not any(parameter.requires_grad for parameter in theirs.values())
    assert reference.to("cpu").device == torch.device("cpu")
    image, extent = image_of(32, 32), Extent(64, 64)
    again = GenDRReferencePipeline(**reference.components)  # pyright: ignore[reportArgumentType] - declared as objects
    assert torch.equal(again(image, extent), reference(image, extent))
    assert reference.vae.config["scaling_factor"] == unet.spec.latent_scaling


def test_missing_parts_are_named() -> None:
    with pytest.raises(OptionError, match="expected a VAE, got none"):
        GenDRReferencePipeline.from_gendr(latent_unet("epsilon"))
    reference = GenDRReferencePipeline.from_gendr(tiny_unet(), tiny_vae())
    with pytest.raises(OptionError, match=r"negative prompt for guidance 2\.0"):
        reference(image_of(32, 32), Extent(64, 64), 2.0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_coefficients_equal_the_schedulers_clean_estimate(prediction: Prediction) -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
    )
    latent, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    _, expected = scheduler.step(output, 354, latent, return_dict=False)
    c_skip, c_out = one_step_coefficients(prediction, alpha_bar(354))
    torch.testing.assert_close(c_skip * latent + c_out * output, expected, rtol=0, atol=1e-5)
