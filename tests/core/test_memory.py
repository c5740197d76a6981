from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gendr_core import memory
from gendr_core.errors import OptionError

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
GIB = 1 << 30

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A function that sets the CPU's memory and its container's limit."""

    def pretend(*, available: int, total: int = 16 * GIB, limit: str | None = None, used: int = 0) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=total))
        monkeypatch.setattr(memory, "CGROUP", tmp_path)
        if limit is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n", encoding="ascii")
            (tmp_path / "memory.current").write_text(f"{used}\n", encoding="ascii")

    return pretend


def test_this_machine_has_memory() -> None:
    assert 0 < memory.free_bytes(CPU) <= psutil.virtual_memory().total
    assert 0 <= memory.default_budget(CPU) < memory.free_bytes(CPU)


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [(None, 0, 8 * GIB), ("max", 5 * GIB, 8 * GIB), (str(6 * GIB), GIB, 5 * GIB), (str(GIB), 2 * GIB, 0)],
)
def test_a_container_has_what_its_limit_leaves(machine: Machine, limit: str | None, used: int, expected: int) -> None:
    machine(available=8 * GIB, limit=limit, used=used)
    assert memory.free_bytes(CPU) == expected


def test_a_cpu_keeps_one_gib_or_a_twentieth(machine: Machine) -> None:
    machine(available=3 * GIB, total=8 * GIB)
    assert memory.reserve_bytes(CPU) == GIB
    assert memory.default_budget(CPU) == 2 * GIB
    machine(available=3 * GIB, total=100 * GIB)
    assert memory.reserve_bytes(CPU) == 5 * GIB
    assert memory.default_budget(CPU) == 0


def test_cuda_counts_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: GIB)
    assert memory.free_bytes(CUDA) == 6 * GIB
    assert memory.default_budget(CUDA) == 6 * GIB - GIB // 2


def test_mps_has_what_it_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4 * GIB)
    assert memory.default_budget(MPS) == memory.free_bytes(MPS) == 6 * GIB


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GiB", 8 * GIB),
        ("7.5 GB", 7_500_000_000),
        ("512mib", 512 << 20),
        (" 2kB ", 2000),
        ("3 KiB", 3072),
        ("100B", 100),
        ("6000000000", 6_000_000_000),
        ("0", 0),
    ],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert memory.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "8 gigs", "8G iB", "1e9", "8,5GB", "nan"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(OptionError, match=r"8GiB, 7\.5GB"):
        memory.parse_bytes(text)


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(7_967_164_334, "7.42 GiB"), (GIB, "1.00 GiB"), (3 << 19, "1.50 MiB"), (2048, "2.00 KiB"), (1023, "1023 B")],
)
def test_sizes_are_written(num_bytes: int, expected: str) -> None:
    assert memory.format_bytes(num_bytes) == expected


@given(st.integers(0, 1 << 50))
def test_what_is_written_can_be_read(num_bytes: int) -> None:
    # Two decimals of the unit.
    assert memory.parse_bytes(memory.format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.006)


def test_a_refused_allocation_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB, max allowed: 9 GB)."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory: you tried to"),
    ],
)
def test_every_kind_of_shortage_is_recognised(error: BaseException) -> None:
    assert memory.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Expected all tensors to be on the same device"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_shortages(error: BaseException) -> None:
    assert not memory.is_out_of_memory(error)


def test_only_what_torch_holds_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append("mps"))
    for device in (CPU, CUDA, MPS):
        memory.release(device)
    assert released == ["cuda", "mps"]
