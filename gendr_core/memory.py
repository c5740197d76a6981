"""How much memory there is, what is left for others, and how to tell that it ran out.

Role: the planner asks for the budget, the pipeline recognises errors for want of memory; ``cost`` says what is needed.
"""

import re
from pathlib import Path

import psutil
import torch

from .errors import OptionError

PROCESSOR = torch.device("cpu")
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container its limits, version 2."""
CPU_RESERVE_BYTES = 1 << 30
CPU_RESERVE_SHARE = 0.05
CUDA_RESERVE_BYTES = 1 << 29
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
OUT_OF_MEMORY_TEXTS = (
    "out of memory",  # CUDA, HIP, MPS and XPU
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # the same on Windows
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
)
"""What untyped errors say; torch.OutOfMemoryError covers only what torch's own allocator of a device refuses."""


def free_bytes(device: torch.device) -> int:
    """Return the bytes that tensors on ``device`` could take now, what torch holds back unused included.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``; of any other type the processor's memory is told.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    available = psutil.virtual_memory().available
    left = _cgroup_left()
    return available if left is None else min(available, left)


def _cgroup_left() -> int | None:
    """Return the bytes that the container's limit leaves, None without a limit.

    The file cache counts as used here, though the kernel gives it up: an estimate on the safe side.
    """
    limit, current = CGROUP / "memory.max", CGROUP / "memory.current"
    if not (limit.is_file() and current.is_file()):
        return None
    text = limit.read_text(encoding="ascii").strip()
    return None if text == "max" else max(0, int(text) - int(current.read_text(encoding="ascii")))


def reserve_bytes(device: torch.device) -> int:
    """Return the bytes of ``device`` that a budget leaves alone.

    On a CPU a twentieth of its memory, at least 1 GiB: a system that swaps is slower than any plan with less memory,
    and the decoded image, its file and other programs grow while a restoration runs. On a GPU 0.5 GiB, for the kernels
    and workspaces of CUDA's libraries, which torch's allocator does not know of, and for the screen. MPS shares the
    processor's memory, and what it recommends leaves a share already.
    """
    if device.type == "cuda":
        return CUDA_RESERVE_BYTES
    if device.type == "mps":
        return 0
    return max(CPU_RESERVE_BYTES, int(psutil.virtual_memory().total * CPU_RESERVE_SHARE))


def default_budget(device: torch.device) -> int:
    """Return the bytes that a restoration on ``device`` may take where the user names no budget; 0 or more."""
    return max(0, free_bytes(device) - reserve_bytes(device))


def parse_bytes(text: str) -> int:
    """Return the bytes that ``text`` names: ``8GiB``, ``7.5 GB``, ``512MiB`` or a plain number; case does not matter.

    Raises:
        OptionError: it names no size.
    """
    match = SIZE.fullmatch(text)
    units = {name.lower(): factor for name, factor in UNITS.items()}
    unit = match[2].lower() or "b" if match else ""
    if match is None or unit not in units:
        raise OptionError(
            f"expected an amount of memory such as 8GiB, 7.5GB, 512MiB or 6000000000, got {text!r}:"
            f" a number and one of {', '.join(UNITS)}"
        )
    return int(float(match[1]) * units[unit])


def format_bytes(num_bytes: int) -> str:
    """Return ``num_bytes`` in GiB, MiB or KiB, whichever is at least 1 of, with two decimals: ``7.42 GiB``."""
    for unit in ("GiB", "MiB", "KiB"):
        if num_bytes >= UNITS[unit]:
            return f"{num_bytes / UNITS[unit]:.2f} {unit}"
    return f"{num_bytes} B"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` says that memory ran out, on any device."""
    # torch.OutOfMemoryError is torch.cuda.OutOfMemoryError under its newer name; both, and torch.AcceleratorError,
    # are RuntimeErrors.
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def release(device: torch.device) -> None:
    """Give back what torch holds of ``device``'s memory without using it; on a CPU it holds nothing."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
