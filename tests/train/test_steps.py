"""Updates: where they start, and which weights their gradients reach."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gendr_core.checkpoint import write_vae
from gendr_core.geometry import Extent
from gendr_core.nets import VAE
from gendr_core.prepare import prepare
from gendr_core.spec import VAEArch, VAESpec
from gendr_train.data.dataset import Batch
from gendr_train.roles import Roles, build_roles
from gendr_train.schema import LossWeights, TrainConfig
from gendr_train.steps import restored, to_pair, update_losses

CPU = torch.device("cpu")


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return Batch(original, torch.rand((2, 3, 16, 16), generator=generator))


@pytest.fixture
def vae_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    arch = VAEArch(latent_channels=4, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_groups=4)
    path = tmp_path / "vae.safetensors"
    write_vae(path, VAESpec(arch=arch, latent_scaling=0.5), VAE(arch).state_dict())
    return path


def _gradients(roles: Roles, weights: LossWeights) -> dict[str, bool]:
    """Return parameter name -> whether one update gives it a gradient other than 0."""
    losses = update_losses(roles, to_pair(_batch()), weights, torch.Generator().manual_seed(0))
    torch.stack([value.sum() for value in losses.values()]).sum().backward()
    grads = {name: parameter.grad for name, parameter in roles.trained.named_parameters()}
    return {name: grad is not None and bool(grad.any()) for name, grad in grads.items()}


def test_the_enlarged_image_is_the_one_that_inference_sees() -> None:
    batch = _batch()
    reference = prepare(batch.damaged.permute(0, 2, 3, 1), Extent(64, 64)).reference
    assert torch.equal(to_pair(batch).upsampled, reference)


def test_pixel_training_starts_exactly_at_bicubic(make_config: Callable[..., TrainConfig]) -> None:
    roles, pair = build_roles(make_config("pixel"), CPU), to_pair(_batch())
    assert torch.equal(restored(roles, pair), pair.upsampled)
    losses = update_losses(roles, pair, LossWeights(charbonnier=0.0, l1=1.0), torch.Generator())
    assert losses.keys() == {"l1"}
    assert torch.allclose(losses["l1"], (pair.upsampled - pair.original).abs().mean((1, 2, 3)))


def test_the_first_pixel_update_reaches_the_last_convolution_only(make_config: Callable[..., TrainConfig]) -> None:
    reached = _gradients(build_roles(make_config("pixel"), CPU), LossWeights())
    assert {name for name, has in reached.items() if has} == {"conv_out.weight", "conv_out.bias"}


def test_later_pixel_updates_reach_every_weight_in_use(make_config: Callable[..., TrainConfig]) -> None:
    roles = build_roles(make_config("pixel"), CPU)
    torch.nn.init.ones_(roles.trained.get_parameter("conv_out.weight"))
    reached = _gradients(roles, LossWeights())
    # One prompt token has attention weight 1 whatever its query and key, so these two learn nothing but rounding.
    assert all(has for name, has in reached.items() if "attn2.to_q" not in name and "attn2.to_k" not in name)
    assert not roles.prompt.requires_grad


def test_vae_update_reaches_encoder_and_decoder(make_config: Callable[..., TrainConfig]) -> None:
    roles = build_roles(make_config("vae16"), CPU)
    reached = _gradients(roles, LossWeights(kl=1e-3))
    assert any(has for name, has in reached.items() if ".encoder." in name)
    assert any(has for name, has in reached.items() if ".decoder." in name)
    first, second = (
        update_losses(roles, to_pair(_batch()), LossWeights(kl=1.0), torch.Generator().manual_seed(i)) for i in (1, 2)
    )
    assert not torch.equal(first["charbonnier"], second["charbonnier"]), "the posterior is sampled"
    assert torch.equal(first["kl"], second["kl"])


def test_latent_update_trains_the_unet_through_a_frozen_vae(
    make_config: Callable[..., TrainConfig], vae_file: Path
) -> None:
    roles = build_roles(make_config("latent", vae=str(vae_file)), CPU)
    assert roles.vae is not None
    assert roles.latent_scaling == 0.5
    reached = _gradients(roles, LossWeights(latent=1.0))
    assert {name for name, has in reached.items() if has} == {"conv_out.weight", "conv_out.bias"}
    assert all(parameter.grad is None for parameter in roles.vae.parameters())


def test_latent_losses_start_at_the_distance_of_the_codes(
    make_config: Callable[..., TrainConfig], vae_file: Path
) -> None:
    roles, pair = build_roles(make_config("latent", vae=str(vae_file)), CPU), to_pair(_batch())
    assert roles.vae is not None
    losses = update_losses(roles, pair, LossWeights(charbonnier=0.0, latent=1.0), torch.Generator())
    codes = [roles.vae.encode(pixels) * 0.5 for pixels in pair]
    assert losses.keys() == {"latent"}
    assert torch.allclose(losses["latent"], (codes[0] - codes[1]).abs().mean((1, 2, 3)), rtol=1e-4)


def test_networks_come_from_the_seed_and_leave_the_global_generator_alone(
    make_config: Callable[..., TrainConfig],
) -> None:
    state = torch.get_rng_state()
    one, same = (build_roles(make_config("pixel"), CPU) for _ in range(2))
    other = build_roles(make_config("pixel", run={"seed": 4}), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.trained.get_parameter("conv_in.weight"), same.trained.get_parameter("conv_in.weight"))
    assert torch.equal(one.prompt, same.prompt)
    assert not torch.equal(one.prompt, other.prompt)
