"""Packed convolutions are the plain ones, bit by bit."""

from dataclasses import replace

import pytest
import torch
from networks import seeded
from torch import nn

from gendr_core.cost import measure
from gendr_core.model import GenDRUNet, fold_unet
from gendr_core.nets import TORCH_OPERATIONS, UNet
from gendr_core.nets.packed import PackedConv2d, can_pack, pack
from gendr_core.plan import Bands, StagePlan
from gendr_core.spec import UNET_FOLDS, ModelSpec, UNetArch
from gendr_core.step import one_step

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="torch without oneDNN")
WIDE = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(192, 192),
    attention_levels=(False, False),
    layers_per_block=1,
    head_dim=64,
    cross_attention_dim=8,
)
"""Wide enough that its convolutions are worth packing."""


def convolution(stride: int = 1) -> nn.Conv2d:
    return seeded(nn.Conv2d(192, 256, 3, stride=stride, padding=1), 1)


def frame(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_packed_convolution_computes_the_same_bits(dtype: torch.dtype, stride: int, batch: int) -> None:
    if not can_pack(dtype):
        pytest.skip(f"oneDNN does not compute in {dtype} here")
    plain = convolution(stride).to(dtype)
    x = frame(batch, 192, 9, 14, dtype=dtype)
    with torch.inference_mode():
        result = PackedConv2d(plain)(x)
        assert torch.equal(result, plain(x))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_weights_come_back_as_they_were() -> None:
    plain = convolution()
    weight, bias = TORCH_OPERATIONS.weights(PackedConv2d(plain), torch.empty(0))
    assert torch.equal(weight, plain.weight)
    assert bias is plain.bias


def test_only_large_convolutions_of_more_than_one_pixel_are_packed() -> None:
    network = nn.Sequential(convolution(), nn.Conv2d(1024, 1024, 1), nn.Conv2d(8, 8, 3)).requires_grad_(False)
    pack(network)
    assert [type(layer) for layer in network] == [PackedConv2d, nn.Conv2d, nn.Conv2d]


@pytest.mark.parametrize("band_bytes", [2**24, 60_000])
def test_a_packed_unet_is_the_plain_one(band_bytes: int) -> None:
    def unet() -> GenDRUNet:
        network, prompt = seeded(UNet(WIDE), 1), torch.ones(3, 8)
        return GenDRUNet(
            network=network, spec=ModelSpec(arch=WIDE), positive=prompt, negative=None, dtype=torch.float32
        )

    plain, packed = (fold_unet(unet(), folds) for folds in (set(UNET_FOLDS) - {"packed"}, UNET_FOLDS))
    assert any(isinstance(layer, PackedConv2d) for layer in packed.network.modules())
    # Of a size at which torch takes oneDNN for all layers.
    latent, plan = frame(1, 4, 32, 24), StagePlan(bands=Bands(band_bytes=band_bytes))
    with torch.inference_mode():
        assert torch.equal(one_step(latent, packed, plan=plan), one_step(latent, plain, plan=plan))


def test_a_packed_convolution_is_planned_with_the_shape_that_it_has() -> None:
    layer = nn.Conv2d(192, 256, 3, padding=1, device="meta").requires_grad_(False)
    x = torch.empty(1, 192, 9, 14, device="meta").contiguous(memory_format=torch.channels_last)
    result, cost = measure(lambda: PackedConv2d(layer)(x), held=[x])
    assert result.shape == (1, 256, 9, 14)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert cost.peak_bytes >= x.nbytes + result.nbytes


def test_nothing_is_packed_for_other_layers_than_torch_s_own() -> None:
    class Foreign:
        Conv2d, Linear, GroupNorm, LayerNorm = nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm
        weights = staticmethod(TORCH_OPERATIONS.weights)

    network = seeded(UNet(WIDE, operations=Foreign()), 1)
    unet = GenDRUNet(
        network=network, spec=ModelSpec(arch=WIDE), positive=torch.ones(3, 8), negative=None, dtype=torch.float32
    )
    folded = fold_unet(unet)
    assert "packed" not in folded.folds
    assert not any(isinstance(layer, PackedConv2d) for layer in folded.network.modules())
    assert replace(folded).folds == frozenset(UNET_FOLDS) - {"packed"}
