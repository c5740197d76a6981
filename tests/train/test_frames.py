import pytest
import torch
from networks import tiny_unet, tiny_vae
from torch import Tensor, nn

from gendr_core.nets import UNet
from gendr_core.spec import UNetArch
from gendr_train.frames import TrainingFrame, first_level, middle

LATENT = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
CONTEXT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))


def unet() -> UNet:
    return tiny_unet().network.requires_grad_(True)


def gradients(network: nn.Module, loss: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))


def test_checkpointing_changes_neither_the_result_nor_the_gradients() -> None:
    network = unet()
    plain = network(LATENT, 100, CONTEXT)
    recomputed = network(LATENT, 100, CONTEXT, run=TrainingFrame(checkpointing=True))
    assert torch.equal(plain, recomputed)
    pairs = zip(gradients(network, plain.square().sum()), gradients(network, recomputed.square().sum()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if a is not None and b is not None)


def test_checkpointing_changes_nothing_in_the_vae() -> None:
    vae = tiny_vae().network.requires_grad_(True)
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = vae.encode(pixels)
    recomputed = vae.encode(pixels, run=TrainingFrame(checkpointing=True))
    assert torch.equal(plain, recomputed)
    for a, b in zip(gradients(vae, plain.sum()), gradients(vae, recomputed.sum()), strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_keeps_less_and_runs_blocks_twice(checkpointing: bool) -> None:
    network, kept, runs = unet(), 0, 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    network.mid_block.resnets[0].register_forward_pre_hook(count)
    network(LATENT, 100, CONTEXT)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = network(LATENT, 100, CONTEXT, run=TrainingFrame(checkpointing=checkpointing))
    result.sum().backward()
    assert runs == (3 if checkpointing else 2)
    assert (kept < 20_000) == checkpointing


def test_repeated_passes_run_in_the_context_they_were_made_for() -> None:
    entered: list[str] = []

    class Note:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *_: object) -> None:
            entered.append("out")

    result = unet()(LATENT, 100, CONTEXT, run=TrainingFrame(checkpointing=True, again=Note))
    assert entered == []
    result.sum().backward()
    # Six resnets (two of them in the middle, two on each level up) and their transformers, each once more.
    assert entered == ["in", "out"] * (len(entered) // 2)
    assert len(entered) // 2 == sum(type(m).__name__ in ("ResnetBlock", "SpatialTransformer") for m in unet().modules())


def test_taps_give_what_their_blocks_put_out() -> None:
    network, seen = unet(), {}
    blocks = {first_level(network): "level", middle(network): "middle", network.conv_in: "in", network.conv_out: "out"}
    for block, name in blocks.items():
        block.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
    frame = TrainingFrame(taps=blocks, checkpointing=True)
    result = network(LATENT, 100, CONTEXT, run=frame)
    assert frame.tapped.keys() == seen.keys()
    assert all(torch.equal(frame.tapped[name], seen[name]) for name in seen)
    assert torch.equal(frame.tapped["out"], result)
    assert frame.tapped["level"].shape == (2, 8, 4, 3)
    assert frame.tapped["middle"].shape == (2, 16, 4, 3)
    frame.tapped["level"].sum().backward()


def test_first_level_of_a_flat_unet_is_its_last_block() -> None:
    for attention, kind in ((True, "SpatialTransformer"), (False, "ResnetBlock")):
        arch = UNetArch(
            in_channels=4,
            out_channels=4,
            block_out_channels=(8,),
            attention_levels=(attention,),
            layers_per_block=2,
            head_dim=8,
            cross_attention_dim=8,
            norm_groups=4,
        )
        network = UNet(arch)
        assert type(first_level(network)).__name__ == kind
        frame = TrainingFrame(taps={first_level(network): "level"})
        network(LATENT, 100, CONTEXT, run=frame)
        assert frame.tapped["level"].shape == (2, 8, 8, 6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_runs_behind_the_last_tap(checkpointing: bool) -> None:
    network = unet()
    whole = TrainingFrame(taps={middle(network): "middle"})
    network(LATENT, 100, CONTEXT, run=whole)

    def fail(*_: object) -> None:
        pytest.fail("a block behind the last tap ran")

    for behind in (*network.up_blocks.modules(), network.conv_norm_out, network.conv_out):
        behind.register_forward_pre_hook(fail)
    taps = {first_level(network): "level", middle(network): "middle"}
    short = TrainingFrame(taps=taps, taps_only=True, checkpointing=checkpointing)
    network(LATENT, 100, CONTEXT, run=short)
    assert torch.equal(short.tapped["middle"], whole.tapped["middle"])
    reached = gradients(network, short.tapped["middle"].sum())
    assert any(gradient is not None for gradient in reached)
