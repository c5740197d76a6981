import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import Run
from hub_server import REPO, REVISION, Fault, HubServer, running_hub
from huggingface_hub import close_session

CONTENT = b"weights " * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SMALL = b"{}\n"

Listed = Callable[..., None]
"""Replaces the list of models by one entry ``mine`` with these values."""


class Terminal(io.StringIO):
    """Text that somebody types."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that holds the model, and is the one that the environment names."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    close_session()
    with running_hub() as hub:
        hub.files[f"{REPO}/big.safetensors"] = CONTENT
        hub.files[f"{REPO}/config.json"] = SMALL
        hub.small.add(f"{REPO}/config.json")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
    close_session()


@pytest.fixture(autouse=True)
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listed:
    """A list with one model of two files."""

    def change(**values: Any) -> None:
        big = {"path": "big.safetensors", "folder": "vae", "name": "mine/big.safetensors"}
        entry = {
            "name": "mine",
            "title": "A model of mine",
            "kind": "vae16",
            "needs": [],
            "license": {"name": "CC0", "url": "https://example.test/terms", "non_commercial": False},
            "url": "https://example.test/page",
            "sources": [{"repo": REPO, "revision": REVISION}],
            "files": [
                {**big, "bytes": len(CONTENT), "sha256": SHA256},
                {"path": "config.json", "folder": "vae", "name": "mine/config.json"},
            ],
            "note": "Made for a test.",
            **values,
        }
        (tmp_path / "models.json").write_text(json.dumps({"format": 1, "models": [entry]}))

    monkeypatch.setattr("gendr_core.hub.catalog.MODELS_FILE", tmp_path / "models.json")
    change()
    return change


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a user who types this before the terminal."""
    return lambda text: monkeypatch.setattr("sys.stdin", Terminal(text))


def test_download(run: Run, tmp_path: Path) -> None:
    code, out, err = run("download", "mine", "--to", tmp_path / "to", "--yes")
    assert code == 0
    assert out.splitlines() == [str(tmp_path / "to" / "mine" / name) for name in ("big.safetensors", "config.json")]
    assert (tmp_path / "to" / "mine" / "big.safetensors").read_bytes() == CONTENT
    assert (tmp_path / "to" / "mine" / "config.json").read_bytes() == SMALL
    assert "Licence: CC0 (https://example.test/terms)" in err
    assert "Made for a test." in err
    assert f"downloaded, checksum as listed, sha256 {SHA256}" in err
    assert "checksum as the hub says; the list has none" in err


def test_a_second_time_nothing_is_fetched_or_asked(run: Run, server: HubServer, tmp_path: Path) -> None:
    run("download", "mine", "--to", tmp_path / "to", "--yes")
    before = server.gets()
    code, out, err = run("download", "mine", "--to", tmp_path / "to", "--json")
    assert code == 0
    assert [file["state"] for file in json.loads(out)["files"]] == ["present", "present"]
    assert "Licence" not in err
    assert server.gets() == before


def test_files_with_listed_checksums_need_no_hub(run: Run, server: HubServer, listed: Listed, tmp_path: Path) -> None:
    listed(files=[{"path": "big.safetensors", "folder": "vae", "name": "big.safetensors", "sha256": SHA256}])
    (tmp_path / "big.safetensors").write_bytes(CONTENT)
    code, _, err = run("download", "mine", "--to", tmp_path)
    assert code == 0
    assert "present, checksum as listed" in err
    assert server.seen == []


def test_the_licence_comes_first_and_no_means_no(
    run: Run, server: HubServer, listed: Listed, answers: Callable[[str], None], tmp_path: Path
) -> None:
    listed(license={"name": "Mean", "url": "https://example.test/terms", "non_commercial": True})
    answers("\n")
    code, out, err = run("download", "mine", "--to", tmp_path / "to")
    assert (code, out) == (1, "")
    assert "Licence: Mean, NOT for commercial use (https://example.test/terms)" in err
    assert "Fetch 40.00 kB under this licence? [y/N] " in err
    assert "nothing was fetched" in err
    assert not (tmp_path / "to").exists()
    assert server.gets() == []
    answers("Yes\n")
    assert run("download", "mine", "--to", tmp_path / "to")[0] == 0


def test_a_script_has_to_say_yes(run: Run, server: HubServer, tmp_path: Path) -> None:
    code, _, err = run("download", "mine", "--to", tmp_path / "to")
    assert code == 1
    assert "expected --yes where nobody can be asked" in err
    assert server.gets() == []


def test_a_full_disk_is_told_before_the_question(
    run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    code, _, err = run("download", "mine", "--to", tmp_path / "to")
    assert code == 1
    assert f"expected 67 MB free in {tmp_path}, found 1 MB: make room" in err
    assert "Licence" not in err
    assert server.gets() == []


@pytest.mark.parametrize("how", ["--local-only", "--offline", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked_of_the_network(
    how: str, run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("download", "mine", "--to", tmp_path / "to", "--yes", *([how] if how.startswith("--") else []))
    if not how.startswith("--"):
        monkeypatch.setenv(how, "1")
    code, _, err = run(*arguments)
    assert code == 1
    assert "found no such file, and nothing is fetched" in err
    (tmp_path / "to" / "mine").mkdir(parents=True)
    (tmp_path / "to" / "mine" / "big.safetensors").write_bytes(CONTENT)
    (tmp_path / "to" / "mine" / "config.json").write_bytes(SMALL)
    code, _, err = run(*arguments)
    assert code == 0
    assert "present, could not be verified, as no checksum is known" in err
    assert server.seen == []


def test_one_copy_is_shared_with_comfyui(run: Run, server: HubServer, tmp_path: Path) -> None:
    comfyui = tmp_path / "ComfyUI"
    (comfyui / "models").mkdir(parents=True)
    (comfyui / "extra_model_paths.yaml").write_text(
        f"a:\n  base_path: {tmp_path}/disk\n  vae: vaes\n  is_default: true\n"
    )
    there = tmp_path / "disk" / "vaes" / "some" / "other-name.safetensors"
    there.parent.mkdir(parents=True)
    there.write_bytes(CONTENT)
    code, out, _ = run("download", "mine", "--comfyui", comfyui, "--yes")
    assert code == 0
    assert out.splitlines() == [str(there), str(tmp_path / "disk" / "vaes" / "mine" / "config.json")]
    assert len(server.gets()) == 0


def test_a_model_on_no_hub_is_explained_and_checked_when_it_is_there(
    run: Run, server: HubServer, listed: Listed, tmp_path: Path
) -> None:
    file = {
        "path": "x/mine.pkl",
        "folder": "gendr",
        "name": "mine.pkl",
        "git_blob": "ce013625030ba8dba906f756967f9e9ca394464a",
    }
    listed(sources=[], files=[file], kind="relative", needs=[])
    code, _, err = run("download", "mine", "--to", tmp_path)
    assert code == 1
    assert f"Open https://example.test/page in a browser, save the file as {tmp_path / 'mine.pkl'}" in err
    assert "Licence: CC0" in err
    (tmp_path / "mine.pkl").write_bytes(b"hello\n")
    code, out, err = run("download", "mine", "--to", tmp_path)
    assert (code, out) == (0, f"{tmp_path / 'mine.pkl'}\n")
    assert "present, checksum as listed" in err
    assert 'then "gendr convert"' in err
    (tmp_path / "mine.pkl").write_bytes(b"other\n")
    assert run("download", "mine", "--to", tmp_path)[0] == 1
    assert server.seen == []


def test_another_revision_is_told_apart(run: Run, server: HubServer, tmp_path: Path) -> None:
    code, out, err = run("download", "mine", "--to", tmp_path / "to", "--yes", "--revision", "main", "--json")
    assert code == 0
    assert {file["checked"] for file in json.loads(out)["files"]} == {"hub"}
    assert "main is a branch: what it holds may change" in err
    assert all("/resolve/main/" in seen.path for seen in server.seen if not seen.path.startswith("/cdn/"))


def test_no_message_repeats_a_token(
    run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.refused[REPO] = 401
    code, out, err = run("download", "mine", "--to", tmp_path / "to", "--yes", "--debug")
    assert code == 1
    assert "refuses access (401)" in err
    assert "hf_secret" not in out + err
    assert {seen.authorization for seen in server.seen} == {None}


def test_wrong_content_ends_with_1(run: Run, server: HubServer, tmp_path: Path) -> None:
    server.faults = [Fault("GET", "other")]
    code, out, err = run("download", "mine", "--to", tmp_path / "to", "--yes")
    assert (code, out) == (1, "")
    assert ": deleted. Run the command again" in err
    assert not (tmp_path / "to" / "mine" / "big.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "expected one of mine, got 'nothing'"),
        (["mine", "--endpoint", "hub"], "expected an endpoint such as"),
        (["mine", "--comfyui", "nowhere"], "expected the folder of a ComfyUI"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str, run: Run) -> None:
    code, _, err = run("download", *arguments)
    assert code == 1
    assert message in err


def test_without_a_folder_the_current_one_takes_the_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gendr_core.cli.places.comfyui_around", lambda _: None)
    assert run("download", "mine", "--yes")[0] == 0
    assert (tmp_path / "mine" / "big.safetensors").is_file()


def test_inside_a_comfyui_its_folders_take_the_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    monkeypatch.setattr("gendr_core.cli.places.comfyui_around", lambda _: tmp_path / "ComfyUI")
    assert run("download", "mine", "--yes")[0] == 0
    assert (tmp_path / "ComfyUI" / "models" / "vae" / "mine" / "big.safetensors").is_file()
