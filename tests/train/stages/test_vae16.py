"""Stage vae16: what an update reaches, and what it measures."""

from collections.abc import Callable

import torch

from gendr_train.data.dataset import Batch
from gendr_train.rng import Draws
from gendr_train.schema import TrainConfig
from gendr_train.stages.build import build_stage
from gendr_train.stages.stage import to_pair
from gendr_train.stages.vae16 import Vae16Stage

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def batch_of() -> Batch:
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return Batch(original=original, damaged=torch.rand(2, 3, 16, 16), position=torch.arange(2), caption=["", ""])


def built(make_config: MakeConfig, **settings: object) -> Vae16Stage:
    stage = build_stage(make_config("vae16", vae16=settings))
    assert isinstance(stage, Vae16Stage)
    return stage


def test_an_update_reaches_encoder_and_decoder_through_a_sample(make_config: MakeConfig) -> None:
    stage = built(make_config, kl=1.0)
    first, second = (stage(batch_of(), Draws(seed, [0, 1], CPU), 2) for seed in (1, 2))
    assert first.keys() == stage.weights.keys() == {"generator/charbonnier", "generator/kl"}
    assert not torch.equal(first["generator/charbonnier"], second["generator/charbonnier"]), "the posterior is sampled"
    assert torch.equal(first["generator/kl"], second["generator/kl"])
    first["generator/charbonnier"].sum().backward()
    reached = {name.split(".")[1] for name, p in stage.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {"encoder", "decoder", "quant_conv", "post_quant_conv"}


def test_halves_of_a_batch_draw_what_the_whole_draws(make_config: MakeConfig) -> None:
    stage, batch = built(make_config), batch_of()
    whole = stage(batch, Draws(1, [0, 1], CPU), 2)["generator/charbonnier"]
    halves = [
        stage(batch._replace(original=batch.original[i : i + 1]), Draws(1, [i], CPU), 2)["generator/charbonnier"]
        for i in (0, 1)
    ]
    torch.testing.assert_close(whole, torch.cat(halves))


def test_the_scaling_is_measured_once_unless_it_is_given(make_config: MakeConfig) -> None:
    stage = built(make_config)
    stage.measure(batch_of())
    codes = stage.vae.encode(to_pair(batch_of()).original) * stage._latent_scaling  # type: ignore[operator]
    assert abs(float(codes.detach().std()) - 1.0) < 1e-4
    given = built(make_config, latent_scaling=0.3)
    given.measure(batch_of())
    assert given._latent_scaling == 0.3


def test_the_discriminator_sees_the_reconstruction(make_config: MakeConfig) -> None:
    stage = built(make_config, adversary={"channels": 4, "layers": 1})
    losses = stage(batch_of(), Draws(0, [0, 1], CPU), 2)
    assert losses.keys() == stage.weights.keys()
    losses["generator/adversarial"].sum().backward()
    assert all(p.grad is None for p in stage.roles()["discriminator"].parameters)
