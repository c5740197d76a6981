"""Stages pixel and latent: where they start, and which weights their gradients reach."""

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
from gendr_train.rng import Draws
from gendr_train.schema import TrainConfig
from gendr_train.stages.build import build_stage
from gendr_train.stages.restoration import RestorationStage
from gendr_train.stages.stage import Losses, Stage, to_pair

MakeConfig = Callable[..., TrainConfig]


def batch_of() -> Batch:
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    damaged = torch.rand((2, 3, 16, 16), generator=generator)
    return Batch(original=original, damaged=damaged, position=torch.arange(2), caption=["", ""])


def losses_of(stage: Stage, images: int = 2) -> Losses:
    return stage(batch_of(), Draws(0, [0, 1], torch.device("cpu")), images)


def reached(stage: Stage, loss: str) -> set[str]:
    """Return the parameters that a loss gives a gradient other than 0."""
    stage.zero_grad(set_to_none=True)
    losses_of(stage)[loss].sum().backward()
    return {name for name, p in stage.named_parameters() if p.grad is not None and bool(p.grad.any())}


def restoration(make_config: MakeConfig, stage: str = "pixel", **sections: object) -> RestorationStage:
    built = build_stage(make_config(stage, **sections))
    assert isinstance(built, RestorationStage)
    return built


@pytest.fixture
def vae_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    arch = VAEArch(latent_channels=4, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_groups=4)
    path = tmp_path / "vae.safetensors"
    write_vae(path, VAESpec(arch=arch, latent_scaling=0.5), VAE(arch).state_dict())
    return path


def test_the_enlarged_image_is_the_one_that_inference_sees() -> None:
    batch = batch_of()
    reference = prepare(batch.damaged.permute(0, 2, 3, 1), Extent(64, 64)).reference
    assert torch.equal(to_pair(batch).upsampled, reference)


def test_pixel_training_starts_exactly_at_bicubic(make_config: MakeConfig) -> None:
    stage, pair = restoration(make_config, pixel={"losses": {"charbonnier": 0.0, "l1": 1.0}}), to_pair(batch_of())
    assert torch.equal(stage.restored(pair), pair.upsampled)
    losses = losses_of(stage)
    assert losses.keys() == stage.weights.keys() == {"generator/l1"}
    assert torch.allclose(losses["generator/l1"], (pair.upsampled - pair.original).abs().mean((1, 2, 3)))


def test_the_first_pixel_update_reaches_the_last_convolution_only(make_config: MakeConfig) -> None:
    stage = restoration(make_config)
    assert reached(stage, "generator/charbonnier") == {"unet.conv_out.weight", "unet.conv_out.bias"}


def test_later_pixel_updates_reach_every_weight_in_use(make_config: MakeConfig) -> None:
    stage = restoration(make_config)
    torch.nn.init.ones_(stage.unet.conv_out.weight)
    names = reached(stage, "generator/charbonnier")
    # One prompt token has attention weight 1 whatever its query and key, so these two learn nothing but rounding.
    missing = {name for name, _ in stage.named_parameters()} - names
    assert all("attn2.to_q" in name or "attn2.to_k" in name for name in missing)
    assert "prompt" in stage.state_dict()


def test_recomputed_activations_give_the_same_gradients(make_config: MakeConfig) -> None:
    grads: list[torch.Tensor] = []
    for checkpointing in (False, True):
        stage = restoration(make_config, loop={"checkpointing": checkpointing})
        torch.nn.init.ones_(stage.unet.conv_out.weight)
        losses_of(stage)["generator/charbonnier"].sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in stage.parameters() if p.grad is not None]))
    assert torch.equal(grads[0], grads[1])
    assert float(grads[0].norm()) > 0.0


def test_the_adversary_and_the_unet_learn_their_own_losses_only(make_config: MakeConfig) -> None:
    adversary = {"weight": 0.5, "channels": 4, "layers": 1, "start_images": 100}
    stage = restoration(make_config, pixel={"adversary": adversary})
    torch.nn.init.ones_(stage.unet.conv_out.weight)
    assert losses_of(stage, images=99).keys() == {"generator/charbonnier", "discriminator/real", "discriminator/fake"}
    losses = losses_of(stage, images=100)
    assert losses.keys() == stage.weights.keys()
    assert stage.weights["generator/adversarial"] == 0.5
    roles = {name: {id(p) for p in role.parameters} for name, role in stage.roles().items()}
    own = {name: id(p) for name, p in stage.named_parameters()}
    for loss, value in losses.items():
        stage.zero_grad(set_to_none=True)
        value.sum().backward(retain_graph=True)
        with_gradient = {own[name] for name, p in stage.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert with_gradient
        assert with_gradient <= roles[loss.split("/")[0]]


def test_latent_update_trains_the_unet_through_a_frozen_vae(make_config: MakeConfig, vae_file: Path) -> None:
    stage = restoration(make_config, "latent", latent={"vae": str(vae_file), "latent": 1.0})
    unet = {"unet.conv_out.weight", "unet.conv_out.bias"}
    assert reached(stage, "generator/charbonnier") == reached(stage, "generator/latent") == unet
    assert {name.split(".")[0] for name in stage.state_dict()} == {"unet", "prompt"}


def test_latent_losses_start_at_the_distance_of_the_codes(make_config: MakeConfig, vae_file: Path) -> None:
    settings = {"vae": str(vae_file), "latent": 1.0, "losses": {"charbonnier": 0.0}}
    stage = restoration(make_config, "latent", latent=settings)
    losses = losses_of(stage)
    vae = VAE(VAEArch(latent_channels=4, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_groups=4))
    torch.manual_seed(0)
    for parameter, value in zip(vae.parameters(), stage._vae.network.parameters(), strict=True):  # type: ignore[union-attr]
        parameter.data.copy_(value)
    upsampled, original = (vae.encode(pixels) * 0.5 for pixels in reversed(to_pair(batch_of())))
    assert losses.keys() == {"generator/latent"}
    assert torch.allclose(losses["generator/latent"], (upsampled - original).abs().mean((1, 2, 3)), rtol=1e-4)


def test_networks_come_from_the_seed_and_leave_the_global_generator_alone(make_config: MakeConfig) -> None:
    state = torch.get_rng_state()
    one, same = (restoration(make_config) for _ in range(2))
    other = restoration(make_config, run={"seed": 4})
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.unet.conv_in.weight, same.unet.conv_in.weight)
    assert torch.equal(one.prompt, same.prompt)
    assert not torch.equal(one.prompt, other.prompt)
