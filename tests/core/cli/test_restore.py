import io
import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import UNET16, VAE16, Run, picture
from PIL import Image

from gendr_core import model
from gendr_core.cli import line
from gendr_core.cli.files import Naming
from gendr_core.config import RestoreOptions
from gendr_core.finish import Guides
from gendr_core.image_io import read_image, write_image
from gendr_core.model import DEFAULT_UNET, load_unet
from gendr_core.pipeline import restore
from gendr_core.spec import UNET_FOLDS, VAE_FOLDS


def test_restores_one_file_as_python_does(run: Run, photos: Path, tmp_path: Path, weights: Path) -> None:
    target = tmp_path / "big.png"
    code, out, err = run("restore", photos / "a.png", "-o", target)
    assert (code, err) == (0, "")
    assert "9x6 -> 18x12" in out
    expected = restore(read_image(photos / "a.png").image, load_unet(weights / DEFAULT_UNET))
    assert torch.equal(read_image(target).image, (expected * 255.0).floor() / 255.0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (["--scale", "3"], (27, 18)),
        (["--longest-edge", "30"], (30, 20)),
        (["--shortest-edge", "4"], (6, 4)),
        ([], (18, 12)),
    ],
)
def test_sizes(size: list[str], expected: tuple[int, int], run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("restore", photos / "a.png", "-o", tmp_path / "big.png", "--quiet", *size) == (0, "", "")
    with Image.open(tmp_path / "big.png") as image:
        assert image.size == expected


def test_folder_run_and_its_report(run: Run, photos: Path, tmp_path: Path) -> None:
    code, out, err = run("restore", photos, "-o", tmp_path / "new" / "out", "--suffix", "_x2", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["version"]
    assert (report["device"], report["dtype"]) == ("cpu", "fp32")
    assert report["model"] == {"title": "tiny", "unet": str(model.WEIGHTS_DIR / DEFAULT_UNET), "vae": None}
    assert report["seconds"]["total"] >= report["seconds"]["load"] > 0.0
    assert [Path(file["output"]).name for file in report["files"]] == ["a_x2.png", "b_x2.png"]
    for file in report["files"]:
        assert Path(file["output"]).is_file()
        assert (file["input_size"], file["output_size"]) == ([9, 6], [18, 12])
        assert (file["channels"], file["bit_depth"], file["error"]) == (3, 8, None)
        assert set(file["seconds"]) == {"read", "restore", "write"}
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["a_x2.png", "b_x2.png"]


def test_pattern_and_several_inputs(run: Run, photos: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "c.webp", picture())
    code, out, _ = run("restore", photos / "*.p?g", tmp_path / "c.webp", photos / "a.png", "-o", tmp_path / "out")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_existing_output_is_refused_before_any_work(run: Run, photos: Path, tmp_path: Path) -> None:
    out_folder = tmp_path / "out"
    out_folder.mkdir()
    (out_folder / "b.png").write_text("precious")
    code, _, err = run("restore", photos, "-o", out_folder)
    assert code == 1
    assert "b.png exists: add --overwrite" in err
    assert [path.name for path in out_folder.iterdir()] == ["b.png"]
    assert (out_folder / "b.png").read_text() == "precious"
    assert run("restore", photos, "-o", out_folder, "--overwrite", "--quiet") == (0, "", "")
    assert read_image(out_folder / "b.png").image.shape == (1, 12, 18, 3)


def test_a_broken_file_does_not_stop_the_others(run: Run, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "a.png").read_bytes()
    (photos / "aa.png").write_bytes(whole[: len(whole) // 2])
    code, out, err = run("restore", photos, "-o", tmp_path / "out", "--json")
    assert code == 1
    assert err.count("gendr: error: ") == 1
    assert "aa.png" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert [file["error"] is None for file in json.loads(out)["files"]] == [True, False, True]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_stay_16_bits(suffix: str, run: Run, tmp_path: Path, weights: Path) -> None:
    source, target = tmp_path / "deep.png", tmp_path / f"big{suffix}"
    write_image(source, picture(), 16)
    assert run("restore", source, "-o", target)[0] == 0
    result = read_image(target)
    assert result.bit_depth == 16
    expected = restore(read_image(source).image, load_unet(weights / DEFAULT_UNET))
    torch.testing.assert_close(result.image, expected, rtol=0, atol=0.51 / 65535.0)


def test_bit_depth_can_be_chosen_and_falls_to_what_the_type_holds(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "deep.png"
    write_image(source, picture(), 16)
    assert run("restore", source, "-o", tmp_path / "big.jpg")[0] == 0
    assert read_image(tmp_path / "big.jpg").bit_depth == 8
    assert run("restore", source, "-o", tmp_path / "float.tif", "--bit-depth", "32")[0] == 0
    assert read_image(tmp_path / "float.tif").bit_depth == 32
    code, _, err = run("restore", source, "-o", tmp_path / "other.jpg", "--bit-depth", "16")
    assert code == 1
    assert "--bit-depth 16" in err


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_and_alpha_stay(channels: int, run: Run, tmp_path: Path) -> None:
    write_image(tmp_path / "in.png", picture(channels))
    assert run("restore", tmp_path / "in.png", "-o", tmp_path / "out.png")[0] == 0
    assert read_image(tmp_path / "out.png").image.shape == (1, 12, 18, channels)


def test_alpha_is_refused_where_the_type_has_none(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "in.png", picture(4))
    monkeypatch.delattr(line, "restore")  # Told before the work, not after.
    code, _, err = run("restore", tmp_path / "in.png", "-o", tmp_path / "out.jpg")
    assert code == 1
    assert "with alpha" in err


def test_color_profile_is_kept(run: Run, tmp_path: Path) -> None:
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(tmp_path / "in.png", picture(), icc=icc)
    assert run("restore", tmp_path / "in.png", "-o", tmp_path / "out.png")[0] == 0
    assert read_image(tmp_path / "out.png").icc == icc


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "-o", "x.png"], "found nothing at nowhere.png"),
        (["{photos}/*.gif", "-o", "x"], "found nothing at"),
        (["{photos}", "-o", "{photos}/a.png"], "expected a folder after -o for 2 images"),
        (["{photos}", "-o", "new.png"], "expected a folder after -o for 2 images"),
        (["{photos}/a.png", "-o", "x.gif"], "expected an output file ending in"),
        (["{photos}/a.png", "-o", "x.png", "--scale", "99"], "expected scale from 0.25 to 16"),
        (["{photos}/a.png", "-o", "x.png", "--quality", "0"], "expected --quality from 1 to 100"),
        (["{photos}/a.png", "-o", "x.png", "--unet", "none.safetensors"], "expected a weight file"),
        (["{photos}/a.png", "-o", "x.png", "--guidance", "4"], "negative prompt"),
        (["{photos}/a.png", "{photos}/a.png", "{photos}/sub/a.png", "-o", "x"], "for both"),
    ],
)
def test_errors_before_anything_is_written(
    arguments: list[str], message: str, run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "sub").mkdir()
    write_image(photos / "sub" / "a.png", picture())
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    code, out, err = run("restore", *(argument.format(photos=photos) for argument in arguments), "--json")
    assert code == 1
    assert message in err
    assert err.startswith("gendr: error: ")
    assert "Traceback" not in err
    assert out == "" or json.loads(out)["files"][0]["error"]
    assert list((tmp_path / "cwd").iterdir()) == []


def test_missing_device(run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run("restore", photos, "-o", tmp_path / "out", "--device", "cuda")
    assert code == 1
    assert "cpu; got cuda" in err


def test_bundled_unet_takes_its_vae(run: Run, photos: Path, tmp_path: Path, weights: Path) -> None:
    code, out, _ = run("restore", photos / "a.png", "-o", tmp_path / "out.png", "--unet", UNET16, "--json")
    assert code == 0
    assert json.loads(out)["model"]["vae"] == str(weights / VAE16)


def test_other_unet_needs_vae(run: Run, photos: Path, tmp_path: Path, weights: Path) -> None:
    own = (weights / UNET16).rename(tmp_path / "own.safetensors")
    arguments = ("restore", photos / "a.png", "-o", tmp_path / "out.png", "--unet", own)
    code, _, err = run(*arguments)
    assert code == 1
    assert "expected --vae FILE" in err
    assert run(*arguments, "--vae", VAE16)[0] == 0


def test_vae_without_effect_warns(run: Run, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run("restore", photos / "a.png", "-o", tmp_path / "out.png", "--vae", VAE16)[0] == 0
    assert "--vae has no effect" in caplog.text


def test_bf16(run: Run, photos: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "restore", photos / "a.png", "-o", tmp_path / "o.png", "--unet", UNET16, "--dtype", "bf16", "--json"
    )
    assert code == 0
    assert json.loads(out)["dtype"] == "bf16"


def test_progress_bar_only_on_a_terminal(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("restore", photos, "-o", tmp_path / "out")[0] == 0
    assert "100%" in terminal.getvalue()
    silent = Terminal()
    monkeypatch.setattr(sys, "stderr", silent)
    assert run("restore", photos, "-o", tmp_path / "again", "--quiet")[:2] == (0, "")
    assert silent.getvalue() == ""


def test_folder_that_cannot_be_made(run: Run, photos: Path) -> None:
    code, _, err = run("restore", photos / "a.png", "-o", photos / "notes.txt" / "a.png")
    assert code == 1
    assert "notes.txt" in err
    assert err.count("gendr: error: ") == 1


def test_naming_without_effect_warns(run: Run, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run("restore", photos / "a.png", "-o", tmp_path / "out.png", "--suffix", "_big")[0] == 0
    assert "--suffix have no effect" in caplog.text


@pytest.mark.parametrize(
    ("source", "naming", "expected"),
    [
        ("a.jpg", Naming(), "a.png"),
        ("a.TIF", Naming(), "a.TIF"),
        ("a.b.webp", Naming(suffix="_x4"), "a.b_x4.png"),
        ("a.tif", Naming(format="jpg"), "a.jpg"),
    ],
)
def test_names_in_a_folder(source: str, naming: Naming, expected: str) -> None:
    assert naming.target(Path(source)) == Path(expected)


def test_guides_and_detail_are_those_of_python(run: Run, photos: Path, tmp_path: Path, weights: Path) -> None:
    mask, colors = torch.zeros(1, 6, 9, 1), picture(height=4, width=5).flip(3)
    mask[:, :, 4:] = 1.0
    write_image(tmp_path / "mask.png", mask.expand(-1, -1, -1, 3))
    write_image(tmp_path / "colors.png", colors)
    arguments = ["--mask", tmp_path / "mask.png", "--color-reference", tmp_path / "colors.png"]
    arguments += ["--detail", "0.5", "--feather", "2", "--bit-depth", "32"]
    target = tmp_path / "masked.tiff"
    code, _, err = run("restore", photos / "a.png", "-o", target, *arguments)
    assert (code, err) == (0, "")
    guides = Guides(mask=mask[..., 0], color_reference=read_image(tmp_path / "colors.png").image)
    options = RestoreOptions(detail=0.5, feather_px=2)
    unet = load_unet(weights / DEFAULT_UNET)
    expected = restore(read_image(photos / "a.png").image, unet, options=options, guides=guides)
    assert torch.equal(read_image(target).image, expected)


def test_one_colour_reference_serves_a_folder_and_a_mask_does_not(run: Run, photos: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "guide.png", picture())
    out = tmp_path / "out"
    assert run("restore", photos, "-o", out, "--color-reference", tmp_path / "guide.png", "--quiet") == (0, "", "")
    code, _, err = run("restore", photos, "-o", tmp_path / "never", "--mask", tmp_path / "guide.png")
    assert code == 1
    assert "expected a single image with --mask, got 2" in err
    code, _, err = run("restore", photos / "a.png", "-o", tmp_path / "never.png", "--detail", "2")
    assert code == 1
    assert "expected detail from 0 to 1.5, got 2.0" in err


def test_weights_stay_in_8_bits(run: Run, photos: Path, tmp_path: Path, weights: Path) -> None:
    target = tmp_path / "big.png"
    common = ("restore", photos / "a.png", "-o", target, "--unet", UNET16, "--json", "--weights", "fp8")
    assert json.loads(run(*common)[1])["weights"] == "fp8"
    unet = load_unet(weights / UNET16, folds=(*UNET_FOLDS, "fp8"))
    vae = model.load_vae(weights / VAE16, folds=(*VAE_FOLDS, "fp8"))
    expected = restore(read_image(photos / "a.png").image, unet, vae)
    assert torch.equal(read_image(target).image, (expected * 255.0).floor() / 255.0)
