"""Networks whose weights stay in 8 bits: the bits of a file in 8 bits, half the memory, planned as they run."""

from pathlib import Path

import pytest
import torch
from allocations import allocated_peak
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import seeded, tiny_unet, tiny_vae
from torch import Tensor, nn

from gendr_core.bake import bake_unet, bake_vae
from gendr_core.bands import flops_of
from gendr_core.checkpoint import write_unet, write_vae
from gendr_core.config import MemoryOptions, RestoreOptions
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.errors import OptionError
from gendr_core.float8 import FLOAT8, from_float8, to_float8
from gendr_core.geometry import Extent
from gendr_core.model import GenDRUNet, fold_unet, fold_vae, load_unet, load_vae, runnable_folds
from gendr_core.nets import TORCH_OPERATIONS, UNet
from gendr_core.nets.compressed import CompressedConv2d, CompressedLinear, compress
from gendr_core.pipeline import restore
from gendr_core.plan import Bands, StagePlan
from gendr_core.planner import Planner, Task
from gendr_core.sketch import step_cost, unet_kind, unet_sketch, vae_kind, vae_sketch
from gendr_core.spec import FILE_FOLDS, UNET_FOLDS, VAE_FOLDS, Fold, ModelSpec, UNetArch
from gendr_core.step import one_step

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IN_8_BITS: tuple[Fold, ...] = (*UNET_FOLDS, "fp8")
VAE_IN_8_BITS: tuple[Fold, ...] = (*VAE_FOLDS, "fp8")
PLAIN_WEIGHTS: tuple[Fold, ...] = tuple(fold for fold in UNET_FOLDS if fold not in ("phases", "packed"))
VAE_PLAIN_WEIGHTS: tuple[Fold, ...] = tuple(fold for fold in VAE_FOLDS if fold != "phases")
WIDE = UNetArch(
    in_channels=4,
    out_channels=4,
    block_out_channels=(128, 256),
    attention_levels=(True, True),
    layers_per_block=1,
    head_dim=64,
    cross_attention_dim=8,
)
"""Wide enough that weights and not activations are what a small frame takes."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A UNet and a VAE, plain and baked in 8 bits."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / f"{name}.safetensors" for name in ("unet", "vae", "baked_unet", "baked_vae")}
    unet, vae = tiny_unet(negative=True, guidance=1.5), tiny_vae()
    write_unet(paths["unet"], unet.spec, unet.network.state_dict(), unet.positive, unet.negative)
    write_vae(paths["vae"], vae.spec, vae.network.state_dict())
    bake_unet(paths["unet"], paths["baked_unet"], "fp8")
    bake_vae(paths["vae"], paths["baked_vae"], "fp8")
    return paths


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def wide_unet(dtype: torch.dtype) -> GenDRUNet:
    network, prompt = seeded(UNet(WIDE), 1), noise(3, 8)
    return GenDRUNet(network=network, spec=ModelSpec(arch=WIDE), positive=prompt, negative=None, dtype=dtype)


def rounded(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Bring a layer into ``dtype``, with the weight that is left of it in 8 bits."""
    layer.weight = nn.Parameter(from_float8(*to_float8(layer.get_parameter("weight"))), requires_grad=False)
    return layer.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [1, 2, 3])
@settings(max_examples=10)
@given(seed=st.integers(0, 99), stride=st.integers(1, 2), padding=st.integers(0, 1), channels=st.integers(1, 9))
def test_a_compressed_convolution_is_that_of_its_rounded_weight(
    dtype: torch.dtype, kernel: int, seed: int, stride: int, padding: int, channels: int
) -> None:
    plain = seeded(nn.Conv2d(channels, 7, kernel, stride=stride, padding=padding), seed)
    ours = CompressedConv2d(plain, "cpu", TORCH_OPERATIONS)
    ours.bias = nn.Parameter(plain.get_parameter("bias").to(dtype), requires_grad=False)
    x = noise(2, channels, 5, 6).to(dtype)
    assert torch.equal(ours(x), rounded(plain, dtype)(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_compressed_linear_layer_is_that_of_its_rounded_weight(dtype: torch.dtype, bias: bool) -> None:
    plain = seeded(nn.Linear(9, 7, bias=bias), 1)
    ours = CompressedLinear(plain, "cpu", TORCH_OPERATIONS)
    if bias:
        ours.bias = nn.Parameter(plain.get_parameter("bias").to(dtype), requires_grad=False)
    x = noise(2, 5, 9).to(dtype)
    assert torch.equal(ours(x), rounded(plain, dtype)(x))


def test_a_compressed_layer_has_what_is_asked_of_a_plain_one() -> None:
    plain = seeded(nn.Conv2d(6, 8, 3, padding=1), 1)
    ours = CompressedConv2d(plain, "cpu", TORCH_OPERATIONS)
    assert (ours.in_channels, ours.out_channels, ours.padding) == (6, 8, (1, 1))
    out = torch.empty(1, 8, 4, 4)
    assert flops_of(out, ours) == flops_of(out, plain)
    weight, bias = TORCH_OPERATIONS.weights(ours, torch.empty(0, dtype=torch.bfloat16))
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight.float(), from_float8(*to_float8(plain.weight), torch.float32))
    assert bias is not None
    assert torch.equal(bias, plain.get_parameter("bias").bfloat16())


def test_only_what_is_large_is_compressed() -> None:
    network = fold_unet(tiny_unet(), IN_8_BITS).network
    assert type(network.conv_in) is type(network.conv_out) is nn.Conv2d
    others = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, CompressedConv2d | CompressedLinear)
    ]
    assert others == ["conv_in", "conv_out"]
    dtypes = {name.split(".")[-1]: p.dtype for name, p in network.down_blocks.named_parameters() if p.ndim > 1}
    assert dtypes == {"weight": FLOAT8}


@pytest.mark.parametrize("folds", [(), PLAIN_WEIGHTS, UNET_FOLDS], ids=["none", "some", "all"])
def test_a_unet_in_memory_has_the_bits_of_a_file_in_8_bits(files: dict[str, Path], folds: tuple[Fold, ...]) -> None:
    # What is not in 8 bits is bfloat16 in the file.
    ours = load_unet(files["unet"], dtype=torch.bfloat16, folds=[*FILE_FOLDS, *folds, "fp8"]).network.state_dict()
    theirs = load_unet(files["baked_unet"], dtype=torch.bfloat16, folds=[*folds, "fp8"]).network.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.float(), theirs[name].float()), name


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=8)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    band_bytes=st.sampled_from([2**24, 4000]),
    guidance=st.sampled_from([1.0, 1.5]),
)
def test_8_bits_kept_and_8_bits_read_step_alike(
    files: dict[str, Path], dtype: torch.dtype, height: int, width: int, band_bytes: int, guidance: float
) -> None:
    kept = load_unet(files["baked_unet"], dtype=dtype, folds=IN_8_BITS)
    read = load_unet(files["baked_unet"], dtype=dtype, folds=PLAIN_WEIGHTS)
    assert kept.folds == read.folds | {"fp8"}
    latent, plan = noise(1, 4, height, width), StagePlan(bands=Bands(band_bytes=band_bytes))
    with torch.inference_mode():
        ours, theirs = (one_step(latent, unet, guidance=guidance, plan=plan) for unet in (kept, read))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("band_bytes", "recompute"), [(2**24, False), (4000, False), (4000, True)])
def test_8_bits_kept_and_8_bits_read_code_alike(
    files: dict[str, Path], dtype: torch.dtype, band_bytes: int, recompute: bool
) -> None:
    kept = load_vae(files["baked_vae"], dtype=dtype, folds=VAE_IN_8_BITS)
    read = load_vae(files["baked_vae"], dtype=dtype, folds=VAE_PLAIN_WEIGHTS)
    plan = StagePlan(bands=Bands(band_bytes=band_bytes, recompute=recompute))
    pixels, latent = noise(1, 3, 64, 48), noise(1, 4, 7, 5)
    with torch.inference_mode():
        assert torch.equal(*(encode(pixels, "vae16", vae, plan=plan) for vae in (kept, read)))
        assert torch.equal(*(decode(latent, "vae16", vae, plan=plan) for vae in (kept, read)))


@settings(max_examples=10)
@given(height=st.integers(2, 12), width=st.integers(2, 12))
def test_bands_are_the_whole_in_8_bits_too(files: dict[str, Path], height: int, width: int) -> None:
    unet, latent = load_unet(files["unet"], folds=IN_8_BITS), noise(1, 4, height, width)
    with torch.inference_mode():
        whole, banded = (one_step(latent, unet, plan=StagePlan(bands=Bands(band_bytes=size))) for size in (2**24, 4000))
    assert (whole - banded).abs().max() <= 1e-4 * whole.abs().max()


def test_weights_take_half_of_16_bits() -> None:
    def weight_bytes(*folds: Fold) -> int:
        unet = fold_unet(wide_unet(torch.bfloat16), [*PLAIN_WEIGHTS, *folds])
        return sum(parameter.nbytes for parameter in unet.network.parameters())

    assert weight_bytes("fp8") == pytest.approx(0.5 * weight_bytes(), rel=0.02)


def test_a_sketch_has_the_weights_of_what_it_sketches() -> None:
    def shapes(network: nn.Module) -> dict[str, object]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}

    unet, vae = fold_unet(tiny_unet(), IN_8_BITS), fold_vae(tiny_vae(), VAE_IN_8_BITS)
    assert shapes(unet_sketch(unet_kind(unet))) == shapes(unet.network)
    kind = vae_kind(vae)
    assert kind is not None
    assert shapes(vae_sketch(kind)) == shapes(vae.network)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other convolutions have other scratch memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("band_bytes", [2**28, 2**17])
def test_what_a_layer_multiplies_out_is_planned(dtype: torch.dtype, band_bytes: int) -> None:
    plan, latent = StagePlan(bands=Bands(band_bytes=band_bytes)), noise(1, 4, 24, 16)
    planned, measured = [], []
    for folds in (PLAIN_WEIGHTS, IN_8_BITS):
        unet = fold_unet(wide_unet(dtype), folds)
        planned.append(step_cost(unet_kind(unet), (3, 1), Extent(8 * 24, 8 * 16), plan, "cpu").peak_bytes)
        measured.append(allocated_peak(lambda unet=unet: one_step(latent, unet, plan=plan)))
    assert all(real <= estimate for real, estimate in zip(measured, planned, strict=True))
    largest = max(parameter.numel() for parameter in unet.network.parameters())
    assert planned[1] - planned[0] == pytest.approx(measured[1] - measured[0], rel=0.02)
    assert planned[1] - planned[0] == pytest.approx(dtype.itemsize * largest, rel=0.02)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other convolutions have other scratch memory")
@pytest.mark.parametrize("memory", [MemoryOptions(), MemoryOptions(mode="tiles", tile_px=256)], ids=["whole", "tiles"])
def test_a_restoration_is_planned_closely(memory: MemoryOptions) -> None:
    unet, vae = fold_unet(tiny_unet(negative=True), IN_8_BITS), fold_vae(tiny_vae(), VAE_IN_8_BITS)
    options, image = RestoreOptions(scale=4.0, memory=memory), torch.rand(1, 60, 90, 3)
    plan = Planner(unet, vae, Task(source=Extent(60, 90)), options).plan()
    assert max(plan.weight_bytes.values()) == sum(
        parameter.nbytes for network in (unet.network, vae.network) for parameter in network.parameters()
    )
    estimate = plan.peak_bytes - max(plan.weight_bytes.values())
    measured = allocated_peak(lambda: restore(image, unet, vae, options))
    assert measured <= estimate <= 1.25 * measured


def test_folds_that_8_bits_exclude_are_left_out() -> None:
    assert runnable_folds(IN_8_BITS, "cpu", torch.float32) == frozenset(PLAIN_WEIGHTS) | {"fp8"}
    unet = fold_unet(tiny_unet(), IN_8_BITS)
    assert unet.folds == frozenset(PLAIN_WEIGHTS) | {"fp8"}
    assert not [name for name in unet.network.state_dict() if "phases" in name]


class ForeignConv2d(nn.Conv2d):
    """A host's convolution."""


class ForeignLinear(nn.Linear):
    """A host's linear layer."""


class Foreign:
    """Layers of a host, which counts how often it is asked for weights."""

    Conv2d, Linear, GroupNorm, LayerNorm = ForeignConv2d, ForeignLinear, nn.GroupNorm, nn.LayerNorm

    def __init__(self) -> None:
        self.asked = 0

    def weights(self, layer: nn.Module, like: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Return them as torch's own do."""
        self.asked += 1
        return TORCH_OPERATIONS.weights(layer, like)


def test_layers_of_a_host_stay_its_own_and_get_their_weights_from_it(files: dict[str, Path]) -> None:
    host = Foreign()
    ours, theirs = (load_unet(files["unet"], operations=of, folds=IN_8_BITS) for of in (host, TORCH_OPERATIONS))
    layers = [layer for layer in ours.network.modules() if isinstance(layer, CompressedConv2d | CompressedLinear)]
    assert len(layers) == sum(p.dtype == FLOAT8 for p in theirs.network.parameters())
    for layer in layers:
        assert isinstance(layer, ForeignConv2d if isinstance(layer, CompressedConv2d) else ForeignLinear)
    latent = noise(1, 4, 6, 5)
    with torch.inference_mode():
        assert torch.equal(*(unet.network(latent, 354, unet.positive[None]) for unet in (ours, theirs)))
    assert host.asked == len(layers)


def test_a_device_without_8_bits_is_refused() -> None:
    with pytest.raises(OptionError, match=r"expected a device with float8 .*, got mps: leave out fp8"):
        fold_vae(tiny_vae(), VAE_IN_8_BITS, device="mps")


def test_nothing_is_compressed_unless_asked() -> None:
    assert "fp8" not in UNET_FOLDS
    assert "fp8" not in VAE_FOLDS
    network = nn.Sequential(nn.Linear(3, 3), nn.Identity())
    compress(network, "cpu", TORCH_OPERATIONS)
    assert [type(layer) for layer in network] == [CompressedLinear, nn.Identity]
