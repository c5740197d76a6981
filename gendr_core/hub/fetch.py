"""One file brought from a hub to its place: found if it is there, else fetched, checked, and only then given its name.

Role: what ``gendr download`` does for each file, between ``folders`` (where) and ``transfer`` (bytes). Until a file is
whole and checked it is called ``.NAME.part``, beside its place; a later call goes on from it. Two processes that want
the same file take turns, and the second finds it there.
"""

import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Literal

from ..errors import HubError
from .catalog import RemoteFile, Source
from .folders import ModelFolders
from .integrity import Digest, digest_of, expected, fits
from .transfer import AbsentError, Hub, Offer

SPARE_BYTES = 64 * 2**20
"""Left free on the disk after a download."""

_log = getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A file that is there, whole."""

    path: Path
    digest: Digest
    state: Literal["present", "downloaded"]
    checked: Literal["list", "hub", "not"]
    """What its checksum was compared with: the list's, only the hub's own, or nothing."""


def find_present(file: RemoteFile, folders: ModelFolders) -> Fetched | None:
    """Return the file where it is already, under its own name or, if its checksum is known, under any."""
    for path in _candidates(file, folders):
        digest = digest_of(path)
        verdict = fits(file, digest)
        if verdict is not False:
            return Fetched(path=path, digest=digest, state="present", checked="not" if verdict is None else "list")
    return None


def _candidates(file: RemoteFile, folders: ModelFolders) -> Iterable[Path]:
    """Yield what may be the file: its own place first, then what has its size, else its name."""
    target = folders.target(file)
    if target.is_file():
        yield target
    checkable = file.num_bytes is not None and (file.sha256 is not None or file.git_blob is not None)
    for path in folders.files(file.folder):
        if path == target or path.suffix != target.suffix or not path.is_file():
            continue
        if path.stat().st_size == file.num_bytes if checkable else path.name == target.name:
            yield path


def choose_offer(hub: Hub, sources: Sequence[Source], file: RemoteFile) -> Offer:
    """Return the offer of the first source that has the file, and the right one.

    Raises:
        HubError: none has it, or the hub does not answer.
    """
    refusals: list[str] = []
    for source in sources:
        try:
            offer = hub.offer(source, file)
        except AbsentError as error:
            refusals.append(str(error))
            continue
        pairs = ((file.num_bytes, offer.num_bytes), (file.sha256, offer.sha256), (file.git_blob, offer.git_blob))
        other = [theirs for ours, theirs in pairs if None not in (ours, theirs) and ours != theirs]
        if not other:
            return offer
        refusals.append(f"{source.repo}: {file.path}: expected {expected(file)}, it offers {other[0]}")
    raise HubError("; ".join(refusals))


def check_space(jobs: Iterable[tuple[Offer, Path]]) -> None:
    """Check that the disks have room for what is still to come of these offers at these paths.

    Raises:
        HubError: one has not.
    """
    needed: dict[int, tuple[Path, int]] = {}
    for offer, target in jobs:
        folder = next(parent for parent in target.absolute().parents if parent.is_dir())
        part = part_of(target)
        rest = max(0, (offer.num_bytes or 0) - (part.stat().st_size if part.is_file() else 0))
        disk = folder.stat().st_dev
        needed[disk] = (folder, needed.get(disk, (folder, SPARE_BYTES))[1] + rest)
    for folder, num_bytes in needed.values():
        free = shutil.disk_usage(folder).free
        if free < num_bytes:
            raise HubError(
                f"expected {num_bytes / 1e6:,.0f} MB free in {folder}, found {free / 1e6:,.0f} MB: make room, or choose"
                " another folder with --to or --comfyui"
            )


def part_of(target: Path) -> Path:
    """Return what the file is called until it is whole."""
    return target.with_name(f".{target.name}.part")


def fetch_file(hub: Hub, offer: Offer, file: RemoteFile, target: Path, *, overwrite: bool = False) -> Fetched:
    """Return the file at ``target``, fetched if it is not there; it has its name only once it is whole and checked.

    Args:
        hub: where the offer is from.
        offer: what ``choose_offer`` returned.
        file: what is known of it.
        target: its path; folders are made.
        overwrite: whether a file of this name with another content is replaced, and not an error.

    Raises:
        HubError: the transfer failed, what came is not the file, another one is there, or the folder is read-only.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _turn(target):
            present = _at_place(offer, file, target, overwrite=overwrite)
            return present or _download(hub, offer, file, target)
    except OSError as error:
        raise HubError(
            f"{target} cannot be written ({error.strerror or type(error).__name__}): choose a folder that you may write"
            " to, with --to or --comfyui, or change its permissions"
        ) from error


@contextmanager
def _turn(target: Path) -> Generator[None]:
    """Hold off other processes that want the same file."""
    from filelock import FileLock, Timeout

    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("another process fetches %s: waiting for it", target.name)
        lock.acquire()
    try:
        yield
        # With the file in place only: whoever waited for this lock, or makes a new one, finds it and fetches nothing.
        if os.name == "posix":
            path.unlink(missing_ok=True)
    finally:
        lock.release()


def _at_place(offer: Offer, file: RemoteFile, target: Path, *, overwrite: bool) -> Fetched | None:
    """Return the file if it is at its place already, None where it is to be fetched."""
    if not target.exists():
        return None
    digest, known = digest_of(target), _known(offer, file)
    fetched = _judged(offer, file, target, digest, "present")
    if fetched is None and overwrite:
        if known.num_bytes is not None and digest.num_bytes < known.num_bytes and not part_of(target).exists():
            # It may be what another program fetched half of; if it is not, its checksum tells in the end.
            target.replace(part_of(target))
    elif fetched is None:
        raise HubError(
            f"expected {expected(known)} at {target}, found another file: {digest.num_bytes:,} bytes with"
            f" sha256 {digest.sha256}. Move it away, or add --overwrite"
        )
    return fetched


def _download(hub: Hub, offer: Offer, file: RemoteFile, target: Path) -> Fetched:
    """Return the file after its transfer; a half one that an earlier try left damaged is fetched anew, once."""
    part = part_of(target)
    resumed = part.is_file() and part.stat().st_size > 0
    hub.transfer(offer, file, part)
    digest = digest_of(part)
    fetched = _judged(offer, file, target, digest, "downloaded")
    if fetched is not None:
        with part.open("rb+") as whole:
            os.fsync(whole.fileno())
        part.replace(target)
        return fetched
    part.unlink()
    problem = (
        f"{offer.source.repo}: {file.path}: expected {expected(_known(offer, file))}, got {digest.num_bytes:,} bytes"
        f" with sha256 {digest.sha256}: deleted"
    )
    if not resumed:
        raise HubError(f"{problem}. Run the command again, or choose another --endpoint")
    _log.warning("%s; the half download it went on from was damaged, starting anew", problem)
    return _download(hub, offer, file, target)


def _known(offer: Offer, file: RemoteFile) -> RemoteFile:
    """Return the file with what only the hub says of it."""
    if file.sha256 is not None or file.git_blob is not None:
        return replace(file, num_bytes=file.num_bytes or offer.num_bytes)
    return replace(file, num_bytes=file.num_bytes or offer.num_bytes, sha256=offer.sha256, git_blob=offer.git_blob)


def _judged(
    offer: Offer, file: RemoteFile, path: Path, digest: Digest, state: Literal["present", "downloaded"]
) -> Fetched | None:
    """Return what is at hand if it is the file, and who says so; None where it is another."""
    by_list, by_hub = fits(file, digest), fits(_known(offer, file), digest)
    if by_hub is False:
        return None
    checked = "list" if by_list else "hub" if by_hub else "not"
    return Fetched(path=path, digest=digest, state=state, checked=checked)
