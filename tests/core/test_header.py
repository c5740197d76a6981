"""Headers of strangers' files: every lie is named before a tensor is read."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gendr_core.errors import CheckpointError
from gendr_core.header import MAX_HEADER_BYTES, TensorInfo, read_header


def raw_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write a file with any header, whether it fits the data or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    """Return one tensor's entry, by default 2 floats at the start."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(5, dtype=torch.bfloat16),
        "n": torch.zeros((), dtype=torch.int64),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"hello": "world"})
    header = read_header(path)
    assert header.metadata == {"hello": "world"}
    assert header.tensors == {"a": TensorInfo("F32", (2, 3)), "b": TensorInfo("BF16", (5,)), "n": TensorInfo("I64", ())}
    assert header.shapes["a"] == (2, 3)
    assert header.num_bytes == path.stat().st_size
    assert header.tensors["n"].num_elements == 1


WRONG_HEADERS = {
    "hole": ({"a": entry(offsets=(4, 12))}, b"\0" * 12, "tensor 'a' starts at byte 4, expected 0"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12, "tensor 'b' starts at byte 4, expected 8"),
    "cut short": ({"a": entry()}, b"\0" * 5, "cut short: its header announces 8 bytes of tensors, 5 are there"),
    "left over": ({"a": entry()}, b"\0" * 9, "1 bytes follow the last tensor"),
    "span": ({"a": entry(shape=(3,))}, b"\0" * 8, r"tensor 'a' spans 8 bytes, expected 12 for F32 \[3\]"),
    "backwards": ({"a": entry(offsets=(8, 0))}, b"\0" * 8, "tensor 'a' spans -8 bytes"),
    "huge shape": ({"a": entry(shape=(2**62, 2**62))}, b"\0" * 8, "tensor 'a' spans 8 bytes, expected"),
    "negative": ({"a": entry(shape=(-2,))}, b"\0" * 8, "tensor 'a' has no valid shape"),
    "bool shape": ({"a": entry(shape=(True, 2))}, b"\0" * 8, "tensor 'a' has no valid shape"),
    "float shape": ({"a": entry(shape=(2.0,))}, b"\0" * 8, "tensor 'a' has no valid shape"),
    "text shape": ({"a": entry(shape="2")}, b"\0" * 8, "tensor 'a' has no valid shape"),
    "many axes": ({"a": entry(shape=(1,) * 40)}, b"\0" * 8, "tensor 'a' has no valid shape"),
    "offsets": ({"a": entry(offsets=(0, 4, 8))}, b"\0" * 8, "tensor 'a' has no valid data_offsets"),
    "dtype": ({"a": entry(dtype="F33")}, b"\0" * 8, "tensor 'a' has the dtype 'F33', expected one of"),
    "dtype type": ({"a": entry(dtype=["F32"])}, b"\0" * 8, "tensor 'a' has the dtype"),
    "entry": ({"a": 5}, b"", "expected tensor 'a' to be a JSON object, got int"),
    "metadata": ({"__metadata__": ["x"]}, b"", "expected the metadata to be a JSON object, got list"),
    "metadata value": ({"__metadata__": {"x": 1}}, b"", "expected text in metadata 'x', got int"),
    "name": ({"a" * 600: entry()}, b"\0" * 8, "names of at most 512 characters, got 600"),
    "json": (b"{not json}", b"", "not valid JSON"),
    "utf-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "twice": (b'{"a": {}, "a": {}}', b"", "a name stands twice"),
    "deep": (b'{"a":' + b"[" * 200_000, b"", "not valid JSON"),
    "long number": (b'{"a":' + b"9" * 5000 + b"}", b"", "not valid JSON|JSON object"),
    "list": (b"[1, 2]", b"", "expected a safetensors file, got one that starts with"),
}


@pytest.mark.parametrize(("header", "data", "message"), WRONG_HEADERS.values(), ids=WRONG_HEADERS.keys())
def test_wrong_header_is_named(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_header(raw_file(tmp_path / "x.safetensors", header, data))


def test_header_longer_than_the_file(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.safetensors", {"a": entry()}, length=5000)
    with pytest.raises(CheckpointError, match=r"a header length that is 5,000 bytes, in a file of 6\d bytes"):
        read_header(path)


def test_header_above_the_cap(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.safetensors", {"a": entry()}, length=MAX_HEADER_BYTES + 1)
    with path.open("r+b") as file:
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse: takes no room on disk
    with pytest.raises(CheckpointError, match=r"at most 100,000,000 are allowed"):
        read_header(path)


def test_no_file_folder_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no file of this name"):
        read_header(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="got a folder"):
        read_header(tmp_path)
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(CheckpointError, match="got an empty file"):
        read_header(tmp_path / "empty.safetensors")


@pytest.mark.parametrize("start", [b"<!DOCTYPE html><html>", b"version https://git-lfs", b"GGUF\3\0\0\0\0\0", b"x"])
def test_other_formats_show_their_start(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(start)
    with pytest.raises(CheckpointError, match="expected a safetensors file, got one that starts with b") as caught:
        read_header(path)
    assert repr(start[:9]) in str(caught.value)


def test_pickles_are_refused_with_a_recipe(tmp_path: Path) -> None:
    zipped, legacy = tmp_path / "zipped.safetensors", tmp_path / "legacy.safetensors"
    torch.save({"a": torch.zeros(2)}, zipped)
    torch.save({"a": torch.zeros(2)}, legacy, _use_new_zipfile_serialization=False)
    named = tmp_path / "model.CKPT"
    named.write_bytes(b"anything")
    for path in (zipped, legacy, named):
        with pytest.raises(CheckpointError, match="got a pickle, which could run code") as caught:
            read_header(path)
        assert "weights_only=True" in str(caught.value)
        assert "save_file" in str(caught.value)


def test_a_header_length_that_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    # 0x0280 = 640 bytes of header start with the two bytes of pickle protocol 2.
    text = json.dumps({"a": entry()}).encode().ljust(640)
    path = raw_file(tmp_path / "x.safetensors", text, b"\0" * 8)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_header(path).shapes == {"a": (2,)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
@example(data=(20).to_bytes(8, "little") + b'{"a":' + b"\0" * 30)
def test_garbage_never_raises_anything_else(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read_header(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 200))
def test_every_truncation_is_an_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(8), "b": torch.zeros(3, 4)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(CheckpointError):
        read_header(path)
