"""Stage base: losses by hand, who learns, where it starts and what it leaves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ldm import unet_to_ldm
from safetensors.torch import save_file
from torch import Tensor, nn
from weightfiles import PLAIN_UNET, TINY_UNET

from gendr_core.checkpoint import read_unet, write_unet, write_vae
from gendr_core.errors import CheckpointError
from gendr_core.metrics import psnr_y
from gendr_core.model import load_unet, load_vae
from gendr_core.nets import VAE, UNet
from gendr_core.pipeline import restore
from gendr_core.spec import ModelSpec, Prediction, UNetArch, VAEArch, VAESpec, alpha_bar
from gendr_core.tensors import to_image
from gendr_train.data.dataset import Batch
from gendr_train.errors import TrainingError
from gendr_train.rng import Draws
from gendr_train.schema import ExportConfig
from gendr_train.sections import AlignmentConfig, FeatureConfig, PromptConfig
from gendr_train.settings import BaseSettings
from gendr_train.stages.base import BaseStage
from gendr_train.stages.stage import Pair, to_pair

NETWORK, PLAIN = TINY_UNET, replace(PLAIN_UNET, in_channels=4, out_channels=4)
SCALING = 0.5
ABOUT = ExportConfig(title="tiny", license="MIT", source="a test", trained_on="noise")


@pytest.fixture(scope="module")
def vae_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    arch = VAEArch(latent_channels=4, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_groups=4)
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    write_vae(path, VAESpec(arch=arch, latent_scaling=SCALING), VAE(arch).state_dict())
    return str(path)


def test_a_vae_of_other_cells_is_refused(tmp_path: Path) -> None:
    arch = VAEArch(latent_channels=4, block_out_channels=(4, 4, 8), layers_per_block=1, norm_groups=4)
    path = tmp_path / "vae.safetensors"
    write_vae(path, VAESpec(arch=arch), VAE(arch).state_dict())
    with pytest.raises(CheckpointError, match="8 pixels per latent cell to train with, got one with 4"):
        seeded(settings_of(str(path)))


def settings_of(vae_file: str, **values: object) -> BaseSettings:
    return replace(BaseSettings(network=NETWORK, vae=vae_file), **values)


def aligned(vae_file: str, *layers: int, weight: float = 0.5) -> AlignmentConfig:
    features = FeatureConfig(kind="vae16", name=vae_file, layers=layers or (-1,))
    return AlignmentConfig(features=features, weight=weight, hidden=12)


def seeded(settings: BaseSettings, seed: int = 1, *, checkpointing: bool = False) -> BaseStage:
    torch.manual_seed(seed)
    return BaseStage(settings, checkpointing=checkpointing)


def batch_of(count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    damaged = torch.rand((count, 3, 16, 16), generator=generator)
    return Batch(original=original, damaged=damaged, position=torch.arange(count), caption=[""] * count)


def draws_of(*positions: int) -> Draws:
    return Draws(7, positions, torch.device("cpu"))


def losses_of(stage: BaseStage, count: int = 3) -> dict[str, Tensor]:
    return stage(batch_of(count), draws_of(*range(count)), count)


def start_file(path: Path, arch: UNetArch, prediction: Prediction = "epsilon") -> dict[str, Tensor]:
    """Write a file that GenDR made and return its weights."""
    torch.manual_seed(9)
    state = {name: value.clone() for name, value in UNet(arch).state_dict().items()}
    write_unet(path, ModelSpec(arch=arch, prediction=prediction), state, torch.randn(3, 8), torch.randn(3, 8))
    return state


@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_denoising_loss_is_the_formula(vae_file: str, prediction: Prediction, min_snr: float | None) -> None:
    settings = settings_of(vae_file, prediction=prediction, min_snr=min_snr, steps=(100, 900))
    stage = seeded(settings)
    loss = losses_of(stage)["generator/denoising"].detach()

    draws = draws_of(0, 1, 2)
    timesteps = draws.integers(100, 901)
    noises = draws.normal(4, 8, 8)
    dropped = draws.uniform(0.0, 1.0) < settings.prompt.dropout
    vae = load_vae(vae_file, folds=()).network
    for i, (image, t, eps) in enumerate(zip(batch_of().original, timesteps.tolist(), noises, strict=True)):
        clean = vae.encode(image[None] / 127.5 - 1.0)[0] * SCALING
        power = alpha_bar(t)
        prompt = stage.prompts.negative if dropped[i] else stage.prompts.positive
        noised = power**0.5 * clean + (1.0 - power) ** 0.5 * eps
        predicted = stage.unet(noised[None], t, prompt[None])[0]
        target = eps if prediction == "epsilon" else power**0.5 * eps - (1.0 - power) ** 0.5 * clean
        ratio = power / (1.0 - power)
        weight = 1.0 if min_snr is None else min(ratio, min_snr) / (ratio if prediction == "epsilon" else ratio + 1.0)
        assert float(loss[i]) == pytest.approx(weight * float(((predicted - target) ** 2).mean().detach()), rel=1e-4)


def test_the_alignment_loss_is_minus_the_cosine_after_the_first_level(vae_file: str) -> None:
    stage = seeded(settings_of(vae_file, alignment=aligned(vae_file)))
    assert stage.alignment is not None
    seen: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output)

    stage.unet.get_submodule("down_blocks.0.downsamplers.0").register_forward_hook(keep)
    loss = losses_of(stage)["generator/alignment"]
    assert seen[0].shape == (3, 8, 4, 4)

    vae = load_vae(vae_file, folds=()).network
    vae.get_submodule("encoder.down_blocks.3.resnets.0").register_forward_hook(keep)
    vae.encode(to_pair(batch_of()).original)
    target = F.interpolate(seen[1], size=(4, 4), mode="bilinear", antialias=True)
    projected = stage.alignment.projection(seen[0])
    expected = -(projected * target).sum(1) / (projected.norm(dim=1) * target.norm(dim=1))
    assert torch.allclose(loss, expected.mean((1, 2)), atol=1e-5)


def test_gradients_reach_the_unet_and_the_projection_alone(vae_file: str) -> None:
    stage = seeded(settings_of(vae_file, alignment=aligned(vae_file)))
    assert stage.weights == {"generator/denoising": 1.0, "generator/alignment": 0.5}
    losses = losses_of(stage)
    sum(losses.values(), torch.zeros(3)).sum().backward()
    named = dict(stage.named_parameters())
    assert {name.split(".")[0] for name in named} == {"unet", "alignment"}
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in named.values())
    trained = stage.roles()["generator"].parameters
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in named.values()}
    assert stage.alignment is not None
    frozen = [*stage._vae.network.parameters(), *stage.alignment._features[0].parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


def test_without_weight_there_is_no_projection(vae_file: str) -> None:
    stage = seeded(settings_of(vae_file, alignment=aligned(vae_file, weight=0.0)))
    assert stage.alignment is None
    assert losses_of(stage).keys() == stage.weights.keys() == {"generator/denoising"}


def test_recomputing_blocks_changes_nothing(vae_file: str) -> None:
    settings = settings_of(vae_file, alignment=aligned(vae_file))
    gradients = []
    for checkpointing in (False, True):
        stage = seeded(settings, checkpointing=checkpointing)
        sum(losses_of(stage).values(), torch.zeros(3)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in stage.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_losses_and_gradients_are_finite_in_bf16(vae_file: str) -> None:
    settings = settings_of(vae_file, alignment=aligned(vae_file), min_snr=5.0)
    stage, exact = seeded(settings), losses_of(seeded(settings))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(stage)
    sum(losses.values(), torch.zeros(3)).sum().backward()
    assert all(torch.allclose(loss, exact[name], rtol=0.05, atol=0.05) for name, loss in losses.items())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in stage.parameters())


def test_an_image_has_the_same_losses_in_any_batch(vae_file: str) -> None:
    stage = seeded(settings_of(vae_file, alignment=aligned(vae_file), prompt=PromptConfig(dropout=0.5)))
    together = losses_of(stage)
    whole = batch_of()
    second = Batch(whole.original[1:2], whole.damaged[1:2], whole.position[1:2], whole.caption[1:2])
    for name, alone in stage(second, draws_of(1), 1).items():
        assert torch.allclose(alone[0], together[name][1], atol=1e-5)


def test_saved_state_gives_the_same_losses(vae_file: str) -> None:
    settings = settings_of(vae_file, alignment=aligned(vae_file))
    one, other = seeded(settings, 1), seeded(settings, 2)
    before = losses_of(one)
    assert not torch.equal(losses_of(other)["generator/denoising"], before["generator/denoising"])
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in losses_of(other).items())
    assert not any("_features" in name or "_vae" in name for name in one.state_dict())


@pytest.mark.parametrize("arch", [replace(NETWORK, in_channels=2, out_channels=2), NETWORK])
def test_a_file_of_ours_keeps_all_that_fits(vae_file: str, tmp_path: Path, arch: UNetArch) -> None:
    path = tmp_path / "start.safetensors"
    state = start_file(path, arch)
    stage = seeded(settings_of(vae_file, init=str(path)))
    anew = {name for name, value in stage.unet.state_dict().items() if not torch.equal(value, state[name])}
    ends = {f"conv_{end}.{leaf}" for end in ("in", "out") for leaf in ("weight", "bias")}
    assert anew == (set() if arch == NETWORK else ends)
    assert all(bool(stage.unet.state_dict()[name].any()) for name in anew)
    file = read_unet(path)
    assert torch.equal(stage.prompts.positive, file.positive)
    assert file.negative is not None
    assert torch.equal(stage.prompts.negative, file.negative)


@pytest.mark.parametrize("form", ["file", "ldm", "model folder", "unet folder"])
def test_files_without_metadata_are_a_start(vae_file: str, tmp_path: Path, form: str) -> None:
    stable = replace(PLAIN, in_channels=2, out_channels=2)
    torch.manual_seed(9)
    state = {name: value.half() for name, value in UNet(stable).state_dict().items()}
    stored = state
    if form == "ldm":
        stored = {f"model.diffusion_model.{name}": value for name, value in unet_to_ldm(state, stable).items()}
    inside = {"model folder": "unet/diffusion_pytorch_model", "unet folder": "diffusion_pytorch_model"}
    path = tmp_path / f"{inside.get(form, 'sd')}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(stored, path)
    init = str(tmp_path if form.endswith("folder") else path)
    stage = seeded(settings_of(vae_file, network=PLAIN, init=init))
    loaded = stage.unet.state_dict()
    kept = {name for name, value in state.items() if torch.equal(loaded[name], value.float())}
    assert {name.split(".")[0] for name in state.keys() - kept} == {"conv_in", "conv_out"}
    assert stage.prompts.positive.shape == (1, 8)
    assert bool(stage.prompts.positive.all())
    assert losses_of(stage)["generator/denoising"].isfinite().all()


def test_what_is_no_start_is_refused(vae_file: str, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"

    def start(**values: object) -> None:
        BaseStage(settings_of(vae_file, init=str(path), **values))

    with pytest.raises(TrainingError, match=r"expected a UNet to start from as base\.init, .* found no file"):
        start()
    start_file(path, NETWORK, "v_prediction")
    with pytest.raises(TrainingError, match=r"expected base\.prediction v_prediction as in .*, got epsilon"):
        start()
    start_file(path, replace(NETWORK, layers_per_block=2))
    with pytest.raises(TrainingError, match=r"expected base\.network\.layers_per_block 2 as in .*, got 1"):
        start()
    start_file(path, replace(NETWORK, head_dim=4))  # Shapes alone do not tell.
    with pytest.raises(TrainingError, match=r"expected base\.network\.head_dim 4 as in .*, got 8"):
        start()
    path.write_bytes(Path(vae_file).read_bytes())
    with pytest.raises(TrainingError, match="expected kind 'unet', got 'vae16'"):
        start()
    path.unlink()
    with pytest.raises(TrainingError, match="with the VAE's 4 channels in and out, got 16 and 16"):
        start(network=replace(NETWORK, in_channels=16, out_channels=16))


def test_alignment_takes_one_layer(vae_file: str) -> None:
    with pytest.raises(TrainingError, match=r"expected one of alignment\.features\.layers, got 2"):
        BaseStage(settings_of(vae_file, alignment=aligned(vae_file, 0, 1)))


def test_training_learns_one_image(vae_file: str) -> None:
    stage = seeded(settings_of(vae_file, alignment=aligned(vae_file)))
    optimiser = torch.optim.AdamW(stage.roles()["generator"].parameters, lr=1e-2)
    one = batch_of(1)
    batch = Batch(
        original=one.original[..., :32, :32].expand(4, -1, -1, -1),
        damaged=one.damaged[..., :8, :8].expand(4, -1, -1, -1),
        position=torch.arange(4),
        caption=[""] * 4,
    )
    fixed = range(1000, 1004)

    def measured() -> dict[str, float]:
        with torch.no_grad():
            return {name: float(loss.mean()) for name, loss in stage(batch, draws_of(*fixed), 0).items()}

    before = measured()
    for step in range(40):
        losses = stage(batch, draws_of(*range(4 * step, 4 * step + 4)), 4 * step)
        optimiser.zero_grad()
        sum((stage.weights[name] * loss.mean() for name, loss in losses.items()), torch.zeros(())).backward()
        optimiser.step()
    after = measured()
    assert after["generator/denoising"] < 0.6 * before["generator/denoising"]
    assert after["generator/denoising"] < 0.8  # 1 is what a constant output of 0 gets.
    assert after["generator/alignment"] < before["generator/alignment"] - 0.3


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_validation_is_one_step_from_a_fixed_noise(vae_file: str, prediction: Prediction) -> None:
    stage = seeded(settings_of(vae_file, prediction=prediction))
    pair = to_pair(batch_of(2))
    output = stage.restored(pair)
    assert output.shape == pair.original.shape
    assert not output.requires_grad
    assert torch.equal(output, stage.restored(pair))
    alone = stage.restored(Pair(pair.original[1:], pair.upsampled[1:]))
    assert torch.allclose(alone[0], output[1], atol=1e-5)
    # A network that knows the noise gives back what the VAE makes of the original.
    vae = load_vae(vae_file)
    clean = vae.network.encode(pair.original) * SCALING
    noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(0))
    power = alpha_bar(354)
    known = noise if prediction == "epsilon" else power**0.5 * noise - (1.0 - power) ** 0.5 * clean
    stage.unet.forward = lambda *_arguments: known  # type: ignore[method-assign]
    best = vae.network.decode(clean / SCALING).clamp(-1.0, 1.0)
    assert float(psnr_y(to_image(stage.restored(pair)), to_image(best)).min()) > 60.0


def test_the_exported_file_restores(vae_file: str, tmp_path: Path) -> None:
    stage = seeded(settings_of(vae_file, prediction="v_prediction", scale=2.0, alignment=aligned(vae_file)))
    path = tmp_path / "base.safetensors"
    stage.export(path, ABOUT)
    unet = load_unet(path, folds=())
    power = alpha_bar(354)
    assert (unet.spec.timestep, unet.spec.prediction, unet.spec.title) == (354, "v_prediction", "tiny")
    assert (unet.spec.c_skip, unet.spec.c_out) == pytest.approx((power**0.5, -((1.0 - power) ** 0.5)))
    assert (unet.spec.latent_scaling, unet.spec.scale, unet.spec.guidance) == (SCALING, 2.0, 1.0)
    assert torch.equal(unet.positive, stage.prompts.positive.half().float())
    assert unet.negative is not None
    assert torch.equal(unet.negative, stage.prompts.negative.half().float())
    assert unet.network.state_dict().keys() == stage.unet.state_dict().keys()
    image = restore(torch.rand(1, 24, 20, 3), unet, load_vae(vae_file))
    assert image.shape == (1, 48, 40, 3)
    assert image.isfinite().all()
    again = seeded(settings_of(vae_file, prediction="v_prediction", init=str(path)), 3)
    assert torch.equal(again.prompts.negative, unet.negative)
