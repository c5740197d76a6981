import json
import math
from pathlib import Path

import numpy as np
import pytest
import quality
import quality_figures
import torch

from gendr_core.cli.evaluate import evaluate_photo
from gendr_core.cli.options import Models
from gendr_core.config import RestoreOptions
from gendr_core.degrade import HEAVY, LIGHT
from gendr_core.errors import OptionError
from gendr_core.image_io import write_image
from gendr_core.model import DEFAULT_UNET, load_unet

MODEL = Path(DEFAULT_UNET).stem


def scores(psnr: float, niqe: float = 5.0) -> quality_figures.Scores:
    return quality_figures.Scores(psnr_y=psnr, ssim_y=0.5, niqe=niqe, brisque=40.0)


def trial(photo: str, bicubic: float, own: float, niqe: float = 5.0) -> quality_figures.Trial:
    methods = {"bicubic": scores(bicubic), "own": scores(own, niqe), "original": scores(math.inf)}
    return quality_figures.Trial(photo=photo, recipe="light", seed=0, scores=methods)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos, one of odd size and one gray."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    rows = torch.linspace(0.2, 0.8, 109)[None, :, None, None]
    write_image(folder / "a.png", (rows + 0.1 * torch.rand(1, 109, 203, 3, generator=random)).clamp(0.0, 1.0))
    write_image(folder / "b.png", 0.2 + 0.5 * torch.rand(1, 96, 192, 1, generator=random))
    return folder


@pytest.fixture
def own_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models made up here, in the place of those that packages hold."""
    niqe, brisque = tmp_path / "niqe.npz", tmp_path / "brisque"
    np.savez(niqe, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    brisque.write_text("svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nrho -1.0\nSV\n2 1:0.5 \n", encoding="ascii")
    files = {"niqe_pris_params.npz": niqe, "allmodel": brisque}
    monkeypatch.setattr(quality, "package_file", lambda _, name: files[name])


def test_summary_on_numbers() -> None:
    trials = [trial("a", 20.0, 22.0), trial("b", 30.0, 29.0, niqe=7.0), trial("c", 25.0, 25.0, niqe=math.nan)]
    summary = quality_figures.summarise(trials, "own")
    assert summary.psnr_y == pytest.approx(76.0 / 3.0)
    assert summary.gain_db == pytest.approx(1.0 / 3.0)
    assert summary.share_better == pytest.approx(1.0 / 3.0)
    assert (summary.worst_photo, summary.worst_gain_db) == ("b", -1.0)
    assert summary.niqe == pytest.approx(6.0)  # of the two that have one


def test_tables_say_what_has_no_meaning() -> None:
    trials = [trial("a", 20.0, 22.0)]
    lines = quality_figures.quality_table(
        {name: quality_figures.summarise(trials, name) for name in trials[0].scores}
    ).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells == [
        ["bicubic", "20.00", "0.5000", "5.000", "40.00", "-", "-", "-"],
        ["own", "22.00", "0.5000", "5.000", "40.00", "+2.00", "100%", "+2.00 a"],
        ["original", "-", "-", "5.000", "40.00", "-", "-", "-"],
    ]
    own = quality_figures.Timing(seconds=0.5, cpu_seconds=1.0)
    rival = quality_figures.Timing(seconds=6.0, cpu_seconds=11.0)
    assert quality_figures.time_table({"own": own}).splitlines()[2].split() == [
        "|",
        "own",
        "|",
        "0.500",
        "|",
        "1.000",
        "|",
    ]
    beside = quality_figures.time_table({"own": own, "realesrgan-x4plus": rival}).splitlines()[2]
    assert [cell.strip() for cell in beside.strip("|").split("|")] == ["own", "0.500", "1.000", "12.0", "11.0"]


def test_json_has_no_infinity() -> None:
    assert quality_figures.finite({"a": [math.inf, (1.0, math.nan)], "b": "c"}) == {"a": [None, [1.0, None]], "b": "c"}


@pytest.mark.usefixtures("own_parameters")
def test_the_whole_comparison(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "TIMED_PX", 16)
    report, page, pictures = tmp_path / "q.json", tmp_path / "q.md", tmp_path / "pictures"
    arguments = ["--images", photos, "--repeat", 1, "--json", report, "--page", page, "--pictures", pictures]
    quality.main([str(argument) for argument in arguments])
    figures = json.loads(report.read_text(encoding="utf-8"))
    assert [(entry["photo"], entry["recipe"], entry["seed"]) for entry in figures["photos"]] == [
        *(("a.png", "light", 0), ("a.png", "heavy", 0)),
        *(("b.png", "light", 1), ("b.png", "heavy", 1)),
    ]
    assert list(figures["recipes"]["light"]) == ["bicubic", MODEL, "original"]
    assert set(figures["times"]) == {"bicubic", MODEL}
    assert sorted(path.name for path in pictures.iterdir()) == [
        f"{photo}_{recipe}.png" for photo in ("0000_a", "0001_b") for recipe in ("heavy", "light")
    ]
    text = page.read_text(encoding="utf-8")
    assert "## heavy, 2 photos" in text
    assert str(tmp_path) not in text
    # The same figures as those of "gendr evaluate".
    unet = load_unet(DEFAULT_UNET)
    models = Models(
        unet=unet, vae=None, unet_path=Path(DEFAULT_UNET), vae_path=None, device=torch.device("cpu"), load_s=0.0
    )
    options = RestoreOptions(scale=4.0)
    for entry, recipe in zip(figures["photos"][:2], (LIGHT, HEAVY), strict=True):
        other = evaluate_photo(photos / "a.png", recipe, 0, models=models, options=options, picture=None)
        assert entry["scores"]["bicubic"]["psnr_y"] == pytest.approx(other.bicubic["psnr_y"], abs=1e-9)
        assert entry["scores"][MODEL]["psnr_y"] == pytest.approx(other.restored["psnr_y"], abs=1e-4)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(OptionError, match="pip install --no-deps no-such-package"):
        quality.package_file("no-such-package", "file")
    with pytest.raises(OptionError, match=r"expected no\.file in the package torch"):
        quality.package_file("torch", "no.file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "at least 1"),
        (["--model", "a/x.safetensors", "b/x.safetensors"], "names of their own"),
        (["--model", "bicubic.safetensors"], "names of their own"),
    ],
)
def test_arguments_that_cannot_work(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.parse(["--images", "photos", *arguments])
    assert message in capsys.readouterr().err
