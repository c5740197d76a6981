from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import prompt, seeded, tiny_unet, tiny_vae
from torch import Tensor, nn

from gendr_core.checkpoint import read_unet, write_unet, write_vae
from gendr_core.config import RestoreOptions
from gendr_core.model import load_unet, load_vae
from gendr_core.nets import UNet
from gendr_core.pipeline import restore
from gendr_core.spec import ModelSpec
from gendr_train.data.dataset import Batch
from gendr_train.errors import TrainingError
from gendr_train.features import FeatureNetwork, build_features
from gendr_train.rng import Draws
from gendr_train.schema import ExportConfig
from gendr_train.sections import FeatureConfig, ImageLosses
from gendr_train.settings import PixSettings
from gendr_train.stages.networks import to_cells, to_pixels
from gendr_train.stages.pix import PixStage, random_padding
from gendr_train.stages.stage import Losses, Stage, to_pair

ABOUT = ExportConfig(title="tiny", license="MIT", source="a test", trained_on="nothing")
SCALING = 0.7
OFFSETS = st.integers(0, 7)


@pytest.fixture
def settings(tmp_path: Path) -> PixSettings:
    """Return the settings with files of a teacher from unshuffled pixels to latents and of its VAE."""
    arch, vae = replace(tiny_unet().spec.arch, in_channels=192), tiny_vae()
    spec = ModelSpec(arch=arch, timestep=200, c_skip=0.0, c_out=1.0, front="pixel_unshuffle8", latent_scaling=SCALING)
    unet_path, vae_path = tmp_path / "teacher.safetensors", tmp_path / "vae.safetensors"
    write_unet(unet_path, spec, seeded(UNet(arch), 1).state_dict(), prompt(2), prompt(3))
    write_vae(vae_path, replace(vae.spec, latent_scaling=SCALING), vae.network.state_dict())
    return PixSettings(teacher=str(unet_path), vae=str(vae_path))


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


def draws_of(batch: Batch) -> Draws:
    return Draws(0, batch.position.tolist(), torch.device("cpu"))


def losses_of(stage: Stage, batch: Batch) -> Losses:
    return stage(batch, draws_of(batch), 100)


def reached(stage: Stage, loss: Tensor) -> set[str]:
    """Return the roles whose parameters a loss has a gradient for."""
    stage.zero_grad()
    loss.sum().backward(retain_graph=True)
    return {
        name for name, role in stage.roles().items() if any(parameter.grad is not None for parameter in role.parameters)
    }


def test_random_padding_by_hand() -> None:
    pixels = torch.arange(9.0 * 10.0).reshape(1, 1, 9, 10).expand(1, 3, 9, 10)
    padded = random_padding(pixels, torch.tensor([2]), torch.tensor([1]))
    assert padded.shape == (1, 3, 17, 18)
    # Two rows above, six below; one column left, seven right; mirrored about the first and last pixel.
    assert padded[0, 0, 0, 1].item() == pixels[0, 0, 2, 0].item()
    assert padded[0, 0, 2, 0].item() == pixels[0, 0, 0, 1].item()
    assert padded[0, 0, 16, 1].item() == pixels[0, 0, 2, 0].item()
    assert padded[0, 0, 2, 17].item() == pixels[0, 0, 0, 2].item()


@given(above=st.lists(OFFSETS, min_size=2, max_size=2), left=st.lists(OFFSETS, min_size=2, max_size=2))
def test_random_padding_holds_every_image_where_it_was_drawn_to(above: list[int], left: list[int]) -> None:
    pixels = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    padded = random_padding(pixels, torch.tensor(above), torch.tensor(left))
    assert padded.shape == (2, 3, 24, 32)
    for image, original, y, x in zip(padded, pixels, above, left, strict=True):
        assert torch.equal(image[:, y : y + 16, x : x + 24], original)


def test_every_loss_reaches_its_own_role_only(settings: PixSettings) -> None:
    stage = PixStage(replace(settings, original=ImageLosses(charbonnier=1.0)))
    # As long as the last layer is zero, nothing before it has a gradient.
    stage.begin(lambda: batch_of(2, 3))
    losses = losses_of(stage, batch_of(0, 1))
    assert losses.keys() == stage.weights.keys()
    assert set(losses) == {
        "generator/l1",
        "generator/harmonics",
        "generator/adversarial",
        "generator/original_charbonnier",
        "discriminator/real",
        "discriminator/fake",
    }
    for name, loss in losses.items():
        assert loss.shape == (2,)
        assert reached(stage, loss) == {name.split("/")[0]}


def test_weights_are_those_of_the_paper_unless_told_otherwise(settings: PixSettings) -> None:
    weights = PixStage(settings).weights
    assert (weights["generator/l1"], weights["generator/adversarial"], weights["generator/harmonics"]) == (1, 0.05, 0.1)


def test_roles_hold_every_parameter_once_and_no_teacher(settings: PixSettings) -> None:
    stage = PixStage(replace(settings, discriminator_rate=3.0))
    roles = stage.roles()
    held = [parameter for role in roles.values() for parameter in role.parameters]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in stage.parameters()}
    assert len(held) == len({id(parameter) for parameter in held})
    assert roles["discriminator"].rate == 3.0
    assert {name.split(".")[0] for name in stage.state_dict()} == {"unet", "adversary"}


def test_both_perceptual_losses_have_one_network(settings: PixSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[FeatureConfig] = []

    def build(config: FeatureConfig) -> FeatureNetwork:
        built.append(config)
        return build_features(config)

    monkeypatch.setattr("gendr_train.stages.images.build_features", build)
    features = FeatureConfig(kind="vae16", name=settings.vae, layers=(1,))
    weights = ImageLosses(charbonnier=0.0, perceptual=1.0)
    stage = PixStage(replace(settings, losses=weights, original=weights, features=features, harmonics=0.0))
    losses = losses_of(stage, batch_of(0))
    assert built == [features]
    assert losses["generator/perceptual"] > 0.0
    assert losses["generator/original_perceptual"] != losses["generator/perceptual"]
    assert PixStage(replace(settings, features=features))
    assert built == [features]


def test_losses_by_hand(settings: PixSettings) -> None:
    stage = PixStage(replace(settings, original=ImageLosses(charbonnier=0.0, l1=2.0)))
    stage.begin(lambda: batch_of(2, 3))
    batch = batch_of(0, 1)
    losses = losses_of(stage, batch)
    teacher, vae, pair = load_unet(settings.teacher, folds=()), load_vae(settings.vae, folds=()), to_pair(batch)
    cells, context = to_cells(pair.upsampled), teacher.positive.expand(2, -1, -1)
    target = vae.network.decode(teacher.network(cells, 200, context) / SCALING)
    student = to_pixels(stage.unet(cells, 200, context))
    torch.testing.assert_close(losses["generator/l1"], (student - target).abs().mean((1, 2, 3)))
    torch.testing.assert_close(losses["generator/original_l1"], (student - pair.original).abs().mean((1, 2, 3)))

    # Of 64 frequencies on an axis the multiples of 8 but 0 are the pattern's; 7 rows of 64 and 57 x 7 more are masked.
    amplitudes = (torch.fft.fft2(student).abs() - torch.fft.fft2(target).abs()).abs() / 64.0
    rows = torch.arange(64) % 8 == 0
    rows[0] = False
    mask = rows[:, None] | rows
    expected = (amplitudes * mask).sum((1, 2, 3)) / (3 * (7 * 64 + 57 * 7))
    torch.testing.assert_close(losses["generator/harmonics"], expected)

    seen: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    teacher.network.mid_block.resnets[-1].register_forward_hook(keep)
    draws = draws_of(batch)
    above, left = draws.integers(0, 8), draws.integers(0, 8)
    for pixels in (student, target):
        teacher.network(to_cells(random_padding(pixels, above, left)), 200, context)
    assert stage.adversary is not None
    made, real = (stage.adversary.head(features) for features in seen)
    torch.testing.assert_close(losses["generator/adversarial"], (1.0 + (-made).exp()).log().mean((1, 2, 3)))
    torch.testing.assert_close(losses["discriminator/fake"], (1.0 + made.exp()).log().mean((1, 2, 3)))
    torch.testing.assert_close(losses["discriminator/real"], (1.0 + (-real).exp()).log().mean((1, 2, 3)))


def test_weights_of_zero_leave_losses_out(settings: PixSettings) -> None:
    stage = PixStage(replace(settings, adversary=0.0, harmonics=0.0))
    assert set(stage.roles()) == {"generator"}
    assert set(losses_of(stage, batch_of(0))) == {"generator/l1"} == set(stage.weights)


def test_the_fitted_start_is_far_closer_to_the_teacher_than_a_random_one(settings: PixSettings) -> None:
    stage = PixStage(replace(settings, adversary=0.0, harmonics=0.0))
    unseen = batch_of(20, 21, 22)

    def distance() -> float:
        with torch.no_grad():
            return losses_of(stage, unseen)["generator/l1"].mean().item()

    black = distance()
    torch.manual_seed(0)
    stage.unet.conv_out.reset_parameters()
    random = distance()
    stage.begin(lambda: batch_of(*range(8)))
    assert distance() < 0.25 * min(random, black)


def test_updates_lower_the_distance_and_leave_teacher_and_vae_alone(settings: PixSettings) -> None:
    stage = PixStage(settings)
    batch = batch_of(20)
    stage.begin(lambda: batch_of(0, 1))
    frozen = [*stage._teacher.network.parameters(), *stage._vae.network.parameters()]
    before = [parameter.clone() for parameter in frozen]
    optimiser = torch.optim.AdamW([p for role in stage.roles().values() for p in role.parameters], lr=3e-4)
    distances: list[float] = []
    for _ in range(40):
        losses = losses_of(stage, batch)
        distances.append(losses["generator/l1"].mean().item())
        optimiser.zero_grad()
        torch.stack([stage.weights[name] * loss.mean() for name, loss in losses.items()]).sum().backward()
        optimiser.step()
    assert distances[-1] < 0.7 * distances[0]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert all(torch.equal(parameter, old) for parameter, old in zip(frozen, before, strict=True))


def test_a_divided_batch_has_the_same_losses(settings: PixSettings) -> None:
    stage = PixStage(settings)
    stage.begin(lambda: batch_of(0, 1))
    whole, parts = losses_of(stage, batch_of(4, 5, 6)), [losses_of(stage, batch_of(*p)) for p in ((4,), (5, 6))]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, torch.cat([part[name] for part in parts]), rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_nothing_but_memory(settings: PixSettings) -> None:
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        stage = PixStage(settings, checkpointing=checkpointing)
        stage.begin(lambda: batch_of(0, 1))
        sum(loss.sum() for loss in losses_of(stage, batch_of(2)).values()).backward()  # type: ignore[union-attr]
        gradients.append([p.grad for p in stage.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(stage.parameters()))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_the_exported_file_restores_like_the_stage_without_a_vae(settings: PixSettings, tmp_path: Path) -> None:
    stage = PixStage(settings)
    batch = batch_of(0)
    stage.begin(lambda: batch_of(0, 1, 2))
    path = tmp_path / "pix.safetensors"
    stage.export(path, ABOUT)
    file = read_unet(path)
    assert (file.spec.front, file.spec.back, file.spec.timestep) == ("pixel_unshuffle8", "pixel_shuffle8", 200)
    assert (file.spec.c_skip, file.spec.c_out, file.spec.guidance) == (0.0, 1.0, 1.0)
    assert file.negative is not None
    torch.testing.assert_close(file.negative, prompt(3).half())
    image = batch.damaged.permute(0, 2, 3, 1)
    restored = restore(image, load_unet(path), options=RestoreOptions(color="none"))
    expected = stage.restored(to_pair(batch)).permute(0, 2, 3, 1) * 0.5 + 0.5
    torch.testing.assert_close(restored, expected, rtol=0.0, atol=2e-3)


def test_a_teacher_of_another_stage_is_refused(settings: PixSettings, tmp_path: Path) -> None:
    path = tmp_path / "pix.safetensors"
    PixStage(settings).export(path, ABOUT)
    with pytest.raises(TrainingError, match=r"from pixel_unshuffle8 to vae16, got one from .* to pixel_shuffle8"):
        PixStage(replace(settings, teacher=str(path)))
