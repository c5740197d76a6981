import json
import re
from pathlib import PurePosixPath

import pytest

from gendr_core.errors import OptionError
from gendr_core.hub import Model, find_model, load_catalog
from gendr_core.hub.catalog import MODELS_FILE

CATALOG = load_catalog()
FILE_KEYS = {"path", "folder", "name", "bytes", "sha256", "git_blob"}


@pytest.mark.parametrize("model", CATALOG.values(), ids=CATALOG.keys())
def test_an_entry_says_what_it_is_and_under_which_terms(model: Model) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", model.name)
    assert model.title
    assert model.files
    assert model.license.name
    assert model.license.url.startswith("https://")
    assert model.url.startswith("https://")
    assert set(model.needs) <= CATALOG.keys() - {model.name}


@pytest.mark.parametrize("model", CATALOG.values(), ids=CATALOG.keys())
def test_an_entrys_files_have_sound_names_and_checksums(model: Model) -> None:
    assert len({file.name for file in model.files}) == len(model.files)
    for file in model.files:
        assert not PurePosixPath(file.name).is_absolute()
        assert ".." not in PurePosixPath(file.name).parts
        assert file.num_bytes is None or file.num_bytes > 0
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256 or "0" * 64)
        assert re.fullmatch(r"[0-9a-f]{40}", file.git_blob or "0" * 40)


def test_every_key_of_the_file_is_read() -> None:
    listed = json.loads(MODELS_FILE.read_text(encoding="utf-8"))
    assert listed.keys() == {"format", "models"}
    assert list(CATALOG) == [entry["name"] for entry in listed["models"]]
    for entry in listed["models"]:
        assert set(entry) == {"name", "title", "kind", "needs", "license", "url", "sources", "files", "note"}
        assert set(entry["license"]) == {"name", "url", "non_commercial"}
        for file in entry["files"]:
            assert {"path", "folder", "name"} <= set(file) <= FILE_KEYS


def test_what_is_gone_is_never_asked_for() -> None:
    assert "stabilityai/stable-diffusion" not in MODELS_FILE.read_text(encoding="utf-8")


def test_the_base_has_two_sources_and_all_its_checksums() -> None:
    base = find_model("sd21-base")
    assert len({source.repo for source in base.sources}) == 2
    assert all(source.pinned for source in base.sources)
    assert all(file.sha256 or file.git_blob for file in base.files)
    assert base.num_bytes == 3_463_726_498 + 334_643_276 + 911 + 553


def test_models_that_must_not_be_sold_with_are_marked() -> None:
    assert [model.name for model in CATALOG.values() if model.license.non_commercial] == ["hypir-sd2"]


def test_a_branch_is_not_taken_for_a_commit() -> None:
    assert [model.name for model in CATALOG.values() if not all(source.pinned for source in model.sources)] == [
        "hypir-sd2"
    ]


def test_a_size_is_only_known_if_that_of_every_file_is() -> None:
    assert find_model("vae16").num_bytes is None
    assert find_model("sd21-base-fp16").num_bytes is None


def test_another_revision_has_no_checksums() -> None:
    model = find_model("s3diff").at_revision("main")
    assert [(source.repo, source.revision) for source in model.sources] == [("zhangap/S3Diff", "main")]
    assert {(file.num_bytes, file.sha256, file.git_blob) for file in model.files} == {(None, None, None)}


def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"got 'hypir': did you mean hypir-sd2\?"):
        find_model("hypir")
    with pytest.raises(OptionError, match='run "gendr models"'):
        find_model("zzz")
