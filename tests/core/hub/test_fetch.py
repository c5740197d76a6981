import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from hub_server import REPO, REVISION, Fault, HubServer

import gendr_core
from gendr_core.errors import HubError
from gendr_core.hub import (
    Hub,
    Offer,
    RemoteFile,
    Source,
    check_space,
    choose_offer,
    fetch_file,
    find_present,
    plain_folder,
)
from gendr_core.hub.fetch import SPARE_BYTES

GONE = Source(repo="someone/gone", revision=REVISION)
Usage = namedtuple("Usage", "total used free")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def offer(hub: Hub, source: Source, file: RemoteFile) -> Offer:
    """The right one."""
    return hub.offer(source, file)


def test_a_file_is_fetched_checked_and_named(
    hub: Hub, offer: Offer, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "new" / "folder" / "mine.safetensors"
    fetched = fetch_file(hub, offer, file, target)
    assert target.read_bytes() == content
    assert (fetched.path, fetched.state, fetched.checked) == (target, "downloaded", "list")
    assert fetched.digest.sha256 == hashlib.sha256(content).hexdigest()
    if os.name == "posix":
        assert names(target.parent) == ["mine.safetensors"]


def test_a_good_file_is_not_fetched_again(
    server: HubServer, hub: Hub, offer: Offer, file: RemoteFile, tmp_path: Path
) -> None:
    first = fetch_file(hub, offer, file, tmp_path / "a")
    again = fetch_file(hub, offer, file, tmp_path / "a")
    assert (again.state, again.digest) == ("present", first.digest)
    assert len(server.gets()) == 1


def test_without_a_checksum_in_the_list_the_hubs_counts(
    hub: Hub, source: Source, file: RemoteFile, tmp_path: Path
) -> None:
    bare = replace(file, num_bytes=None, sha256=None)
    assert fetch_file(hub, hub.offer(source, bare), bare, tmp_path / "a").checked == "hub"


def test_without_any_checksum_that_is_said(hub: Hub, offer: Offer, file: RemoteFile, tmp_path: Path) -> None:
    bare = replace(file, num_bytes=None, sha256=None)
    assert fetch_file(hub, replace(offer, sha256=None), bare, tmp_path / "a").checked == "not"


def test_wrong_content_is_deleted_and_told(
    server: HubServer, hub: Hub, offer: Offer, file: RemoteFile, tmp_path: Path
) -> None:
    server.faults = [Fault("GET", "other")]
    with pytest.raises(HubError, match=rf"expected 300,000 bytes with sha256 {file.sha256}, got .*: deleted"):
        fetch_file(hub, offer, file, tmp_path / "a")
    assert "a" not in names(tmp_path)
    assert ".a.part" not in names(tmp_path)


def test_wrong_content_is_noticed_by_the_hubs_checksum_alone(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, tmp_path: Path
) -> None:
    bare = replace(file, num_bytes=None, sha256=None)
    offer = hub.offer(source, bare)
    server.faults = [Fault("GET", "other")]
    with pytest.raises(HubError, match="deleted"):
        fetch_file(hub, offer, bare, tmp_path / "a")


def test_a_half_download_of_an_earlier_run_is_gone_on_with(
    server: HubServer, hub: Hub, offer: Offer, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    server.faults = [Fault("GET", "cut", 100_000), *[Fault("GET", "status", 404)] * 2]
    with pytest.raises(HubError, match="404"):
        fetch_file(hub, offer, file, tmp_path / "a")
    half = (tmp_path / ".a.part").stat().st_size
    assert 0 < half <= 100_000
    assert not (tmp_path / "a").exists()
    server.faults.clear()
    fetch_file(hub, offer, file, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    assert server.gets()[-1] == f"bytes={half}-"


def test_an_interrupted_download_is_gone_on_with(
    server: HubServer, hub: Hub, offer: Offer, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    def interrupted(_: str, target: BinaryIO, **__: object) -> None:
        target.write(content[:70_000])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch_file(hub, offer, file, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    fetch_file(hub, offer, file, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    assert server.gets() == ["bytes=70000-"]


def test_a_damaged_half_download_is_fetched_anew(
    server: HubServer, hub: Hub, offer: Offer, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / ".a.part").write_bytes(b"x" * 1000)
    assert fetch_file(hub, offer, file, tmp_path / "a").state == "downloaded"
    assert (tmp_path / "a").read_bytes() == content
    assert server.gets() == ["bytes=1000-", None]


def test_another_file_of_the_same_name_is_not_replaced_unasked(
    server: HubServer, hub: Hub, offer: Offer, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"mine" * 100_000)
    with pytest.raises(HubError, match=r"found another file: 400,000 bytes with sha256 .*--overwrite"):
        fetch_file(hub, offer, file, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"mine" * 100_000
    assert server.gets() == []
    fetch_file(hub, offer, file, tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").read_bytes() == content


def test_what_another_program_fetched_half_of_is_gone_on_with(
    server: HubServer, hub: Hub, offer: Offer, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(content[:40_000])
    fetch_file(hub, offer, file, tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").read_bytes() == content
    assert server.gets() == ["bytes=40000-"]


def test_a_file_stays_as_it_was_while_its_replacement_fails(
    server: HubServer, hub: Hub, offer: Offer, file: RemoteFile, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"mine" * 100_000)
    server.faults = [Fault("GET", "other")]
    with pytest.raises(HubError, match="deleted"):
        fetch_file(hub, offer, file, tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"mine" * 100_000


def test_a_place_that_cannot_be_written_is_explained(hub: Hub, offer: Offer, file: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match=r"file.a cannot be written .*choose a folder that you may write"):
        fetch_file(hub, offer, file, tmp_path / "file" / "a")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such folders")
def test_a_read_only_folder_is_explained(hub: Hub, offer: Offer, file: RemoteFile, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(HubError, match=r"locked.a cannot be written .Permission denied.: choose a folder"):
        fetch_file(hub, offer, file, folder / "a")


def test_a_full_disk_is_told_before_anything_is_fetched(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for one file of 300,000 bytes and what is to stay free, not for two.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, SPARE_BYTES + 500_000))
    check_space([(offer, tmp_path / "a")])
    with pytest.raises(HubError, match=rf"expected 68 MB free in {re.escape(str(tmp_path))}, found 68 MB: make room"):
        check_space([(offer, tmp_path / "a"), (offer, tmp_path / "new" / "b")])
    # What is here of a file needs no more room.
    (tmp_path / ".a.part").write_bytes(bytes(200_000))
    check_space([(offer, tmp_path / "a"), (offer, tmp_path / "new" / "b")])


def test_the_next_source_is_asked_where_the_first_is_gone(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile
) -> None:
    server.refused["someone/gone"] = 401
    assert choose_offer(hub, [GONE, source], file).source == source


def test_a_source_with_another_file_is_passed_over(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, content: bytes
) -> None:
    server.files["someone/gone/weights.safetensors"] = content[::-1]
    server.files["someone/short/weights.safetensors"] = content[:-1]
    short = Source(repo="someone/short", revision=REVISION)
    assert choose_offer(hub, [GONE, short, source], file).source == source
    assert server.gets() == []
    with pytest.raises(HubError, match=r"gone: weights.* offers [0-9a-f]{64}; someone/short: .* offers 299999"):
        choose_offer(hub, [GONE, short], file)


def test_present_files_are_found_by_name_or_by_checksum(file: RemoteFile, content: bytes, tmp_path: Path) -> None:
    folders = plain_folder(tmp_path)
    bare = replace(file, num_bytes=None, sha256=None)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "renamed.safetensors").write_bytes(content)
    (tmp_path / "same-size.safetensors").write_bytes(content[::-1])
    found = find_present(file, folders)
    assert found is not None
    assert (found.path.name, found.checked) == ("renamed.safetensors", "list")
    assert find_present(bare, folders) is None
    (tmp_path / "sub" / "weights.safetensors").write_bytes(b"anything")
    unchecked = find_present(bare, folders)
    assert unchecked is not None
    assert (unchecked.path.name, unchecked.checked) == ("weights.safetensors", "not")


def test_a_half_file_under_the_right_name_is_not_taken_for_it(file: RemoteFile, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file.name).write_bytes(content[:1000])
    assert find_present(file, plain_folder(tmp_path)) is None


# The package itself would import torch, which takes seconds; what is tested here does not need it.
PROGRAM = """
import sys, types
from pathlib import Path

package = types.ModuleType("gendr_core")
package.__path__ = [sys.argv.pop(1)]
sys.modules["gendr_core"] = package
from gendr_core.hub import Hub, RemoteFile, Source, choose_offer, fetch_file

endpoint, repo, revision, sha256, target = sys.argv[1:]
file = RemoteFile(path="weights.safetensors", folder="vae", name="a", sha256=sha256)
hub = Hub(endpoint)
offer = choose_offer(hub, [Source(repo=repo, revision=revision)], file)
print(fetch_file(hub, offer, file, Path(target)).state)
"""


def test_two_processes_fetch_a_file_once(
    server: HubServer, file: RemoteFile, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file.sha256 is not None
    server.faults = [Fault("GET", "hold")]
    package = str(Path(gendr_core.__file__).parent)
    target = str(tmp_path / "a")
    command = [sys.executable, "-c", PROGRAM, package, server.endpoint, REPO, REVISION, file.sha256, target]
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "60")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        while not server.gets():
            assert first.poll() is None
            time.sleep(0.01)
        # The first has the lock and waits for the hub, which waits for the second to wait for the first.
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert any("another process fetches a: waiting for it" in line for line in second.stderr)
            server.release.set()
            states = (first.communicate()[0].strip(), second.communicate()[0].strip())
    assert states == ("downloaded", "present")
    assert (tmp_path / "a").read_bytes() == content
    assert len(server.gets()) == 1
