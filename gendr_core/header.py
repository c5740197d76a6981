"""The header of a safetensors file, read and checked before anything else touches the file.

Role: the first step of ``checkpoint``. A header comes from strangers: its length, JSON, dtypes, shapes and offsets are
bounded here by the size of the file, so that what follows (``layouts``, the safetensors library, a network) sees sane
numbers only. Format: 8 bytes of little-endian length, that much JSON, then the tensors' bytes without gaps.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .errors import CheckpointError

Shape = tuple[int, ...]

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own cap; an SDXL checkpoint with 2500 tensors needs 0.3 MB."""
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 16
MAX_NAME_LENGTH = 512
LENGTH_BYTES = 8

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth"})

CONVERT_RECIPE = """Convert it once with PyTorch and safetensors.torch.save_file, then load the result:
  state = torch.load("model.ckpt", map_location="cpu", weights_only=True); state = state.get("state_dict", state)
  save_file({k: v.contiguous() for k, v in state.items() if hasattr(v, "shape")}, "model.safetensors")"""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor."""

    dtype: str
    """The format's own name, such as F16."""
    shape: Shape

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: every tensor lies inside the file, no two overlap, nothing is left over."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    num_bytes: int
    """Size of the whole file."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor by its name in the file."""
        return {name: info.shape for name, info in self.tensors.items()}


def read_header(path: Path) -> Header:
    """Return the checked header of a safetensors file; no tensor is read.

    Args:
        path: the file.

    Raises:
        CheckpointError: no such file, a folder, empty, a pickle, not safetensors, damaged or cut short.
    """
    if path.is_dir():
        raise CheckpointError("expected a .safetensors file, got a folder: choose the file inside it")
    if not path.is_file():
        raise CheckpointError("expected a .safetensors file, found no file of this name: check the path")
    try:
        with path.open("rb") as file:
            num_bytes = path.stat().st_size
            start = file.read(LENGTH_BYTES + 1)
            length = int.from_bytes(start[:LENGTH_BYTES], "little")
            _check_start(path, start, length, num_bytes)
            file.seek(LENGTH_BYTES)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"the file cannot be read: {error.strerror}") from error
    entries = _parse(raw)
    metadata = _metadata(entries.pop("__metadata__", {}))
    tensors = _tensors(entries, num_bytes - LENGTH_BYTES - length)
    return Header(tensors, metadata, num_bytes)


def _check_start(path: Path, start: bytes, length: int, num_bytes: int) -> None:
    """Raise unless the file starts as safetensors do; ``start`` is its first nine bytes."""
    if num_bytes == 0:
        raise CheckpointError("expected a safetensors file, got an empty file: download or copy it again")
    # A length and a brace could by chance start like a pickle, so what fits the format is never taken for one.
    fits = start[LENGTH_BYTES:] == b"{" and length <= min(num_bytes - LENGTH_BYTES, MAX_HEADER_BYTES)
    zipped = start.startswith(b"PK\x03\x04")
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if path.suffix.lower() in PICKLE_SUFFIXES or (not fits and (zipped or pickled)):
        raise CheckpointError(
            f"expected a safetensors file, got a pickle, which could run code when it is loaded. {CONVERT_RECIPE}"
        )
    if not fits:
        raise CheckpointError(
            f"expected a safetensors file, got one that starts with {start!r}: read as a header length that is"
            f" {length:,} bytes, in a file of {num_bytes:,} bytes (at most {MAX_HEADER_BYTES:,} are allowed)."
            " It is damaged, cut short, or another format: download or convert it again"
        )


def _parse(raw: bytes) -> dict[str, object]:
    try:
        parsed: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the header is not valid JSON ({error}): the file is damaged, download it again"
        ) from error
    return _object(parsed, "the header")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name stands twice")
    return unique


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise CheckpointError(f"expected {what} to be a JSON object, got {type(value).__name__}: the file is damaged")
    return cast("dict[str, object]", value)


def _metadata(value: object) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, text in _object(value, "the metadata").items():
        if not isinstance(text, str):
            raise CheckpointError(f"expected text in metadata {name!r}, got {type(text).__name__}: the file is damaged")
        texts[name] = text
    return texts


def _tensors(entries: Mapping[str, object], num_data_bytes: int) -> dict[str, TensorInfo]:
    """Return every tensor, after checking that together they fill the data section exactly."""
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"expected at most {MAX_TENSORS:,} tensors, got {len(entries):,}")
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, value in entries.items():
        if len(name) > MAX_NAME_LENGTH:
            raise CheckpointError(f"expected tensor names of at most {MAX_NAME_LENGTH} characters, got {len(name):,}")
        tensors[name], begin, end = _tensor(name, _object(value, f"tensor {name!r}"))
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise CheckpointError(
                f"tensor {name!r} starts at byte {begin:,}, expected {position:,}: the file is damaged"
            )
        position = end
    if position > num_data_bytes:
        raise CheckpointError(
            f"the file is cut short: its header announces {position:,} bytes of tensors, {num_data_bytes:,} are there:"
            " download it again"
        )
    if position < num_data_bytes:
        raise CheckpointError(
            f"{num_data_bytes - position:,} bytes follow the last tensor, expected none: the file is damaged"
        )
    return tensors


def _tensor(name: str, entry: Mapping[str, object]) -> tuple[TensorInfo, int, int]:
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"tensor {name!r} has the dtype {dtype!r}, expected one of {', '.join(DTYPE_BYTES)}")
    shape = _integers(entry.get("shape"))
    span = _integers(entry.get("data_offsets"))
    if shape is None or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"tensor {name!r} has no valid shape: the file is damaged")
    if span is None or len(span) != 2:
        raise CheckpointError(f"tensor {name!r} has no valid data_offsets: the file is damaged")
    info = TensorInfo(dtype, shape)
    expected = info.num_elements * DTYPE_BYTES[dtype]
    if span[1] - span[0] != expected:
        raise CheckpointError(
            f"tensor {name!r} spans {span[1] - span[0]:,} bytes, expected {expected:,} for {dtype} {list(shape)}:"
            " the file is damaged"
        )
    return info, span[0], span[1]


def _integers(value: object) -> tuple[int, ...] | None:
    """Return a list of sizes as a tuple, or None where it is anything else; bool is no size."""
    if not isinstance(value, list):
        return None
    numbers: list[int] = []
    for item in cast("list[object]", value):
        if type(item) is not int or not 0 <= item < 2**63:
            return None
        numbers.append(item)
    return tuple(numbers)
