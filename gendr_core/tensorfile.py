"""The tensors of a weight file: compared with a network, read lazily, written under a temporary name.

Role: below ``checkpoint``, beside ``layouts``; everything here takes names and shapes that were checked before.
"""

import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import cast
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from torch import Tensor, nn

from .errors import CheckpointError, listed
from .float8 import FLOAT8, from_float8, has_nan
from .header import Header, Shape
from .layouts import PROMPT_NAMES, SCALE_SUFFIX, Located

READABLE_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
SCALED_DTYPE, SCALES_DTYPE = "F8_E4M3", "F32"
"""Of weights that come with scales, and of these."""
SUFFIXES = (".safetensors", ".sft")


def read_tensors(path: Path, sources: Mapping[str, str], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Return tensors on the CPU, mapped from the file, each in its shape of ``shapes``.

    Args:
        path: a file with a checked header.
        sources: name in the file by name to return; dtypes were checked by ``check_dtypes``.
        shapes: shape by name to return; as many elements as in the file.

    Raises:
        CheckpointError: a value is not finite, or the file cannot be read.
    """
    tensors = _read(path, sources)
    shaped = {name: tensor.reshape(shapes[name]) for name, tensor in tensors.items()}
    _check_finite(shaped.items())
    return shaped


def read_weights(path: Path, found: Located) -> dict[str, Tensor]:
    """Return the weights of a network on the CPU: mapped from the file, or in bfloat16 where it has them in 8 bits.

    Args:
        path: a file with a checked header.
        found: where they are; dtypes were checked by ``check_weights``.

    Raises:
        CheckpointError: a value is not finite, or the file cannot be read.
    """
    tensors, scales = _read(path, found.sources), _read(path, found.scales)
    _check_finite((name, tensors[name]) for name in scales)
    for name, factors in scales.items():
        tensors[name] = from_float8(tensors[name], factors)
    shaped = {name: tensor.reshape(found.shapes[name]) for name, tensor in tensors.items()}
    _check_finite(shaped.items())
    return shaped


def _read(path: Path, sources: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore[reportUnknownVariableType]
            read = cast("Callable[[str], Tensor]", file.get_tensor)  # pyright: ignore[reportUnknownMemberType]
            return {name: read(source) for name, source in sources.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the tensors cannot be read ({error}): download the file again") from error


def _check_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise where a weight is NaN or infinite: one is enough to turn images black. Costs one pass over memory."""
    filled = ((name, tensor.detach()) for name, tensor in tensors if tensor.numel())
    broken = [name for name, tensor in filled if not _is_finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{listed(broken)} hold NaN or infinite values: the model is broken, get or export it again"
        )


def _is_finite(tensor: Tensor) -> bool:
    return not has_nan(tensor) if tensor.dtype == FLOAT8 else all(map(torch.isfinite, torch.aminmax(tensor)))


def check_dtypes(header: Header, names: Collection[str]) -> None:
    """Check that the tensors of these names in the file are of dtypes that GenDR runs: ``READABLE_DTYPES``.

    Raises:
        CheckpointError: some are not; they are counted by dtype.
    """
    dtypes = Counter(header.tensors[name].dtype for name in names)
    unreadable = ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.items() if dtype not in READABLE_DTYPES)
    if unreadable:
        raise CheckpointError(
            f"expected tensors of {', '.join(READABLE_DTYPES)}, got {unreadable}: convert them to one of these"
        )


def check_weights(header: Header, found: Located) -> None:
    """Check that the weights of a network are of dtypes that GenDR runs, or in 8 bits with fitting scales.

    Raises:
        CheckpointError: some are not.
    """
    check_dtypes(header, [source for name, source in found.sources.items() if name not in found.scales])
    for name, scales in found.scales.items():
        weight, factors = header.tensors[found.sources[name]], header.tensors[scales]
        if (weight.dtype, factors.dtype, factors.shape) != (SCALED_DTYPE, SCALES_DTYPE, weight.shape[:1]):
            raise CheckpointError(
                f"expected {name} as {SCALED_DTYPE} with scales as {SCALES_DTYPE} {list(weight.shape[:1])}, got"
                f" {weight.dtype} with {factors.dtype} {list(factors.shape)}: get the file again"
            )


def check_network(network: nn.Module, shapes: Mapping[str, Shape]) -> None:
    """Check that names and shapes are those of ``network``, which may be on the meta device.

    Raises:
        CheckpointError: they are not; missing, unexpected and wrong ones are counted, the first five of each listed.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} is {list(shapes[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    problems = [
        f"{len(names)} {what}: {listed(names)}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of the wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"the file does not fit its network of {len(expected)} tensors; {'; '.join(problems)}."
            " It is incomplete, or of an architecture that GenDR does not run"
        )


def check_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that weights can be written for ``network``.

    Args:
        network: may be on the meta device.
        state: weights by name; those in 8 bits (``float8``) have their scales under the name with ``SCALE_SUFFIX``.

    Raises:
        CheckpointError: names, shapes or dtypes do not fit, or a value is not finite.
    """
    scales = {name: state[name + SCALE_SUFFIX] for name in state if name + SCALE_SUFFIX in state}
    beside = {name + SCALE_SUFFIX for name in scales}
    weights = {name: tensor for name, tensor in state.items() if name not in beside}
    check_network(network, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    for name, tensor in weights.items():
        if name in scales:
            _check_scaled(name, tensor, scales[name])
        else:
            _check_dtype(name, tensor)
    _check_finite((name, weights[name]) for name in scales)
    # Lazily: 8 bits become 16 here.
    _check_finite(
        (name, from_float8(tensor, scales[name]) if name in scales else tensor) for name, tensor in weights.items()
    )


def _check_scaled(name: str, weight: Tensor, scales: Tensor) -> None:
    if (weight.dtype, scales.dtype, scales.shape) != (FLOAT8, torch.float32, weight.shape[:1]):
        raise CheckpointError(
            f"expected {name} as {FLOAT8} with scales of {torch.float32} {list(weight.shape[:1])}, got {weight.dtype}"
            f" with {scales.dtype} {list(scales.shape)}: make both with to_float8"
        )


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in READABLE_DTYPES.values():
        raise CheckpointError(f"expected {name} as float32, float16 or bfloat16, got {tensor.dtype}: convert it first")


def check_prompts(width: int, guidance: float, positive: Tensor, negative: Tensor | None) -> None:
    """Check that prompts fit the network and each other, and that guidance has the negative one it needs.

    Args:
        width: that the network takes.
        guidance: of the spec.
        positive: prompt [tokens, width].
        negative: as ``positive``.

    Raises:
        CheckpointError: wrong shape or dtype, not finite, or no negative prompt beside a guidance other than 1.
    """
    if positive.ndim != 2 or positive.shape[0] < 1 or positive.shape[1] != width:
        raise CheckpointError(f"expected a positive prompt of shape [tokens, {width}], got {list(positive.shape)}")
    if negative is None and guidance != 1.0:
        raise CheckpointError(
            f"guidance {guidance:g} needs a negative prompt (prompt.negative): give SpecOverrides(negative=...),"
            " or guidance 1"
        )
    if negative is not None and negative.shape != positive.shape:
        raise CheckpointError(
            f"expected a negative prompt of the positive one's shape {list(positive.shape)}, got {list(negative.shape)}"
        )
    for name, prompt in zip(PROMPT_NAMES, (positive, negative), strict=True):
        if prompt is not None:
            _check_dtype(name, prompt)
            _check_finite([(name, prompt)])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write to a temporary name in the same folder, then rename, so that no reader ever sees half a file.

    Args:
        path: where to; an existing file is replaced.
        tensors: by name, on any device.
        metadata: texts for the header.

    Raises:
        CheckpointError: the suffix is not that of safetensors, or the system refuses to write.
    """
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"expected a name that ends in {' or '.join(SUFFIXES)}, got {path.suffix or 'no suffix'!r}"
        )
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        temporary.touch()
        # The library may put a file that only its owner can read in its place; keep what the system gives new files.
        mode = stat.S_IMODE(temporary.stat().st_mode)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        temporary.chmod(mode)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "is the disk full?"
        raise CheckpointError(f"the file cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)
