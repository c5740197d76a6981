"""Stage cida on tiny networks: who learns from what, values against networks merged by hand, and the exported file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from cida_by_hand import ROLES, CidaByHand
from networks import tiny_unet, tiny_vae
from torch import Tensor, nn

from gendr_core import RestoreOptions, load_unet, load_vae, restore
from gendr_core.checkpoint import write_unet, write_vae
from gendr_core.errors import OptionError
from gendr_core.step import one_step
from gendr_train.data.dataset import Batch
from gendr_train.errors import TrainingError
from gendr_train.rng import Draws
from gendr_train.schema import ExportConfig
from gendr_train.sections import AlignmentConfig, FeatureConfig, LoraConfig, OneStep
from gendr_train.settings import CidaSettings
from gendr_train.stages.cida import CidaStage
from gendr_train.stages.stage import Losses, to_pair

MakeStage = Callable[..., CidaStage]

ABOUT = ExportConfig(title="tiny", license="CC0", source="a test", trained_on="nothing")
SEED = 5
POSITIONS = (3, 11)
DISTILLATIONS = ["vsd", "sid", "cid"]
LOSSES = {
    "generator/distillation",
    "fake/denoising",
    "real/denoising",
    "generator/adversarial",
    "discriminator/real",
    "discriminator/fake",
    "generator/alignment",
    "generator/latent",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base of each prediction, one without a negative prompt, and a VAE."""
    folder = tmp_path_factory.mktemp("weights")
    unet, vae = tiny_unet(4, negative=True), tiny_vae()
    state = unet.network.state_dict()
    for prediction in ("epsilon", "v_prediction"):
        spec = replace(unet.spec, prediction=prediction)
        write_unet(folder / f"{prediction}.safetensors", spec, state, unet.positive, unet.negative)
    write_unet(folder / "positive.safetensors", unet.spec, state, unet.positive)
    write_vae(folder / "vae.safetensors", vae.spec, vae.network.state_dict())
    return folder


@pytest.fixture(scope="module")
def settings(files: Path) -> CidaSettings:
    """Return settings with a weight for every loss."""
    encoder = FeatureConfig(kind="vae16", name=str(files / "vae.safetensors"), layers=(2,))
    return CidaSettings(
        base=str(files / "epsilon.safetensors"),
        vae=str(files / "vae.safetensors"),
        lora=LoraConfig(rank=2, alpha=4),
        alignment=AlignmentConfig(features=encoder, hidden=6),
        latent=1.0,
    )


@pytest.fixture
def make_stage(settings: CidaSettings) -> MakeStage:
    """Return a maker of stages; keyword arguments replace settings, ``apart`` moves the adapters from the base."""

    def make(*, checkpointing: bool = False, apart: bool = True, **replaced: object) -> CidaStage:
        torch.manual_seed(0)
        stage = CidaStage(replace(settings, **replaced), checkpointing=checkpointing)  # type: ignore[arg-type]
        if apart:
            set_apart(stage)
        return stage

    return make


def set_apart(stage: CidaStage) -> None:
    """Move the adapters away from the base, each its own way."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in stage.unet.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def make_batch(positions: Sequence[int] = POSITIONS, crop_px: int = 32) -> Batch:
    """Return smooth pictures with the damaged ones a quarter of their size, each made by its position."""
    pixels: list[Tensor] = []
    for position in positions:
        coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(position))
        pixels.append(nn.functional.interpolate(coarse, size=(crop_px, crop_px), mode="bicubic").clamp(0, 1))
    original = torch.cat(pixels)
    damaged = nn.functional.avg_pool2d(original, 4)
    captions = [""] * len(positions)
    return Batch((original * 255).to(torch.uint8), damaged, torch.tensor(list(positions)), captions)


def make_draws(positions: Sequence[int] = POSITIONS) -> Draws:
    return Draws(SEED, positions, torch.device("cpu"))


def losses_of(stage: CidaStage, positions: Sequence[int] = POSITIONS) -> Losses:
    return stage(make_batch(positions), make_draws(positions), 0)


def total(stage: CidaStage, losses: Losses) -> Tensor:
    return torch.stack([stage.weights[name] * loss.mean() for name, loss in losses.items()]).sum()


@pytest.mark.parametrize("distillation", DISTILLATIONS)
def test_every_loss_reaches_its_own_role_and_no_other(make_stage: MakeStage, distillation: str) -> None:
    stage = make_stage(distillation=distillation)
    losses = losses_of(stage)
    assert set(losses) == set(stage.weights) == LOSSES
    owners = [(name, parameter) for name, role in stage.roles().items() for parameter in role.parameters]
    parameters = [parameter for _, parameter in owners]
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss.sum(), parameters, retain_graph=True, allow_unused=True)
        reached = {owner for (owner, _), gradient in zip(owners, gradients, strict=True) if gradient is not None}
        moved = {owner for (owner, _), g in zip(owners, gradients, strict=True) if g is not None and g.any()}
        assert reached == moved == {name.partition("/")[0]}, name


def test_an_update_moves_every_parameter_of_the_roles_and_nothing_else(make_stage: MakeStage) -> None:
    stage = make_stage()
    total(stage, losses_of(stage)).backward()
    owned = {id(parameter) for role in stage.roles().values() for parameter in role.parameters}
    assert {id(parameter) for parameter in stage.parameters() if parameter.requires_grad} == owned
    assert {id(parameter) for parameter in stage.parameters() if parameter.grad is not None} == owned


def test_each_parameter_has_one_role_with_its_rate(make_stage: MakeStage) -> None:
    roles = make_stage(real_rate=0.5, fake_rate=2.0, discriminator_rate=3.0).roles()
    assert {name: role.rate for name, role in roles.items()} == dict(zip(ROLES, [1.0, 0.5, 2.0, 3.0], strict=True))
    for a, b in combinations(roles.values(), 2):
        assert not {id(p) for p in a.parameters} & {id(p) for p in b.parameters}


def test_the_vae_and_the_encoder_are_no_part_of_the_stage(make_stage: MakeStage) -> None:
    names = {name.partition(".")[0] for name in make_stage().state_dict()}
    assert names == {"unet", "head", "alignment"}


def test_what_has_no_weight_is_neither_built_nor_computed(make_stage: MakeStage) -> None:
    stage = make_stage(adversary_weight=0.0, distillation_weight=0.0, alignment=None)
    assert set(losses_of(stage)) == set(stage.weights) == {"generator/latent"}
    assert set(stage.roles()) == {"generator"}
    assert {name.partition(".")[0] for name in stage.state_dict()} == {"unet"}


def test_without_a_rate_the_real_score_is_the_base(make_stage: MakeStage) -> None:
    frozen, trained = (make_stage(real_rate=rate, apart=False) for rate in (0.0, 1.0))
    assert set(frozen.roles()) == {"generator", "fake", "discriminator"}
    losses = losses_of(frozen)
    assert set(losses) == LOSSES - {"real/denoising"}
    # Adapters start as the base.
    expected = losses_of(trained)["generator/distillation"]
    torch.testing.assert_close(losses["generator/distillation"], expected)


def test_the_generator_starts_as_the_base(make_stage: MakeStage, files: Path) -> None:
    stage, pair = make_stage(apart=False), to_pair(make_batch())
    base, vae = load_unet(files / "epsilon.safetensors", folds=()), load_vae(files / "vae.safetensors", folds=())
    # The default one_step is that of the file.
    latent = one_step(vae.network.encode(pair.upsampled), base)
    torch.testing.assert_close(stage.restored(pair), vae.network.decode(latent).clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("distillation", "prediction"),
    [("vsd", "epsilon"), ("sid", "epsilon"), ("cid", "epsilon"), ("cid", "v_prediction")],
)
@torch.no_grad()
def test_values_are_those_of_separate_networks(
    make_stage: MakeStage, settings: CidaSettings, files: Path, distillation: str, prediction: str
) -> None:
    base = str(files / f"{prediction}.safetensors")
    replaced: dict[str, Any] = {"base": base, "prediction": prediction, "distillation": distillation}
    replaced |= {"guidance": 2.5, "xi": 0.7}
    stage = make_stage(**replaced)
    by_hand = CidaByHand(stage, replace(settings, **replaced))
    positions = (9, *POSITIONS)
    expected = by_hand.losses(make_batch(positions), make_draws(positions))
    assert by_hand.dropped == [True, False, False]
    assert torch.stack(list(expected.values())).abs().min() > 1e-6
    torch.testing.assert_close(losses_of(stage, positions), expected, atol=1e-5, rtol=1e-4)


def test_a_divided_batch_gives_the_same_losses(make_stage: MakeStage) -> None:
    stage = make_stage()
    whole, parts = losses_of(stage), [losses_of(stage, [position]) for position in POSITIONS]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, torch.cat([part[name] for part in parts]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("distillation", ["vsd", "cid"])
def test_checkpointing_changes_no_gradient(make_stage: MakeStage, distillation: str) -> None:
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        stage = make_stage(distillation=distillation, checkpointing=checkpointing)
        total(stage, losses_of(stage)).backward()
        gradients.append([p.grad for role in stage.roles().values() for p in role.parameters if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("distillation", DISTILLATIONS)
@torch.no_grad()
def test_where_the_scores_agree_nothing_is_distilled(make_stage: MakeStage, distillation: str) -> None:
    stage = make_stage(apart=False, distillation=distillation, guidance=1.0)
    assert losses_of(stage)["generator/distillation"].tolist() == [0.0, 0.0]
    set_apart(stage)
    assert losses_of(stage)["generator/distillation"].abs().min() > 0.0


@torch.no_grad()
def test_guidance_alone_sets_the_scores_apart(make_stage: MakeStage) -> None:
    stage = make_stage(apart=False, guidance=3.0)
    assert losses_of(stage)["generator/distillation"].abs().min() > 0.0


@pytest.mark.parametrize("distillation", ["vsd", "cid"])
def test_bfloat16_is_finite_and_moves_every_parameter(make_stage: MakeStage, distillation: str) -> None:
    stage = make_stage(distillation=distillation, checkpointing=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(stage)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    total(stage, losses).backward()
    gradients = [parameter.grad for role in stage.roles().values() for parameter in role.parameters]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_updates_lower_the_distance_to_the_original(make_stage: MakeStage) -> None:
    stage = make_stage(apart=False, distillation_weight=0.0, adversary_weight=0.0, alignment=None)
    optimiser = torch.optim.Adam(stage.roles()["generator"].parameters, lr=3e-3)
    history: list[float] = []
    for _ in range(30):
        loss = total(stage, losses_of(stage))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_exported_file_restores_as_the_stage_does(
    make_stage: MakeStage, files: Path, tmp_path: Path, guidance: float
) -> None:
    stage = make_stage(one_step=OneStep(timestep=200, c_skip=1.0, c_out=-0.5, scale=4.0, guidance=guidance))
    path = tmp_path / "generator.safetensors"
    stage.export(path, ABOUT)
    unet, vae = load_unet(path), load_vae(files / "vae.safetensors")
    assert (unet.spec.guidance, unet.spec.title, unet.spec.timestep) == (guidance, "tiny", 200)
    assert unet.spec.latent_scaling == vae.spec.latent_scaling
    assert (unet.negative is None) == (guidance == 1.0)
    batch = make_batch(crop_px=64)
    result = restore(batch.damaged.permute(0, 2, 3, 1), unet, vae, RestoreOptions(color="none"))
    expected = stage.restored(to_pair(batch)) * 0.5 + 0.5
    torch.testing.assert_close(result.permute(0, 3, 1, 2), expected, atol=3e-3, rtol=0)


@pytest.mark.parametrize(("key", "replaced"), [("cida.guidance", {}), ("one_step", {"guidance": 1.0})])
def test_guidance_needs_a_negative_prompt(
    make_stage: MakeStage, files: Path, key: str, replaced: dict[str, object]
) -> None:
    base = str(files / "positive.safetensors")
    step = OneStep(guidance=1.0 if key == "cida.guidance" else 1.2)
    with pytest.raises(TrainingError, match=f"expected a negative prompt in .* for .*{key}.*, got none"):
        make_stage(base=base, one_step=step, **replaced)
    assert losses_of(make_stage(base=base, guidance=1.0)).keys() == LOSSES


def test_the_prediction_has_to_be_that_of_the_base(make_stage: MakeStage, files: Path, tmp_path: Path) -> None:
    base = str(files / "v_prediction.safetensors")
    with pytest.raises(TrainingError, match=r"expected cida\.prediction v_prediction as in .*, got epsilon"):
        make_stage(base=base)
    path = tmp_path / "generator.safetensors"
    make_stage(base=base, prediction="v_prediction").export(path, ABOUT)
    assert load_unet(path).spec.prediction == "v_prediction"


def test_a_generator_that_would_learn_nothing_is_refused(settings: CidaSettings) -> None:
    nothing = {"distillation_weight": 0.0, "adversary_weight": 0.0, "latent": 0.0}
    with pytest.raises(OptionError, match=r"expected a weight above 0 in cida\.distillation_weight"):
        replace(settings, **nothing)
    for name in nothing:
        assert getattr(replace(settings, **{**nothing, name: 0.1}), name) == 0.1
