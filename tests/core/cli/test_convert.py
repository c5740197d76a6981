import json
from pathlib import Path

import pytest
from command_line import Run
from relative_files import write_bases, write_published

from gendr_core import convert


@pytest.fixture
def arguments(tmp_path: Path) -> list[object]:
    """A whole command line for HYPIR-SD2."""
    unet, vae, prompt = write_bases(tmp_path)
    adapter = write_published(tmp_path / "HYPIR_sd2.safetensors", "hypir-sd2")
    (tmp_path / "out").mkdir()
    files = ("--adapter", adapter, "--unet", unet, "--vae", vae, "--prompt", prompt, "-o", tmp_path / "out")
    return ["convert", "hypir-sd2", *files]


def test_convert_prints_the_files_and_inspect_knows_them(run: Run, arguments: list[object]) -> None:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    files = json.loads(out)["files"]
    assert [Path(file).name for file in files] == ["hypir-sd2-unet.safetensors", "hypir-sd2-vae.safetensors"]
    reports = [json.loads(run("inspect", file, "--json")[1]) for file in files]
    assert [report["problem"] for report in reports] == [None, None]
    assert reports[0]["spec"]["timestep"] == 200
    assert reports[0]["dtypes"][0] == "F16"


def test_convert_without_json_prints_one_file_a_line(run: Run, arguments: list[object], tmp_path: Path) -> None:
    out = run(*arguments, "--dtype", "bf16")[1]
    assert out.splitlines() == [str(tmp_path / "out" / f"hypir-sd2-{kind}.safetensors") for kind in ("unet", "vae")]


def test_ctrl_c_between_two_files_leaves_none(
    run: Run, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        assert (tmp_path / "out" / "hypir-sd2-unet.safetensors").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "write_vae", interrupt)
    assert run(*arguments) == (130, "", "gendr: interrupted\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_converted_says_why(run: Run, arguments: list[object]) -> None:
    code, out, err = run("convert", "sinsr", *arguments[2:])
    assert (code, out) == (1, "")
    assert err.startswith("gendr: error: SinSR cannot be converted: its network is a Swin UNet")
    code, _, err = run(*arguments[:-1], "nowhere")
    assert code == 1
    assert "expected a folder to write to, found none at nowhere" in err
