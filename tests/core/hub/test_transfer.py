import hashlib
from pathlib import Path

import pytest
from hub_server import REPO, Fault, HubServer

from gendr_core.errors import HubError, OptionError
from gendr_core.hub import DEFAULT_ENDPOINT, Hub, RemoteFile, Source
from gendr_core.hub.transfer import AbsentError


def test_an_offer_says_size_and_checksum_of_a_large_file(
    hub: Hub, source: Source, file: RemoteFile, content: bytes
) -> None:
    offer = hub.offer(source, file)
    assert (offer.num_bytes, offer.sha256, offer.git_blob) == (len(content), hashlib.sha256(content).hexdigest(), None)


def test_an_offer_says_gits_name_of_a_small_file(server: HubServer, hub: Hub, source: Source) -> None:
    server.files[f"{REPO}/vae/config.json"] = b"hello\n"
    server.small.add(f"{REPO}/vae/config.json")
    offer = hub.offer(source, RemoteFile(path="vae/config.json", folder="vae", name="config.json"))
    # "git hash-object" of a file with this line.
    assert (offer.num_bytes, offer.git_blob, offer.sha256) == (6, "ce013625030ba8dba906f756967f9e9ca394464a", None)


def test_the_address_names_repository_revision_and_path(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile
) -> None:
    hub.offer(source, file)
    assert server.seen[0].path == f"/{REPO}/resolve/{source.revision}/weights.safetensors"


def test_a_half_file_is_gone_on_with(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    part.write_bytes(content[:123_456])
    hub.transfer(hub.offer(source, file), file, part)
    assert part.read_bytes() == content
    assert server.gets() == ["bytes=123456-"]


def test_a_cut_connection_is_gone_on_with(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    server.faults = [Fault("GET", "cut", 100_000)]
    hub.transfer(hub.offer(source, file), file, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content
    assert server.gets() == [None, "bytes=100000-"]


def test_a_whole_file_is_not_fetched_again(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(content)
    hub.transfer(hub.offer(source, file), file, tmp_path / "part")
    assert server.gets() == []


def test_a_part_that_is_too_long_is_fetched_anew(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(content + b"more")
    hub.transfer(hub.offer(source, file), file, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content
    assert server.gets() == [None]


def test_a_hub_that_sends_all_when_asked_for_the_rest_does_no_harm(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(content[:50_000])
    server.faults = [Fault("GET", "whole")]
    hub.transfer(hub.offer(source, file), file, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content


def test_a_slow_hub_is_waited_for(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, content: bytes, tmp_path: Path
) -> None:
    server.faults = [Fault("GET", "drip")]
    hub.transfer(hub.offer(source, file), file, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content
    assert server.gets() == [None]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(
    method: str,
    status: int,
    server: HubServer,
    hub: Hub,
    source: Source,
    file: RemoteFile,
    content: bytes,
    tmp_path: Path,
) -> None:
    server.faults = [Fault(method, "status", status)]
    hub.transfer(hub.offer(source, file), file, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == content


def test_what_stays_is_told(server: HubServer, hub: Hub, source: Source, file: RemoteFile) -> None:
    server.faults = [Fault("HEAD", "status", 503)] * 4
    with pytest.raises(HubError, match=r"answers 503: try again later, or choose another --endpoint"):
        hub.offer(source, file)
    assert len(server.seen) == 4


def test_a_gated_repository_is_explained(server: HubServer, hub: Hub, source: Source, file: RemoteFile) -> None:
    server.refused[REPO] = 401
    with pytest.raises(AbsentError, match=r"refuses access \(401\).*accept its terms.*hf auth login"):
        hub.offer(source, file)
    assert len(server.seen) == 1


def test_a_missing_file_is_named(hub: Hub, source: Source) -> None:
    with pytest.raises(AbsentError, match=r"some-model: gone.safetensors: .* has no such"):
        hub.offer(source, RemoteFile(path="gone.safetensors", folder="vae", name="gone.safetensors"))


def test_no_hub_at_all_is_explained(source: Source, file: RemoteFile) -> None:
    with pytest.raises(HubError, match=r"connection to http://127.0.0.1:9 failed .*check the network"):
        Hub("http://127.0.0.1:9", wait_s=0.0).offer(source, file)


def test_a_mirror_never_sees_a_token_and_no_message_repeats_it(
    server: HubServer,
    hub: Hub,
    source: Source,
    file: RemoteFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.transfer(hub.offer(source, file), file, tmp_path / "part")
    server.refused[REPO] = 403
    with pytest.raises(HubError) as failure:
        hub.offer(source, file)
    assert {seen.authorization for seen in server.seen} == {None}
    assert "hf_secret" not in str(failure.value)


def test_a_hub_is_asked_for_the_file_only_and_told_nothing_of_the_machine(
    server: HubServer, hub: Hub, source: Source, file: RemoteFile, tmp_path: Path
) -> None:
    hub.transfer(hub.offer(source, file), file, tmp_path / "part")
    assert all(seen.path.endswith("/weights.safetensors") for seen in server.seen)
    assert not any("torch" in seen.user_agent or "agent" in seen.user_agent for seen in server.seen)


def test_only_hugging_faces_own_address_gets_the_users_token() -> None:
    assert Hub()._token is Hub(DEFAULT_ENDPOINT + "/")._token is None
    assert Hub("https://huggingface.co.evil.test")._token is False
    assert Hub("http://huggingface.co")._token is False


@pytest.mark.parametrize(
    "endpoint", ["hf-mirror.com", "ftp://hub.test", "https://me:secret@hub.test", "https://", "x y"]
)
def test_an_endpoint_is_an_address_without_secrets(endpoint: str) -> None:
    with pytest.raises(OptionError, match="expected an endpoint such as") as failure:
        Hub(endpoint)
    assert "secret" not in str(failure.value)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(OptionError, match=r'pip install "gendr\[hub\]"'):
        Hub()
