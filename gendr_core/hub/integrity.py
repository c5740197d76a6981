"""Which file is which: size and checksums, compared with what the list or a hub says.

Role: used by ``fetch`` before a file is given its name, and to recognise files that are there already.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .catalog import RemoteFile

CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Digest:
    """What a file's content is known by."""

    num_bytes: int
    sha256: str
    git_blob: str
    """SHA-1 of the content behind git's header, which is how git names it."""


def digest_of(path: Path) -> Digest:
    """Return the digest of a file, which is read from end to end: some seconds for a gigabyte."""
    num_bytes = path.stat().st_size
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            blob.update(chunk)
    return Digest(num_bytes=num_bytes, sha256=sha256.hexdigest(), git_blob=blob.hexdigest())


def fits(file: RemoteFile, digest: Digest) -> bool | None:
    """Return whether a content is that of ``file``; None where no checksum is known and the size does not differ."""
    if file.num_bytes not in (None, digest.num_bytes):
        return False
    if file.sha256 is not None:
        return file.sha256 == digest.sha256
    return None if file.git_blob is None else file.git_blob == digest.git_blob


def expected(file: RemoteFile) -> str:
    """Return in words what is known of a file."""
    size = "" if file.num_bytes is None else f"{file.num_bytes:,} bytes"
    checksum = f"sha256 {file.sha256}" if file.sha256 else f"git blob {file.git_blob}" if file.git_blob else ""
    return " with ".join(part for part in (size, checksum) if part) or "a file without a known checksum"
