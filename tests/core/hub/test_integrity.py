import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from gendr_core.hub import RemoteFile, digest_of, fits

FILE = RemoteFile(path="a", folder="vae", name="a")
# Of the line "hello", as "sha256sum" and "git hash-object" print them.
SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
GIT_BLOB = "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_digest_is_what_common_tools_print(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    digest = digest_of(tmp_path / "hello")
    assert (digest.num_bytes, digest.sha256, digest.git_blob) == (6, SHA256, GIT_BLOB)


def test_a_large_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gendr_core.hub.integrity.CHUNK_BYTES", 7)
    (tmp_path / "large").write_bytes(b"0123456789" * 5)
    assert digest_of(tmp_path / "large").sha256 == hashlib.sha256(b"0123456789" * 5).hexdigest()


@pytest.mark.parametrize(
    ("known", "verdict"),
    [
        ({}, None),
        ({"num_bytes": 6}, None),
        ({"num_bytes": 7}, False),
        ({"sha256": SHA256}, True),
        ({"sha256": "0" * 64}, False),
        ({"git_blob": GIT_BLOB}, True),
        ({"git_blob": "0" * 40}, False),
        ({"num_bytes": 7, "sha256": SHA256}, False),
        ({"sha256": SHA256, "git_blob": "0" * 40}, True),
    ],
)
def test_a_file_is_known_by_the_best_that_is_known_of_it(
    known: dict[str, object], verdict: bool | None, tmp_path: Path
) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert fits(replace(FILE, **known), digest_of(tmp_path / "hello")) is verdict
