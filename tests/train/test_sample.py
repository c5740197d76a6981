"""Sampling: the solver against a case with a known answer, and pictures of tiny networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import tiny_unet, tiny_vae
from PIL import Image
from torch import Tensor

from gendr_core.checkpoint import write_unet, write_vae
from gendr_core.errors import OptionError
from gendr_core.model import GenDRUNet
from gendr_core.spec import Prediction, alpha_bar
from gendr_core.tensors import to_image
from gendr_train.rng import Draws
from gendr_train.sample import Conditions, SampleOptions, as_grid, conditions_of, integrate, sample, write_samples

SMALL = SampleOptions(width_px=24, height_px=16, steps=3, guidance=2.0, count=2)


def _exact(mean: float, std: float, prediction: Prediction) -> Callable[[Tensor, int], Tensor]:
    """Return what a perfect network says where all clean values are normal with this mean and deviation."""

    def predict(noised: Tensor, timestep: int) -> Tensor:
        power = alpha_bar(timestep)
        variance = power * std**2 + 1.0 - power
        noise = (1.0 - power) ** 0.5 * (noised - power**0.5 * mean) / variance
        if prediction == "epsilon":
            return noise
        clean = (noised - (1.0 - power) ** 0.5 * noise) / power**0.5
        return power**0.5 * noise - (1.0 - power) ** 0.5 * clean

    return predict


def _unet(negative: bool = True) -> GenDRUNet:
    return tiny_unet(4, negative=negative)


def _made(unet: GenDRUNet, options: SampleOptions) -> Tensor:
    return sample(unet, tiny_vae(), conditions_of(unet, options), options)


def _error(mean: float, std: float, steps: int, prediction: Prediction) -> float:
    """Return the deviation from the exact solution, in units of ``std``: the map of normals that keeps their order."""
    noise = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    power = alpha_bar(999)
    # What of the signal is left at the last step is not in pure noise: the mean lands at 0.97 of itself.
    exact = mean + std * (noise - power**0.5 * mean) / (power * std**2 + 1.0 - power) ** 0.5
    return (
        float((integrate(_exact(mean, std, prediction), noise, steps, prediction) - exact).square().mean().sqrt()) / std
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_exact_score_leads_to_its_distribution(prediction: Prediction) -> None:
    assert _error(1.5, 0.5, 25, prediction) < 0.02
    assert _error(-0.3, 1.0, 25, prediction) < 0.02
    assert _error(0.0, 0.2, 25, prediction) < 0.02


def test_more_steps_come_closer() -> None:
    errors = [_error(0.0, 1.0, steps, "epsilon") for steps in (2, 10, 50, 400)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.002


def test_one_guided_step_is_the_formula() -> None:
    unet, vae, options = _unet(), tiny_vae(), SampleOptions(width_px=16, height_px=16, steps=1, guidance=3.0, count=1)
    assert unet.negative is not None
    noise = Draws(options.seed, [0], torch.device("cpu")).normal(4, 2, 2)
    negative, positive = (unet.network(noise, 999, prompt[None]) for prompt in (unet.negative, unet.positive))
    guided = negative + 3.0 * (positive - negative)
    power = alpha_bar(999)
    clean = (noise - (1.0 - power) ** 0.5 * guided) / power**0.5
    expected = to_image(vae.network.decode(clean / unet.spec.latent_scaling))
    assert torch.allclose(_made(unet, options), expected, atol=1e-4)


def test_guidance_of_one_does_not_ask_the_negative_prompt() -> None:
    options = SampleOptions(width_px=16, height_px=16, steps=2, guidance=1.0, count=1)
    assert torch.equal(_made(_unet(negative=True), options), _made(_unet(negative=False), options))


def test_pictures_depend_on_seed_and_place_alone() -> None:
    unet = _unet()
    images = _made(unet, SMALL)
    assert images.shape == (2, 16, 24, 3)
    assert float(images.min()) >= 0.0
    assert float(images.max()) <= 1.0
    assert torch.equal(images, _made(unet, SMALL))
    assert not torch.equal(images[0], images[1])
    three = _made(unet, SampleOptions(width_px=24, height_px=16, steps=3, guidance=2.0, count=3))
    assert torch.allclose(three[:2], images, atol=1e-5)
    other = _made(unet, SampleOptions(width_px=24, height_px=16, steps=3, guidance=2.0, count=2, seed=1))
    assert not torch.allclose(other, images, atol=1e-3)


def test_captions_go_through_the_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lengths:
        """Embeds a caption as its length."""

        def encode(self, captions: tuple[str, ...], device: torch.device) -> Tensor:
            return torch.tensor([float(len(caption)) for caption in captions], device=device).reshape(-1, 1, 1)

    asked: list[tuple[str, int]] = []

    def load(name: str, dim: int) -> Lengths:
        asked.append((name, dim))
        return Lengths()

    monkeypatch.setattr("gendr_train.sample.TextEncoder.load", load)
    options = SampleOptions(captions=("a", "two"), negative="blurred", text_encoder="sd", count=5)
    conditions = conditions_of(_unet(), options)
    assert asked == [("sd", 8)]
    assert conditions.positive.flatten().tolist() == [1.0, 3.0]
    assert conditions.negative is not None
    assert conditions.negative.flatten().tolist() == [7.0]


def test_prompts_matter() -> None:
    unet, options = _unet(), SampleOptions(width_px=16, height_px=16, steps=2, guidance=1.0)
    one = sample(unet, tiny_vae(), Conditions(unet.positive[None], None), options)
    other = sample(unet, tiny_vae(), Conditions(unet.positive[None] * -2.0, None), options)
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_grid_has_its_pictures_row_by_row() -> None:
    images = torch.arange(1.0, 4.0).reshape(3, 1, 1, 1).expand(3, 2, 3, 1)
    grid = as_grid(images)
    assert grid.shape == (1, 4, 6, 1)
    assert grid[0, :2, :, 0].tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]] * 2
    assert grid[0, 2:, :, 0].tolist() == [[3.0, 3.0, 3.0, 0.0, 0.0, 0.0]] * 2


def test_files_become_one_picture(tmp_path: Path) -> None:
    unet, vae, picture = _unet(), tiny_vae(), tmp_path / "samples.png"
    write_unet(tmp_path / "unet.safetensors", unet.spec, unet.network.state_dict(), unet.positive, unet.negative)
    write_vae(tmp_path / "vae.safetensors", vae.spec, vae.network.state_dict())
    files = str(tmp_path / "unet.safetensors"), str(tmp_path / "vae.safetensors")
    write_samples(picture, *files, SMALL, device="cpu")
    content = picture.read_bytes()
    write_samples(picture, *files, SMALL, device="cpu")
    assert picture.read_bytes() == content
    with Image.open(picture) as opened:
        assert opened.size == (48, 16)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["samples.png", "unet.safetensors", "vae.safetensors"]


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(OptionError, match="expected a negative prompt for guidance 2, got none"):
        _made(_unet(negative=False), SMALL)
    pixel = tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8", negative=True)
    with pytest.raises(OptionError, match="expected a UNet on the VAE's 4 latent channels, got front pixel_unshuffle8"):
        _made(pixel, SMALL)
    with pytest.raises(OptionError, match="with 16 channels in and 16 out"):
        _made(tiny_unet(16, negative=True), SMALL)


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="expected a text encoder for 1 captions, got none"):
        SampleOptions(captions=("a cat",))
    with pytest.raises(OptionError, match="expected 1 to 1000 steps, got 0"):
        SampleOptions(steps=0)
    with pytest.raises(OptionError, match="expected a count of at least 1"):
        SampleOptions(count=0)
    with pytest.raises(OptionError, match="expected sides that are multiples of 8 pixels, got 20"):
        SampleOptions(width_px=20)
