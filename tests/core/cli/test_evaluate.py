import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, picture
from PIL import Image

from gendr_core import cli
from gendr_core.image_io import write_image


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    folder = tmp_path / "originals"
    folder.mkdir()
    for index, channels in enumerate((3, 1, 4)):
        ramp = np.linspace(0.2, 0.8, 50, dtype=np.float32)
        image = torch.tensor(ramp)[None, None, :, None].expand(1, 46 + index, 50, channels)
        write_image(folder / f"{index}.png", image + 0.1 * picture(channels, 46 + index, 50))
    return folder


def test_evaluate_report_and_pictures(run: Run, originals: Path, tmp_path: Path) -> None:
    code, out, err = run("evaluate", originals, "-o", tmp_path / "sheets", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["failures"] == []
    assert [photo["seed"] for photo in report["photos"]] == [0, 0, 1, 1, 2, 2]
    for recipe in ("light", "heavy"):
        summary = report["recipes"][recipe]
        photos = [photo for photo in report["photos"] if photo["recipe"] == recipe]
        gains = [photo["restored"]["psnr_y"] - photo["bicubic"]["psnr_y"] for photo in photos]
        assert summary["photos"] == 3
        assert summary["gain_db"] == pytest.approx(sum(gains) / 3)
        assert summary["share_better"] == sum(gain > 0.0 for gain in gains) / 3
        assert set(summary["restored"]) == set(summary["bicubic"]) == set(cli.evaluate.COLUMNS)
    for photo in report["photos"]:
        assert photo["size"] == [48, 44 if photo["seed"] < 2 else 48]
        with Image.open(photo["picture"]) as sheet:
            assert sheet.size == (4 * 48 + 3 * 4, photo["size"][1] + 24)
    code, _, err = run("evaluate", originals, "-o", tmp_path / "sheets")
    assert code == 1
    assert "and 5 more exists: add --overwrite" in err


def test_evaluate_is_repeatable_and_prints_a_table(run: Run, originals: Path) -> None:
    arguments = ("evaluate", originals, "--recipe", "heavy", "--limit", "2", "--verbose")
    code, out, _ = run(*arguments)
    assert code == 0
    assert out == run(*arguments)[1]
    lines = out.splitlines()
    assert lines[0].split() == ["recipe", "method", "PSNR-Y", "SSIM-Y", "noise", "sharpness", "blocks", "colour"]
    assert sum("1.png" in line for line in lines) == 2
    assert sum("mean of 2" in line for line in lines) == 2
    assert "better on" in lines[-2]


def test_evaluate_goes_on_after_a_bad_photo(run: Run, originals: Path) -> None:
    write_image(originals / "0_tiny.png", picture(3, 8, 8))
    code, out, err = run("evaluate", originals, "--recipe", "light", "--json")
    assert code == 1
    assert "0_tiny.png" in err
    assert len(json.loads(out)["photos"]) == 3
    code, _, err = run("evaluate", originals / "nowhere")
    assert code == 1
    assert "expected a folder of photos" in err


def test_infinite_scores_do_not_break_json() -> None:
    assert cli.evaluate._finite({"psnr_y": float("inf"), "ssim_y": 1.0}) == {"psnr_y": None, "ssim_y": 1.0}
