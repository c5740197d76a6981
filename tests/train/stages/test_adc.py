from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import tiny_unet, tiny_vae
from torch import Tensor, nn

from gendr_core import step
from gendr_core.checkpoint import read_unet, write_unet, write_vae
from gendr_core.config import RestoreOptions
from gendr_core.model import load_unet, load_vae
from gendr_core.pipeline import restore
from gendr_train.data.dataset import Batch
from gendr_train.errors import TrainingError
from gendr_train.rng import Draws
from gendr_train.schema import ExportConfig
from gendr_train.sections import ImageLosses
from gendr_train.settings import AdcSettings
from gendr_train.stages.adc import AdcStage
from gendr_train.stages.networks import to_cells
from gendr_train.stages.stage import Losses, Stage, to_pair

ABOUT = ExportConfig(title="tiny", license="MIT", source="a test", trained_on="nothing")
SCALING = 0.7


@pytest.fixture
def settings(tmp_path: Path) -> AdcSettings:
    """Return the settings with files of a teacher from latents to latents and of its VAE."""
    teacher, vae = tiny_unet(c_skip=0.9, c_out=-0.5, latent_scaling=SCALING, guidance=1.5, negative=True), tiny_vae()
    unet_path, vae_path = tmp_path / "teacher.safetensors", tmp_path / "vae.safetensors"
    write_unet(unet_path, teacher.spec, teacher.network.state_dict(), teacher.positive, teacher.negative)
    write_vae(vae_path, replace(vae.spec, latent_scaling=SCALING), vae.network.state_dict())
    return AdcSettings(teacher=str(unet_path), vae=str(vae_path))


def picture(position: int) -> Tensor:
    """Two waves and an edge, different for every position."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    shift = 5.0 * position
    planes = [
        (x / (3 + position % 5) + shift).sin(),
        (y / (4 + position % 3) - shift).cos(),
        (x + y > 60 + shift) * 1.0,
    ]
    return (torch.stack(planes) * 100.0 + 128.0).clamp(0, 255).to(torch.uint8)


def batch_of(*positions: int) -> Batch:
    original = torch.stack([picture(position) for position in positions])
    damaged = F.interpolate(original.float() / 255.0, scale_factor=0.25, mode="area")
    return Batch(original=original, damaged=damaged, position=torch.tensor(positions), caption=[""] * len(positions))


def losses_of(stage: Stage, batch: Batch) -> Losses:
    return stage(batch, Draws(0, batch.position.tolist(), torch.device("cpu")), 100)


def reached(stage: Stage, loss: Tensor) -> set[str]:
    """Return the roles whose parameters a loss has a gradient for."""
    stage.zero_grad()
    loss.sum().backward(retain_graph=True)
    return {
        name for name, role in stage.roles().items() if any(parameter.grad is not None for parameter in role.parameters)
    }


def test_every_loss_reaches_its_own_role_only(settings: AdcSettings) -> None:
    stage = AdcStage(replace(settings, decoded=ImageLosses(charbonnier=0.0, l1=1.0)))
    losses = losses_of(stage, batch_of(0, 1))
    assert losses.keys() == stage.weights.keys()
    assert set(losses) == {
        "generator/latent",
        "generator/adversarial",
        "generator/decoded_l1",
        "discriminator/real",
        "discriminator/fake",
    }
    for name, loss in losses.items():
        assert loss.shape == (2,)
        assert reached(stage, loss) == {name.split("/")[0]}


def test_roles_hold_every_parameter_once_and_no_teacher(settings: AdcSettings) -> None:
    stage = AdcStage(replace(settings, discriminator_rate=3.0))
    roles = stage.roles()
    held = [parameter for role in roles.values() for parameter in role.parameters]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in stage.parameters()}
    assert len(held) == len({id(parameter) for parameter in held})
    assert roles["discriminator"].rate == 3.0
    assert {name.split(".")[0] for name in stage.state_dict()} == {"unet", "adversary"}


def test_losses_by_hand(settings: AdcSettings) -> None:
    stage = AdcStage(replace(settings, decoded=ImageLosses(charbonnier=0.0, l1=2.0)))
    batch = batch_of(0, 1)
    stage.begin(lambda: batch_of(2, 3))
    losses = losses_of(stage, batch)
    teacher, vae, pair = load_unet(settings.teacher, folds=()), load_vae(settings.vae, folds=()), to_pair(batch)
    # The core's own one step works on unscaled latents.
    latent = vae.network.encode(pair.upsampled)
    target = step.one_step(latent, teacher, guidance=1.0) * SCALING
    context = teacher.positive.expand(2, -1, -1)
    student = stage.unet(to_cells(pair.upsampled), 354, context)
    expected = (student - target).abs().mean((1, 2, 3))
    torch.testing.assert_close(losses["generator/latent"], expected)
    decoded = vae.network.decode(student / SCALING)
    expected = (decoded - pair.original).abs().mean((1, 2, 3))
    torch.testing.assert_close(losses["generator/decoded_l1"], expected)

    seen: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    teacher.network.mid_block.resnets[-1].register_forward_hook(keep)
    for latents in (student, target):
        teacher.network(latents, 354, context)
    assert stage.adversary is not None
    made, real = (stage.adversary.head(features) for features in seen)
    torch.testing.assert_close(losses["generator/adversarial"], (1.0 + (-made).exp()).log().mean((1, 2, 3)))
    torch.testing.assert_close(losses["discriminator/fake"], (1.0 + made.exp()).log().mean((1, 2, 3)))
    torch.testing.assert_close(losses["discriminator/real"], (1.0 + (-real).exp()).log().mean((1, 2, 3)))


def test_a_weight_of_zero_leaves_a_loss_out(settings: AdcSettings) -> None:
    stage = AdcStage(replace(settings, adversary=0.0))
    assert set(stage.roles()) == {"generator"}
    assert set(losses_of(stage, batch_of(0))) == {"generator/latent"} == set(stage.weights)


def test_the_fitted_start_is_far_closer_to_the_teacher_than_a_random_one(settings: AdcSettings) -> None:
    stage = AdcStage(replace(settings, adversary=0.0))
    unseen = batch_of(20, 21, 22)

    def distance() -> float:
        with torch.no_grad():
            return losses_of(stage, unseen)["generator/latent"].mean().item()

    torch.manual_seed(0)
    stage.unet.conv_in.reset_parameters()
    random = distance()
    stage.begin(lambda: batch_of(*range(8)))
    assert distance() < 0.25 * random


def test_a_fresh_start_depends_on_no_random_number(settings: AdcSettings) -> None:
    first, second = (AdcStage(replace(settings, adversary=0.0)) for _ in range(2))
    for stage in (first, second):
        stage.begin(lambda: batch_of(0, 1))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_updates_lower_the_distance_and_leave_teacher_and_vae_alone(settings: AdcSettings) -> None:
    stage = AdcStage(replace(settings, adversary=0.1))
    batch = batch_of(20)
    stage.begin(lambda: batch_of(0, 1))
    frozen = [*stage._teacher.network.parameters(), *stage._vae.network.parameters()]
    before = [parameter.clone() for parameter in frozen]
    optimiser = torch.optim.AdamW([p for role in stage.roles().values() for p in role.parameters], lr=3e-4)
    distances: list[float] = []
    for _ in range(40):
        losses = losses_of(stage, batch)
        distances.append(losses["generator/latent"].mean().item())
        optimiser.zero_grad()
        torch.stack([stage.weights[name] * loss.mean() for name, loss in losses.items()]).sum().backward()
        optimiser.step()
    assert distances[-1] < 0.7 * distances[0]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert all(torch.equal(parameter, old) for parameter, old in zip(frozen, before, strict=True))


def test_a_divided_batch_has_the_same_losses(settings: AdcSettings) -> None:
    stage = AdcStage(settings)
    stage.begin(lambda: batch_of(0, 1))
    whole, parts = losses_of(stage, batch_of(4, 5, 6)), [losses_of(stage, batch_of(*p)) for p in ((4,), (5, 6))]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, torch.cat([part[name] for part in parts]), rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_nothing_but_memory(settings: AdcSettings) -> None:
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        stage = AdcStage(settings, checkpointing=checkpointing)
        stage.begin(lambda: batch_of(0, 1))
        sum(loss.sum() for loss in losses_of(stage, batch_of(2)).values()).backward()  # type: ignore[union-attr]
        gradients.append([p.grad for p in stage.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(stage.parameters()))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_the_exported_file_restores_like_the_stage(settings: AdcSettings, tmp_path: Path) -> None:
    stage = AdcStage(settings)
    batch = batch_of(0)
    stage.begin(lambda: batch_of(0, 1, 2))
    path = tmp_path / "adc.safetensors"
    stage.export(path, ABOUT)
    spec = read_unet(path).spec
    assert (spec.front, spec.back, spec.c_skip, spec.c_out) == ("pixel_unshuffle8", "vae16", 0.0, 1.0)
    assert (spec.guidance, spec.latent_scaling, spec.title) == (1.0, SCALING, "tiny")
    image = batch.damaged.permute(0, 2, 3, 1)
    restored = restore(image, load_unet(path), load_vae(settings.vae), RestoreOptions(color="none"))
    expected = stage.restored(to_pair(batch)).permute(0, 2, 3, 1) * 0.5 + 0.5
    torch.testing.assert_close(restored, expected, rtol=0.0, atol=2e-3)


def test_a_teacher_of_another_stage_is_refused(settings: AdcSettings, tmp_path: Path) -> None:
    path = tmp_path / "adc.safetensors"
    AdcStage(settings).export(path, ABOUT)
    with pytest.raises(TrainingError, match="from vae16 to vae16, got one from pixel_unshuffle8"):
        AdcStage(replace(settings, teacher=str(path)))


def test_another_vae_than_the_teachers_is_refused(settings: AdcSettings) -> None:
    vae = tiny_vae()
    write_vae(settings.vae, replace(vae.spec, latent_scaling=0.5), vae.network.state_dict())
    with pytest.raises(TrainingError, match=r"scaled by 0\.5, got 4 scaled by 0\.7"):
        AdcStage(settings)
