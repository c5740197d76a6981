import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stopping import Stopping

from gendr_core.errors import CheckpointError
from gendr_core.header import read_header
from gendr_core.pickled import unpickled
from gendr_core.pickled_child import VALUES_KEY, check_archive, read

CONTENT = {
    "state": {"a.weight": torch.arange(6.0).reshape(2, 3).T, "deep": {"b": torch.nn.Parameter(torch.ones(2))}},
    "rank": 4,
    "layers": ["a", "b"],
    "rule": "^a$",
}


class Runs:
    """What a file to do harm holds: unpickled as usual, it runs a command that leaves ``target``."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"echo harm > {self.target}",)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good file."""
    torch.save(CONTENT, tmp_path / "good.pkl")
    return tmp_path / "good.pkl"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A file that would leave "harm" beside itself."""
    torch.save({"state": Runs(tmp_path / "harm")}, tmp_path / "hostile.pkl")
    return tmp_path / "hostile.pkl"


def test_a_pickled_file_comes_back_as_safetensors_through_a_child(file: Path) -> None:
    with unpickled(file) as target:
        tensors = load_file(target)
        assert read_header(target).metadata[VALUES_KEY] == '{"rank": 4, "layers": ["a", "b"], "rule": "^a$"}'
    assert not target.exists()
    assert tensors.keys() == {"state/a.weight", "state/deep/b"}
    assert tensors["state/a.weight"].equal(torch.arange(6.0).reshape(2, 3).T)


def test_a_file_that_runs_code_is_refused_by_what_it_names_and_does_no_harm(hostile: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"hostile\.pkl: .*names \w+\.system, .*could run code\. Do not use it"),
        unpickled(hostile),
    ):
        pass
    assert not (hostile.parent / "harm").exists()


def test_nothing_in_this_file_would_notice_harm_that_cannot_happen(hostile: Path) -> None:
    # The other tests mean something only if the file does what it says.
    torch.load(hostile, weights_only=False)
    assert (hostile.parent / "harm").exists()


def test_reading_for_too_long_is_ended(file: Path) -> None:
    with pytest.raises(CheckpointError, match="took more than 0 seconds"), unpickled(file, seconds=0.01):
        pass


def test_reading_is_ended_by_the_user(file: Path) -> None:
    # Asked before the child can be done, and not again.
    interrupt = Stopping(at=2)
    with pytest.raises(InterruptedError), unpickled(file, interrupt=interrupt):
        pass
    assert interrupt.asked == 2
    assert active_children() == []


@pytest.mark.slow
def test_taking_too_much_memory_is_ended(file: Path) -> None:
    torch.save({"a": torch.zeros(2**25)}, file)
    with (
        pytest.raises(CheckpointError, match="more memory than a file of its size"),
        unpickled(file, memory_bytes=2**25),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00."], ids=["empty", "text", "old"])
def test_what_is_no_archive_is_refused_without_a_child(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth: expected a file of torch.save"), unpickled(tmp_path / "a.pth"):
        pass


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth: .*found no file"), unpickled(tmp_path / "a.pth"):
        pass


def test_a_cut_file_is_no_archive(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(zipfile.BadZipFile):
        read(file)


def test_only_what_tensors_need_may_be_named(file: Path, hostile: Path) -> None:
    check_archive(file)
    with pytest.raises(ValueError, match=r"names \w+\.system"):
        check_archive(hostile)
    torch.save({"a": Path("x")}, file)
    with pytest.raises(ValueError, match="names pathlib"):
        check_archive(file)


@pytest.mark.parametrize("protocol", [4, 5])
def test_newer_ways_to_name_code_are_refused(file: Path, protocol: int) -> None:
    torch.save(CONTENT, file, pickle_protocol=protocol)
    with pytest.raises(ValueError, match="STACK_GLOBAL"):
        check_archive(file)


def test_a_compressed_archive_is_refused(file: Path) -> None:
    with zipfile.ZipFile(file.parent / "bomb.pkl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"0" * 2**24)
    with pytest.raises(ValueError, match="compressed"):
        check_archive(file.parent / "bomb.pkl")


def test_an_archive_with_two_programs_is_refused(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/data.pkl", b".")
    with pytest.raises(ValueError, match=r"expected one data\.pkl"):
        check_archive(file)


def test_a_tensor_that_claims_more_than_the_file_is_refused(file: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, file)
    with pytest.raises(ValueError, match="claim 4,000,000,000,000 bytes"):
        read(file)


def test_what_is_no_dict_of_plain_tensors_is_refused(file: Path) -> None:
    torch.save([torch.zeros(1)], file)
    with pytest.raises(ValueError, match="expected a dict of tensors in it, got list"):
        read(file)
    nested: dict[str, object] = {}
    nested["again"] = nested
    torch.save(nested, file)
    with pytest.raises(ValueError, match="nested more than 4 deep"):
        read(file)


def test_the_child_does_not_run_the_program_that_started_it(file: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from gendr_core.pickled import unpickled\n"
        "print('the program runs')\n"
        "main = sys.modules['__main__']\n"
        f"with unpickled(Path({str(file)!r})) as target:\n"
        "    print(target.stat().st_size > 0, sys.modules['__main__'] is main)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["the program runs", "True True"], done.stderr
