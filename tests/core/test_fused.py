"""Fused norms: compiled for GPUs, planned without memory, asked for where they cannot run; computed by the interpreter.

What the kernels compute is in interpreted_fused.py, which runs in a process of its own.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import tiny_unet, tiny_vae
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gendr_core.cost import Cost, measure
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.errors import OptionError
from gendr_core.model import GenDRUNet, GenDRVAE, fold_unet, fold_vae, runnable_folds
from gendr_core.nets import TORCH_OPERATIONS, UNet
from gendr_core.nets.fused import FusedGroupNorm, fuse, moments, normalise
from gendr_core.plan import Bands, StagePlan
from gendr_core.sketch import meta_tensor, sketched_unet, sketched_vae, unet_kind, vae_kind
from gendr_core.spec import OPTIONAL_FOLDS, UNET_FOLDS, VAE_FOLDS, Fold
from gendr_core.step import one_step

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which is made for Linux")


@needs_triton
def test_kernels_compute_what_they_should_in_the_interpreter() -> None:
    tests = HERE / "interpreted_fused.py"
    run = subprocess.run(
        [sys.executable, "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))", "-q", str(tests)],
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    assert "skipped" not in run.stdout.splitlines()[-1]


KERNELS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "_gather": (("x", "parts"), "positions channels length image rows columns"),
    "_join": (("parts", "mean", "variance"), "positions channels length num_parts rows columns"),
    "_apply": (
        ("x", "result", "mean", "variance", "weight", "bias"),
        "positions channels groups image eps activate rows columns",
    ),
}
CONSTANTS = {"rows": 64, "columns": 64, "activate": True}


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu_that_is_not_here(capability: int, dtype: str, affine: bool, tmp_path: Path) -> None:
    triton, compiler = (pytest.importorskip(name) for name in ("triton", "triton.backends.compiler"))
    from gendr_core.nets import triton_kernels

    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        for name, (pointers, sizes) in KERNELS.items():
            kernel = getattr(triton_kernels, name)
            of_frame = {"x", "result", "weight", "bias"}
            signature = {each: f"*{dtype}" if each in of_frame else "*fp32" for each in pointers}
            signature |= {each: "constexpr" if each in CONSTANTS else "i32" for each in sizes.split()}
            signature |= {"eps": "fp32"} if "eps" in signature else {}
            constants: dict[str, Any] = {each: value for each, value in CONSTANTS.items() if each in signature}
            if not affine and "weight" in signature:
                signature |= {"weight": "constexpr", "bias": "constexpr"}
                constants |= {"weight": None, "bias": None}
            assert list(signature) == kernel.arg_names
            # As for every frame of these networks: addresses and channels are multiples of 16.
            aligned = [each for each in signature if each in (*pointers, "channels", "image") and each not in constants]
            attributes = {(kernel.arg_names.index(each),): [["tt.divisibility", 16]] for each in aligned}
            source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
            made = triton.compile(source, target=compiler.GPUTarget("cuda", capability, 32))
            assert made.asm["cubin"]
            # Frames are read and written 16 bytes at a time, and no value has to leave the registers.
            text = made.asm["ptx"]
            assert "st.local" not in text
            if "x" in signature:
                assert "ld.global.v4.b32" in text
            if "result" in signature:
                assert "st.global.v4.b32" in text


@pytest.mark.parametrize("shape", [(1, 320, 64, 64), (2, 2560, 9, 7), (1, 128, 4096, 4096), (3, 40, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_without_memory_have_the_shapes_and_take_the_bytes_of_real_ones(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    batch, channels, _, width = shape
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)
    statistics, cost = measure(lambda: moments(x, 4), [x], device_type="cuda")
    assert [(each.shape, each.dtype) for each in statistics] == [((batch, 4), torch.float32)] * 2
    assert cost.peak_bytes - x.nbytes <= batch * 2**21
    result, cost = measure(lambda: normalise(x, statistics, (None, None), 1e-5, activate=True), [x], device_type="cuda")
    assert result.shape == x.shape
    assert result.dtype == dtype
    assert result.stride()[1:] == (1, width * channels, channels)
    assert 0 <= cost.peak_bytes - 2 * x.nbytes < 512
    assert cost.flops == 0


class Orders(TorchFunctionMode):
    """Notes of every convolution whether its input is in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[bool] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, torch.conv2d) and min(args[0].shape[1:]) > 1:
            self.seen.add(args[0].stride(1) == 1)
        return func(*args, **(kwargs or {}))


def sketches(*folds: Fold) -> tuple[GenDRUNet, GenDRVAE]:
    """Return tiny models without memory, with the usual folds for CUDA and ``folds``."""
    unet, vae = tiny_unet(negative=True), tiny_vae()
    unet_folds = runnable_folds({*UNET_FOLDS, *folds}, "cuda", torch.float32)
    kind = vae_kind(replace(vae, folds=frozenset(VAE_FOLDS).union(folds)))
    assert kind is not None
    return sketched_unet(unet_kind(replace(unet, folds=unet_folds)), 3, guidable=True), sketched_vae(kind)


@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("band_bytes", [2**24, 8000])
def test_frames_of_fused_networks_are_channels_last_on_cuda_and_of_plain_ones_never(
    band_bytes: int, parked: bool
) -> None:
    plan = StagePlan(bands=Bands(band_bytes=band_bytes, parked=parked))
    step_plan = StagePlan(bands=Bands(band_bytes=band_bytes))
    pixels, latent = meta_tensor(1, 3, 64, 48), meta_tensor(1, 4, 16, 12)

    def costs(*folds: Fold) -> tuple[set[bool], list[Cost]]:
        unet, vae = sketches(*folds)
        with Orders() as orders:
            runs = (
                lambda: encode(pixels, "vae16", vae, plan=plan),
                lambda: one_step(latent, unet, guidance=2.0, plan=step_plan),
                lambda: decode(latent, "vae16", vae, plan=plan),
            )
            return orders.seen, [measure(run, device_type="cuda")[1] for run in runs]

    (plain_orders, plain), (orders, ours) = costs(), costs("fused")
    assert plain_orders == {False}
    assert orders == {True}
    assert [cost.flops for cost in ours] == [cost.flops for cost in plain]
    # Beside a frame there are its parts, but no copy of it between norm and SiLU.
    assert all(cost.peak_bytes <= other.peak_bytes + 2**16 for cost, other in zip(ours, plain, strict=True))


def test_fused_is_never_among_the_folds_that_a_load_takes_by_itself() -> None:
    assert "fused" in OPTIONAL_FOLDS
    assert set(OPTIONAL_FOLDS).isdisjoint({*UNET_FOLDS, *VAE_FOLDS})


def test_fused_norms_stand_in_for_all_and_only_for_group_norms() -> None:
    network = tiny_unet().network
    before = {name: value.data_ptr() for name, value in network.named_parameters()}
    fuse(network)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) > 5
    assert {type(layer) for layer in norms} == {FusedGroupNorm}
    assert {name: value.data_ptr() for name, value in network.named_parameters()} == before
    assert network.channels_last


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_fused_is_refused_where_it_is_no_cuda_device(device: str) -> None:
    message = f"expected a CUDA device and torch's own layers for fused kernels, got {device} .*: take cuda, or"
    with pytest.raises(OptionError, match=message):
        fold_unet(tiny_unet(), {*UNET_FOLDS, "fused"}, device=device)
    with pytest.raises(OptionError, match=message):
        fold_vae(tiny_vae(), {"fused"}, device=device)


def test_fused_is_refused_in_layers_of_a_host() -> None:
    class Foreign:
        Conv2d, Linear, GroupNorm, LayerNorm = nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm
        weights = staticmethod(TORCH_OPERATIONS.weights)

    unet = tiny_unet()
    foreign = replace(unet, network=UNet(unet.spec.arch, operations=Foreign()))
    with pytest.raises(OptionError, match="torch's own layers for fused kernels, got cuda and Foreign"):
        fold_unet(foreign, {"fused"}, device="cuda")


def test_fused_is_refused_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gendr_core.nets.fused.find_spec", lambda _: None)
    with pytest.raises(OptionError, match="expected Triton for fused kernels, found none: install triton"):
        fuse(tiny_unet().network)
    # What is only planned needs none.
    sketches("fused")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("band_bytes", [2**24, 8000])
def test_fused_stages_are_the_plain_ones_on_a_gpu(band_bytes: int, dtype: torch.dtype) -> None:
    plan = StagePlan(bands=Bands(band_bytes=band_bytes))
    generator = torch.Generator().manual_seed(1)
    pixels, latent = (torch.randn(shape, generator=generator) for shape in ((1, 3, 96, 64), (1, 4, 12, 8)))

    def results(*folds: Fold) -> list[Tensor]:
        unet = fold_unet(replace(tiny_unet(negative=True), dtype=dtype), {*UNET_FOLDS, *folds}, device="cuda")
        vae = fold_vae(replace(tiny_vae(), dtype=dtype), {*VAE_FOLDS, *folds}, device="cuda")
        with torch.inference_mode():
            return [
                encode(pixels, "vae16", vae, plan=plan),
                one_step(latent, unet, guidance=2.0, plan=plan),
                decode(latent, "vae16", vae, plan=plan),
            ]

    limit = {torch.float32: 1e-4, torch.float16: 2e-2}[dtype]
    for ours, plain in zip(results("fused"), results(), strict=True):
        assert (ours - plain).abs().max() <= limit * plain.abs().max()
