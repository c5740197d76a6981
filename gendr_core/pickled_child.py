"""Reads one pickled weight file. Runs only in the child process that ``pickled`` starts: the one place of torch.load.

Role: what the relatives publish is pickled, and a pickle is a program. It is looked through first without being run:
what it names must be on the list below. Then torch reads it with ``weights_only``, which has such a list too. Imports
nothing of GenDR, so that the child needs to know only this file. Errors leave as tracebacks in the log; ``pickled``
reads their last line.
"""

import json
import pickletools
import sys
import zipfile
from pathlib import Path
from typing import cast

import psutil
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from torch import Tensor

RUN_NAME = "__gendr_unpickle__"
VALUES_KEY = "values"
"""Where the numbers and texts of the file stand in the metadata of the result, as JSON."""
SEPARATOR = "/"
"""Between the names of nested dicts."""

STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {kind}Storage" for kind in STORAGES),
    }
)
"""All that a dict of tensors, numbers and texts needs."""
OTHER_NAMING = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})
"""Ways to name code that torch.save does not use."""

MAX_PROGRAM_BYTES = 64 * 2**20
"""Of the pickle without its tensors; the largest published one has 0.3 MB."""
MAX_DEPTH = 4
MAX_TENSORS = 20_000


def check_archive(source: Path) -> None:
    """Look through the archive and its program without running anything.

    Raises:
        ValueError: it is not what torch.save writes, or names something that is not on the list.
        zipfile.BadZipFile: it is no archive, or cut short.
    """
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its archive is compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > source.stat().st_size:
            raise ValueError("its archive claims to be larger than the file")
        programs = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM_BYTES:
            raise ValueError(f"expected one data.pkl of at most {MAX_PROGRAM_BYTES:,} bytes in it")
        program = archive.read(programs[0])
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in OTHER_NAMING or (opcode.name == "GLOBAL" and argument not in ALLOWED):
            what = str(argument or opcode.name).replace(" ", ".")
            raise ValueError(f"it names {what:.80}, which is no part of a dict of tensors and could run code")


def flatten(value: object, name: str, tensors: dict[str, Tensor], values: dict[str, object]) -> None:
    """Sort what was read into ``tensors`` and ``values`` by their names, nested ones joined by ``SEPARATOR``.

    Raises:
        ValueError: it is nested too deeply, or a tensor is not a plain one.
    """
    if isinstance(value, dict):
        if name.count(SEPARATOR) >= MAX_DEPTH:
            raise ValueError(f"its dicts are nested more than {MAX_DEPTH} deep")
        for key, item in cast("dict[object, object]", value).items():
            flatten(item, f"{name}{SEPARATOR}{key}" if name else str(key), tensors, values)
    elif isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or len(tensors) >= MAX_TENSORS:
            raise ValueError(f"{name:.80} is not a plain tensor, or one of more than {MAX_TENSORS}")
        tensors[name] = value.detach()
    elif isinstance(value, (bool, int, float, str)):
        values[name] = value
    elif isinstance(value, (list, tuple)):
        # Lists of modules' names; what else a training run leaves in lists is of no use here.
        values[name] = [item for item in cast("list[object]", value) if isinstance(item, (int, float, str))]


def limit_memory(num_bytes: int) -> None:
    """Let this process take ``num_bytes`` more than it has, where the system holds it to that: on Linux."""
    if sys.platform == "linux":
        import resource

        limit = psutil.Process().memory_info().vms + num_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def unpickle(source: Path, target: Path, log: Path, memory_bytes: int) -> None:
    """Write the tensors of a pickled file as safetensors, its numbers and texts as their metadata.

    Args:
        source: what torch.save wrote.
        target: the file to write.
        log: where errors go.
        memory_bytes: how much more than now this process may take.
    """
    sys.stderr = log.open("w", encoding="utf-8")
    limit_memory(memory_bytes)
    torch.serialization.clear_safe_globals()
    tensors, values = read(source)
    whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(whole, target, {VALUES_KEY: json.dumps(values)})


def read(source: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the tensors of a file, and its numbers, texts and lists of them, both by name.

    Raises:
        ValueError: the file is not a dict of tensors, numbers and texts.
        zipfile.BadZipFile: it is no archive, or cut short.
    """
    check_archive(source)
    loaded: object = torch.load(source, map_location="cpu", weights_only=True)
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {}
    if not isinstance(loaded, dict):
        raise ValueError(f"expected a dict of tensors in it, got {type(loaded).__name__}")
    flatten(cast("object", loaded), "", tensors, values)
    # A tensor may repeat one number any number of times; written out it would fill memory and disk.
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if num_bytes > 2 * source.stat().st_size:
        raise ValueError(f"its tensors claim {num_bytes:,} bytes, in a file of {source.stat().st_size:,}")
    return tensors, values


if __name__ == RUN_NAME:
    unpickle(*globals()["JOB"])
