import copy
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from gendr_core.nets import UNet
from gendr_core.spec import UNetArch
from gendr_train.adversary import FeatureHead, PatchAdversary, frozen
from gendr_train.errors import TrainingError
from gendr_train.frames import TrainingFrame, middle
from gendr_train.lora import acting, adapter_parameters, add_adapters, merged_state, without_adapters
from gendr_train.sections import LoraConfig

NAMES = ("generator", "real", "fake", "discriminator")
ARCH = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(8, 16),
    attention_levels=(False, True),
    layers_per_block=1,
    head_dim=8,
    cross_attention_dim=8,
    norm_groups=4,
)


def fresh() -> UNet:
    """Return a UNet with four new adapters of rank 3 and scale 2."""
    torch.manual_seed(1)
    unet = UNet(ARCH)
    add_adapters(unet, NAMES, LoraConfig(rank=3, alpha=6), encoders=("discriminator",))
    return unet


@cache
def template() -> UNet:
    unet = fresh()
    for name in NAMES:
        for parameter in adapter_parameters(unet, name):
            nn.init.normal_(parameter, std=0.2)
    return unet


def adapted() -> UNet:
    """Return a UNet whose four adapters all do something."""
    return copy.deepcopy(template())


def inputs(images: int = 2) -> tuple[Tensor, Tensor]:
    """Return latents [images, 4, 8, 6] and prompts [images, 3, 8]."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(images, 4, 8, 6, generator=generator), torch.randn(images, 3, 8, generator=generator)


class Distillation(nn.Module):
    """All roles of a distillation in one pass; each loss is meant for one of them."""

    def __init__(self, *, checkpointing: bool) -> None:
        super().__init__()
        self.unet = adapted()
        torch.manual_seed(3)
        self.head = FeatureHead(16)
        self.patch = PatchAdversary(4, 2)
        self.checkpointing = checkpointing

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """Return what the losses of a role are meant for."""
        if role == "patch":
            return list(self.patch.parameters())
        of_head = list(self.head.parameters()) if role == "discriminator" else []
        return adapter_parameters(self.unet, role) + of_head

    def score(self, role: str, latent: Tensor, context: Tensor, *, trains: bool) -> Tensor:
        """Return the output of the UNet as a role."""
        with acting(self.unet, role, trains=trains) as again:
            frame = TrainingFrame(checkpointing=self.checkpointing, again=again)
            return self.unet(latent, 100, context, run=frame)

    def logits(self, latent: Tensor, context: Tensor, *, trains: bool) -> Tensor:
        """Return what the discriminator says of the UNet's middle."""
        with (
            acting(self.unet, "discriminator", trains=trains) as again,
            nullcontext() if trains else frozen(self.head),
        ):
            taps = {middle(self.unet): "middle"}
            frame = TrainingFrame(checkpointing=self.checkpointing, taps=taps, taps_only=True, again=again)
            self.unet(latent, 100, context, run=frame)
            return self.head(frame.tapped["middle"])

    def forward(self, latent: Tensor, context: Tensor) -> dict[str, Tensor]:
        """Return every role's loss, [B]."""
        made = self.score("generator", latent, context, trains=True)
        real = self.score("real", made, context, trains=False)
        fake = self.score("fake", made, context, trains=False)
        with frozen(self.patch):
            fooled = self.patch(made[:, :3])
        losses = {
            "generator": (real - fake) * (real - made)
            + self.logits(made, context, trains=False).mean()
            + fooled.mean(),
            "real": (self.score("real", latent, context, trains=True) - latent).square(),
            "fake": (self.score("fake", made.detach(), context, trains=True) - latent).square(),
            "discriminator": self.logits(latent, context, trains=True)
            - self.logits(made.detach(), context, trains=True),
            "patch": self.patch(latent[:, :3]) - self.patch(made[:, :3].detach()),
        }
        return {name: loss.flatten(1).mean(1) for name, loss in losses.items()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_loss_reaches_its_role_and_no_other(checkpointing: bool) -> None:
    stage = Distillation(checkpointing=checkpointing)
    losses = stage(*inputs())
    parameters = dict(stage.named_parameters())
    for role, loss in losses.items():
        own = {id(parameter) for parameter in stage.parameters_of(role)}
        names = [name for name, parameter in parameters.items() if parameter.requires_grad]
        gradients = torch.autograd.grad(
            loss.sum(), [parameters[n] for n in names], retain_graph=True, allow_unused=True
        )
        reached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
        assert reached == {name for name in names if id(parameters[name]) in own}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss.float().mean() for loss in losses.values()]).sum()


def gradients_of(stage: Distillation) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}


def test_checkpointing_gives_the_same_gradients_in_one_backward() -> None:
    results = []
    for checkpointing in (False, True):
        stage = Distillation(checkpointing=checkpointing)
        total(stage(*inputs())).backward()
        results.append(gradients_of(stage))
    plain, recomputed = results
    trained = [name for name, p in stage.named_parameters() if p.requires_grad]
    assert sorted(plain) == sorted(recomputed) == sorted(trained)
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-5, atol=1e-7)


def test_frozen_adapter_gives_the_input_the_gradient_of_a_learning_one() -> None:
    unet, (latent, context) = adapted(), inputs()
    gradients = []
    for trains in (False, True):
        x = latent.clone().requires_grad_()
        with acting(unet, "real", trains=trains):
            unet(x, 7, context).square().sum().backward()
        gradients.append(x.grad)
        assert all((p.grad is not None) == trains for p in adapter_parameters(unet, "real"))
    torch.testing.assert_close(*gradients)
    assert all(p.requires_grad for name in NAMES for p in adapter_parameters(unet, name))


def test_every_layer_but_time_and_norms_is_adapted() -> None:
    unet = adapted()
    for name, module in unet.named_modules():
        if type(module) in (nn.Linear, nn.Conv2d):
            assert name.endswith(".base_layer") == ("time_emb" not in name), name
    assert not any(p.requires_grad for name, p in unet.named_parameters() if ".lora_" not in name)
    # The discriminator has nothing behind the middle, the others have.
    for role in NAMES:
        upward = [n for n, _ in unet.named_parameters() if f".{role}." in n and n.startswith(("up_blocks", "conv_out"))]
        assert bool(upward) == (role != "discriminator")


def test_new_adapters_act_as_the_base_and_are_random_in_one_matrix_only() -> None:
    torch.manual_seed(1)
    base = UNet(ARCH)
    unet, (latent, context) = fresh(), inputs()
    expected = base(latent, 7, context)
    for name in NAMES:
        with acting(unet, name, trains=True):
            assert torch.equal(unet(latent, 7, context), expected)
        first, second = adapter_parameters(unet, name)[:2]
        assert first.std() > 0.05
        assert not second.any()
    assert not torch.equal(adapter_parameters(unet, "real")[0], adapter_parameters(unet, "fake")[0])
    again = fresh()
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True))


def test_acting_is_undone_on_exit_also_when_nested_or_interrupted() -> None:
    unet, (latent, context) = adapted(), inputs()

    def run() -> Tensor:
        return unet(latent, 7, context).detach()

    base = run()
    with acting(unet, "real", trains=False):
        real = run()
        with acting(unet, "fake", trains=True) as again:
            fake = run()
            with without_adapters(unet) as bare:
                assert torch.equal(run(), base)
        assert torch.equal(run(), real)
        with pytest.raises(RuntimeError), again():
            unet(latent[:, :, :, 0], 7, context)
        with again():
            assert torch.equal(run(), fake)
        with bare():
            assert torch.equal(run(), base)
        assert torch.equal(run(), real)
    assert torch.equal(run(), base)
    assert not torch.equal(real, base)
    assert not torch.equal(real, fake)


def test_copy_has_a_switch_of_its_own() -> None:
    unet, (latent, context) = adapted(), inputs()
    twin = copy.deepcopy(unet)
    with acting(unet, "real", trains=False):
        assert not torch.equal(unet(latent, 7, context), twin(latent, 7, context))
        with acting(twin, "real", trains=False):
            assert torch.equal(unet(latent, 7, context), twin(latent, 7, context))


@pytest.mark.parametrize("name", NAMES)
def test_merged_weights_do_what_the_adapter_does(name: str) -> None:
    unet, (latent, context) = adapted(), inputs()
    plain = UNet(ARCH)
    plain.load_state_dict(merged_state(unet, name))
    with acting(unet, name, trains=False):
        expected = unet(latent, 7, context)
    error = (plain(latent, 7, context) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5
    assert (unet(latent, 7, context) - expected).abs().max() > 1e-2


def test_scale_is_alpha_over_rank() -> None:
    unet = fresh()
    for parameter in adapter_parameters(unet, "fake"):
        nn.init.ones_(parameter)
    # A product of matrices of ones is the rank everywhere: 2 * 3.
    name = "mid_block.attentions.0.proj_in"
    added = merged_state(unet, "fake")[f"{name}.weight"] - unet.state_dict()[f"{name}.base_layer.weight"]
    torch.testing.assert_close(added, torch.full_like(added, 6.0))


def test_mixed_precision_is_finite_and_trains_in_float32() -> None:
    stage = Distillation(checkpointing=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = stage(*inputs())
    total(losses).backward()
    gradients = gradients_of(stage)
    assert len(gradients) == sum(p.requires_grad for p in stage.parameters())
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())


def test_unknown_adapters_are_refused() -> None:
    with pytest.raises(TrainingError, match="got 'reel'"), acting(adapted(), "reel", trains=False):
        pass
    with pytest.raises(TrainingError, match="call add_adapters first"):
        merged_state(UNet(ARCH), "real")


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _compare_gradients(rank: int, store: str) -> None:
    """Run as one of two processes: half of the batch here, the whole batch for comparison."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    whole, half = Distillation(checkpointing=True), Distillation(checkpointing=True)
    wrapped = nn.parallel.DistributedDataParallel(half)
    batch = inputs(4)
    # Twice, as the first pass must leave nothing behind; both networks, as each pass refines the spectral norms.
    for _ in range(2):
        whole.zero_grad()
        wrapped.zero_grad()
        total(whole(*batch)).backward()
        total(wrapped(*(x[2 * rank : 2 * rank + 2] for x in batch))).backward()
        expected, got = gradients_of(whole), gradients_of(half)
        assert expected.keys() == got.keys()
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6)
    # The estimates of the spectral norms went the same way in both processes.
    assert all(torch.equal(a, b) for a, b in zip(half.buffers(), whole.buffers(), strict=True))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Forked after what takes longest: importing peft and making the adapters.
    template()
    start_processes(_compare_gradients, (sys.argv[1],), nprocs=2, start_method="fork")
