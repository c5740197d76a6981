from dataclasses import replace

import pytest
import torch
from networks import tiny_unet

from gendr_core.errors import OptionError, ShapeError
from gendr_core.model import GenDRUNet
from gendr_core.step import one_step


def latent_of(channels: int = 4, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, 9, 7, generator=torch.Generator().manual_seed(9))


def raw(unet: GenDRUNet, latent: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return unet.network(latent, unet.spec.timestep, prompt.expand(latent.shape[0], -1, -1))


def test_equation(latent_unet: GenDRUNet) -> None:
    latent, scaling = latent_of(), latent_unet.spec.latent_scaling
    z = latent * scaling
    expected = (2.0**0.5 * z - raw(latent_unet, z, latent_unet.positive)) / scaling
    torch.testing.assert_close(one_step(latent, latent_unet), expected, rtol=1e-5, atol=1e-5)


def test_guidance_equation(latent_unet: GenDRUNet) -> None:
    assert latent_unet.negative is not None
    latent, scaling, weight = latent_of(batch=2), latent_unet.spec.latent_scaling, 1.7
    z = latent * scaling
    negative, positive = raw(latent_unet, z, latent_unet.negative), raw(latent_unet, z, latent_unet.positive)
    expected = (2.0**0.5 * z - (negative + weight * (positive - negative))) / scaling
    torch.testing.assert_close(one_step(latent, latent_unet, guidance=weight), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, one_step(latent, latent_unet), atol=1e-3)


@pytest.mark.parametrize(("guidance", "batches"), [(1.0, [3]), (1.5, [6]), (0.0, [6])])
def test_number_of_passes(latent_unet: GenDRUNet, guidance: float, batches: list[int]) -> None:
    seen: list[int] = []
    handle = latent_unet.network.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    one_step(latent_of(batch=3), latent_unet, guidance=guidance)
    handle.remove()
    assert seen == batches


def test_guidance_defaults_to_the_model(latent_unet: GenDRUNet) -> None:
    guided = replace(latent_unet, spec=replace(latent_unet.spec, guidance=1.3))
    latent = latent_of()
    assert torch.equal(one_step(latent, guided), one_step(latent, latent_unet, guidance=1.3))


def test_v_prediction_coefficients_come_from_the_spec() -> None:
    unet = tiny_unet(prediction="v_prediction", c_skip=0.5**0.5, c_out=-(0.5**0.5), latent_scaling=1.0)
    latent = latent_of()
    expected = 0.5**0.5 * (latent - raw(unet, latent, unet.positive))
    torch.testing.assert_close(one_step(latent, unet), expected, rtol=1e-5, atol=1e-6)


def test_wrong_channels(latent_unet: GenDRUNet) -> None:
    with pytest.raises(ShapeError, match=r"4 channels \(front vae16\), got 16"):
        one_step(latent_of(16), latent_unet)


def test_guidance_without_negative_prompt() -> None:
    with pytest.raises(OptionError, match=r"negative prompt for guidance 1\.5"):
        one_step(latent_of(), tiny_unet(), guidance=1.5)
