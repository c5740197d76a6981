import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gendr_train.adversary import FeatureHead, PatchAdversary, frozen


def pixels(images: int = 2, height: int = 16, width: int = 12) -> Tensor:
    return torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def adversary() -> PatchAdversary:
    torch.manual_seed(0)
    return PatchAdversary(4, 2)


@given(layers=st.integers(1, 5), height=st.integers(32, 70), width=st.integers(32, 70), channels=st.integers(1, 9))
def test_patches_get_one_logit_each(layers: int, height: int, width: int, channels: int) -> None:
    logits = PatchAdversary(channels, layers)(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 1, height // 2**layers, width // 2**layers)


def test_widths_double_up_to_eight_times_the_first() -> None:
    widths = [layer.out_channels for layer in PatchAdversary(2, 6).strided.children()]
    assert widths == [2, 4, 8, 16, 16, 16]


def test_spectral_norms_converge_to_one() -> None:
    network = adversary()
    for _ in range(100):
        network(pixels())
    for layer in (*network.strided, network.last):
        weight = layer.get_submodule("parametrizations.weight")()
        assert torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() == pytest.approx(1.0, abs=1e-2)


def test_patches_run_on_a_device_without_autocast() -> None:
    with torch.device("meta"):
        logits = PatchAdversary(4, 2)(torch.empty(1, 3, 16, 12))
    assert logits.shape == (1, 1, 4, 3)


def test_mixed_precision_leaves_the_spectral_norm_in_float32() -> None:
    plain, mixed = adversary(), adversary()
    with torch.autocast("cpu", torch.bfloat16):
        logits = mixed(pixels())
    assert logits.dtype == torch.bfloat16
    plain(pixels())
    for (name, exact), found in zip(plain.named_buffers(), mixed.buffers(), strict=True):
        assert torch.equal(exact, found), name


@given(channels=st.integers(1, 130), height=st.integers(1, 5), width=st.integers(1, 5))
def test_head_takes_any_size_and_width(channels: int, height: int, width: int) -> None:
    head = FeatureHead(channels)
    features = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(channels))
    logits = head(features)
    assert logits.shape == (2, 1, height, width)
    assert logits.isfinite().all()
    assert head.norm.num_groups <= 32
    assert channels < 8 or channels // head.norm.num_groups >= 4


def test_head_sees_a_single_position() -> None:
    head = FeatureHead(8)
    features = torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    first, second = head(features)
    assert (first - second).abs().item() > 1e-3


@pytest.mark.parametrize("network", [adversary(), FeatureHead(3)])
def test_images_do_not_see_each_other(network: nn.Module) -> None:
    network.eval()
    together = network(pixels(3))
    apart = torch.cat([network(image[None]) for image in pixels(3)])
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("network", [adversary(), FeatureHead(3)])
def test_frozen_network_passes_gradients_on_and_keeps_none(network: nn.Module) -> None:
    network.eval()
    parameters, names = list(network.parameters()), list(network.state_dict())
    gradients = []
    for free in (False, True):
        x = pixels().requires_grad_()
        if free:
            network(x).square().sum().backward()
        else:
            with frozen(network):
                loss = network(x).square().sum()
            loss.backward()
        gradients.append(x.grad)
        assert all((p.grad is not None) == free for p in parameters)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0.0
    # The same parameters in the same order: optimisers and wrappers hold on to them.
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert list(network.state_dict()) == names


def test_frozen_and_free_passes_share_one_backward() -> None:
    network = adversary().eval()
    made = pixels().requires_grad_()
    with frozen(network), frozen(network):
        fooled = network(made).mean()
    told = network(made.detach()).mean()
    (fooled + told).backward()
    joint = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    alone = torch.autograd.grad(network(made.detach()).mean(), list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(joint, alone, strict=True))


def test_frozen_ends_with_an_error_inside() -> None:
    network = adversary()
    with pytest.raises(RuntimeError), frozen(network):
        network(torch.zeros(1, 5, 8, 8))
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in network.parameters())


def trained(network: PatchAdversary, steps: range) -> PatchAdversary:
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for step in steps:
        optimiser.zero_grad()
        with frozen(network):
            network(pixels())
        network(pixels() * step).mean().backward()
        optimiser.step()
    return network


def test_resumed_run_goes_on_as_one_without_a_break() -> None:
    whole = trained(adversary(), range(6))
    saved = copy.deepcopy(trained(adversary(), range(3)).state_dict())
    torch.manual_seed(9)
    resumed = PatchAdversary(4, 2)
    resumed.load_state_dict(saved)
    trained(resumed, range(3, 6))
    assert any(name.endswith("._u") for name in saved)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_spectral_norms_are_the_same_in_mixed_precision() -> None:
    single, mixed = adversary(), adversary()
    with torch.autocast("cpu", torch.bfloat16):
        logits = mixed(pixels())
    expected = single(pixels())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.02)
    assert all(torch.equal(a, b) for a, b in zip(single.buffers(), mixed.buffers(), strict=True))
