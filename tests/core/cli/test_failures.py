import pytest
import torch

from gendr_core.cli import failures
from gendr_core.errors import OptionError


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("MPS backend out of memory"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_lack_of_memory_is_explained(error: Exception) -> None:
    assert "gendr plan" in str(failures.explain(error))


def test_ok_or_error_of_failures() -> None:
    assert failures.explain(OptionError("expected this, got that")) == "expected this, got that"
    assert failures.explain(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
