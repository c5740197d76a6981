from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.plan import DEFAULT_PLAN, Tiles
from gendr_core.precision import device_settings
from gendr_core.step import one_step

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
BACKENDS: Any = torch.backends
"""With the names that torch's stubs leave out."""


def flags() -> tuple[bool, ...]:
    """What this process is set to now, products, convolutions, benchmark; it can be read without a GPU."""
    return BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32, BACKENDS.cudnn.benchmark


def set_flags(matmul: bool, convolutions: bool, benchmark: bool) -> None:
    BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32 = matmul, convolutions
    BACKENDS.cudnn.benchmark = benchmark


@pytest.fixture(autouse=True)
def _own_flags() -> Iterator[None]:
    """Leave the process as it was."""
    before = flags()
    yield
    torch.set_float32_matmul_precision("highest")
    set_flags(*before)


@pytest.mark.parametrize("host", [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)])
def test_the_hosts_flags_are_there_again(host: tuple[bool, bool, bool]) -> None:
    set_flags(*host)
    with device_settings(CUDA, torch.float32):
        assert flags() == (False, False, False)
    assert flags() == host


def test_the_hosts_flags_are_there_again_after_an_error() -> None:
    set_flags(True, True, True)
    with pytest.raises(InterruptedError), device_settings(CUDA, torch.float32):
        raise InterruptedError
    assert flags() == (True, True, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_tf32_stays_as_the_host_has_it(dtype: torch.dtype) -> None:
    for host in ((True, False, True), (False, True, False)):
        set_flags(*host)
        with device_settings(CUDA, dtype):
            assert flags() == (host[0], host[1], False)
        assert flags() == host


@pytest.mark.parametrize("host", [False, True])
def test_benchmark_is_the_hosts_where_shapes_repeat(host: bool) -> None:
    set_flags(False, True, host)
    with device_settings(CUDA, torch.float32, repeats=True):
        assert flags() == (False, False, host)


def test_nothing_is_touched_on_other_devices() -> None:
    set_flags(True, True, True)
    for device in (CPU, torch.device("meta")):
        with device_settings(device, torch.float32):
            assert flags() == (True, True, True)


def test_passes_that_overlap_in_any_order_leave_the_hosts_flags() -> None:
    set_flags(True, True, True)
    first, second = device_settings(CUDA, torch.float32), device_settings(CUDA, torch.float32)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert flags() == (False, False, False)
    second.__exit__(None, None, None)
    assert flags() == (True, True, True)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_products_comes_back_by_its_name(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    with device_settings(CUDA, torch.float32):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == precision


NEWER = pytest.mark.skipif(not hasattr(BACKENDS.cudnn, "conv"), reason="this torch has the older names only")


@NEWER
def test_the_processors_own_precision_comes_back() -> None:
    own = BACKENDS.mkldnn.matmul
    set_flags(True, True, True)
    before = own.fp32_precision
    with device_settings(CUDA, torch.float32):
        pass
    assert own.fp32_precision == before


@NEWER
def test_settings_by_torchs_newer_names_come_back() -> None:
    products, convolutions = BACKENDS.cuda.matmul, BACKENDS.cudnn.conv
    set_flags(False, False, False)
    products.fp32_precision = convolutions.fp32_precision = "tf32"
    with device_settings(CUDA, torch.float32):
        assert (products.fp32_precision, convolutions.fp32_precision) == ("ieee", "ieee")
    assert (products.fp32_precision, convolutions.fp32_precision) == ("tf32", "tf32")


def test_a_stage_on_the_processor_changes_nothing(latent_unet: GenDRUNet) -> None:
    set_flags(True, True, True)
    one_step(torch.zeros(1, 4, 8, 8), latent_unet)
    assert flags() == (True, True, True)


def test_every_stage_holds_the_settings_of_its_own_network(
    latent_unet: GenDRUNet, vae: GenDRVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[str, torch.dtype, bool]] = []
    inside: list[bool] = []

    @contextmanager
    def noted(device: torch.device, dtype: torch.dtype, *, repeats: bool = False) -> Iterator[None]:
        held.append((device.type, dtype, repeats))
        inside.append(True)
        yield
        inside.pop()

    for stage in ("encode", "step", "decode"):
        monkeypatch.setattr(f"gendr_core.{stage}.device_settings", noted)
    vae = replace(vae, network=vae.network.bfloat16(), dtype=torch.bfloat16)
    ran: list[bool] = []
    for network in (latent_unet.network.conv_in, vae.network.encoder.conv_in, vae.network.decoder.conv_in):
        network.register_forward_hook(lambda *_: ran.append(bool(inside)))
    tiles = replace(DEFAULT_PLAN, tiles=Tiles(size=8, overlap=0))
    with torch.inference_mode():
        latent = encode(torch.zeros(1, 3, 128, 64), "vae16", vae)
        one_step(latent, latent_unet)
        one_step(latent, latent_unet, plan=tiles)
        decode(latent, "vae16", vae)
    once, tile = ("cpu", torch.float32, False), ("cpu", torch.float32, True)
    assert held == [("cpu", torch.bfloat16, False), once, tile, tile, ("cpu", torch.bfloat16, False)]
    assert ran == [True] * 5


@pytest.mark.gpu
def test_float32_products_and_convolutions_are_exact_inside_and_fast_outside() -> None:
    set_flags(True, True, False)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()

    def error() -> float:
        return float((a.cuda() @ b.cuda() - exact.cuda()).abs().max() / exact.abs().max())

    assert error() > 1e-4
    with device_settings(CUDA, torch.float32):
        assert error() < 1e-5
    assert error() > 1e-4
