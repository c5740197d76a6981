"""Convert to GenDR on the stub, with files of each relative's real layout and a small base."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import relative_files
import torch
from comfy_stub import InterruptedByUserError
from pack import Pack
from safetensors.torch import load_file, save_file

from gendr_core.convert import Conversion, Sources, convert, read_prompts
from gendr_core.relatives import find_relative

PUBLISHED = {"osediff": "osediff.pkl", "pisa-sr": "pisa_sr.pkl", "hypir-sd2": "HYPIR_sd2.pth", "s3diff": "s3diff.pkl"}
OURS = (("diffusion_models", "mine-unet.safetensors"), ("vae", "mine-vae.safetensors"))
"""Folders and names of what is converted under the name "mine"."""
BLUR, NOISE = relative_files.DEGRADATION


@pytest.fixture(autouse=True)
def inference_mode() -> Iterator[None]:
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


def conditioning(which: str) -> list[Any]:
    return [[relative_files.prompts()[f"prompt.{which}"][None], {}]]


def run(pack: Pack, **inputs: Any) -> Any:
    given = {
        "positive": conditioning("positive"),
        "file": "osediff.safetensors",
        "relative": "by file name",
        "unet": "base.safetensors",
        "vae_file": "base-vae.safetensors",
        "name": "",
        "overwrite": False,
        "blur": BLUR,
        "noise": NOISE,
        "dtype": "fp16",
    }
    return pack.nodes["GenDR_Convert"].execute(**{**given, **inputs})


def written(models: Path) -> list[str]:
    """Return all files that were not there before."""
    folders = [path for key in ("diffusion_models", "vae", "unet") for path in (models / key).rglob("*")]
    return sorted(path.name for path in folders if path.name not in ("base.safetensors", "base-vae.safetensors"))


@pytest.mark.parametrize("relative", PUBLISHED)
def test_each_relative_becomes_what_the_command_line_makes_of_it(
    pack: Pack, models: Path, tmp_path: Path, relative: str
) -> None:
    (models / "gendr" / "osediff.safetensors").unlink()
    relative_files.write_published(models / "gendr" / PUBLISHED[relative], relative)
    output = run(pack, file=PUBLISHED[relative], negative=conditioning("negative"), name="mine")
    folder = tmp_path / "expected"
    folder.mkdir()
    unet, vae, prompts = relative_files.write_bases(tmp_path / "bases")
    found = find_relative(relative)
    conversion = Conversion(
        relative=found,
        sources=Sources(adapter=models / "gendr" / PUBLISHED[relative], unet=unet, vae=vae),
        degradation=relative_files.DEGRADATION if found.needs_degradation else None,
    )
    expected = convert(conversion, read_prompts(prompts), folder)
    names = [path.name.replace(relative, "mine", 1) for path in expected]
    assert output.args[2] == output.ui.value == "\n".join(names)
    assert written(models) == sorted(names)
    places = [*(models / "diffusion_models" / name for name in names[:-1]), models / "vae" / names[-1]]
    for path, like in zip(places, expected, strict=True):
        tensors, wanted = load_file(path), load_file(like)
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    model, converted_vae = output.args[:2]
    assert model.unet.spec.title.startswith(found.title)
    assert converted_vae.spec.arch.latent_channels == 4
    assert (pack.record.progress[0], pack.record.progress[-1]) == ((0, 3), (3, 3))


def test_what_is_there_already_is_loaded_without_a_prompt_and_without_reading_the_base(
    pack: Pack, models: Path
) -> None:
    first = run(pack)
    path = models / "diffusion_models" / "osediff-unet.safetensors"
    before = path.stat().st_mtime_ns
    for name in ("diffusion_models/base", "vae/base-vae"):
        (models / f"{name}.safetensors").write_bytes(b"no weights any more")
    again = run(pack, positive=None)
    assert again.args[2] == first.args[2] == "osediff-unet.safetensors\nosediff-vae.safetensors"
    assert path.stat().st_mtime_ns == before
    assert torch.equal(again.args[0].unet.positive, first.args[0].unet.positive)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"positive": conditioning("negative")}, "osediff-unet.safetensors is there already and has another prompt"),
        ({"negative": conditioning("negative")}, "has another prompt: switch overwrite on, or choose another name"),
        ({"dtype": "fp32"}, "has weights in F16, not F32"),
        ({"relative": "hypir-sd2"}, "has OSEDiff in it, not HYPIR-SD2"),
    ],
)
def test_what_comes_from_other_inputs_is_told_apart(
    pack: Pack, models: Path, inputs: dict[str, Any], expected: str
) -> None:
    del models
    run(pack)
    with pytest.raises(ValueError, match=expected):
        run(pack, **inputs)


@pytest.mark.parametrize(
    ("inputs", "other"),
    [
        ({"file": "osediff.safetensors"}, "gendr/osediff-2.safetensors"),
        ({"unet": "base.safetensors"}, "diffusion_models/base-2.safetensors"),
        ({"vae_file": "base-vae.safetensors"}, "vae/base-vae-2.safetensors"),
    ],
)
def test_an_older_conversion_of_other_files_is_not_loaded_for_these(
    pack: Pack, models: Path, inputs: dict[str, str], other: str
) -> None:
    ((which, name),) = inputs.items()
    (models / other).write_bytes((models / other).with_name(name).read_bytes())
    run(pack, name="mine")
    found = rf"mine-unet\.safetensors is there already and has OSEDiff of other files in it \(.*{name}.*\): switch over"
    with pytest.raises(ValueError, match=found):
        run(pack, name="mine", **{which: Path(other).name})
    run(pack, name="mine", **{which: Path(other).name}, overwrite=True)
    assert run(pack, name="mine", **{which: Path(other).name}, positive=None).args[2].startswith("mine-unet")


def test_s3diff_is_there_for_one_degradation(pack: Pack, models: Path) -> None:
    relative_files.write_published(models / "gendr" / "s3diff.safetensors", "s3diff")
    inputs = {"file": "s3diff.safetensors", "negative": conditioning("negative")}
    run(pack, **inputs)
    assert run(pack, **inputs).args[2].startswith("s3diff-unet.safetensors\n")
    with pytest.raises(ValueError, match=r"has S3Diff at blur 0\.3, noise 0\.6 in it, not S3Diff at blur 0\.9"):
        run(pack, **inputs, blur=0.9)


def test_half_of_the_files_is_not_taken_for_all(pack: Pack, models: Path) -> None:
    run(pack)
    (models / "vae" / "osediff-vae.safetensors").unlink()
    with pytest.raises(ValueError, match=r"found osediff-unet\.safetensors without osediff-vae\.safetensors"):
        run(pack)
    assert run(pack, overwrite=True).args[1].spec.title == "OSEDiff"


def test_overwriting_replaces_conversions_and_nothing_else(pack: Pack, models: Path) -> None:
    run(pack)
    other = conditioning("negative")
    run(pack, positive=other, overwrite=True)
    stored = read_prompts(models / "diffusion_models" / "osediff-unet.safetensors")
    assert torch.equal(stored.positive, other[0][0][0])
    own = models / "diffusion_models" / "mine-unet.safetensors"
    save_file(relative_files.base_unet(), own)
    with pytest.raises(ValueError, match=r"mine-unet\.safetensors is there and no result of a conversion"):
        run(pack, name="mine", overwrite=True)
    assert load_file(own).keys() == relative_files.base_unet().keys()


def test_the_file_that_a_loader_would_read_is_the_one_that_is_found_and_replaced(pack: Pack, models: Path) -> None:
    run(pack)
    name = "osediff-unet.safetensors"
    (models / "unet").mkdir()
    elsewhere = (models / "diffusion_models" / name).rename(models / "unet" / name)
    host: Any = sys.modules["folder_paths"]
    usual = host.get_full_path
    host.get_full_path = lambda key, wanted: str(elsewhere) if wanted == name else usual(key, wanted)
    assert run(pack).args[2].startswith(name)
    other = conditioning("negative")
    run(pack, positive=other, overwrite=True)
    assert torch.equal(read_prompts(elsewhere).positive, other[0][0][0])
    assert not (models / "diffusion_models" / name).exists()


@pytest.mark.parametrize("name", ["../mine", "a/b", "a\\b", "C:mine", ".hidden", "x" * 101])
def test_nothing_is_written_outside_of_the_model_folders(pack: Pack, models: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected a name for files, without folders"):
        run(pack, name=name)
    assert written(models) == []


def test_a_prompt_is_asked_for_where_one_is_stored(pack: Pack, models: Path) -> None:
    with pytest.raises(ValueError, match=r"connect CLIP Text Encode with an SD2\.x CLIP"):
        run(pack, positive=None)
    with pytest.raises(ValueError, match="expected a positive prompt beside the negative one"):
        run(pack, positive=None, negative=conditioning("negative"))
    with pytest.raises(ValueError, match="S3Diff runs with guidance: connect a negative prompt, too"):
        run(pack, relative="s3diff")
    with pytest.raises(ValueError, match=r"expected positive from a text encoder of width 32 .* got 768 \(SD1\.x\)"):
        run(pack, positive=[[torch.zeros(1, 77, 768), {}]])
    assert written(models) == []


def test_prompts_of_different_lengths_are_stored_at_a_common_one(pack: Pack, models: Path) -> None:
    short = [[conditioning("negative")[0][0][:, :2], {}]]
    inputs = {"negative": short, "dtype": "fp32"}
    run(pack, **inputs)
    stored = read_prompts(models / "diffusion_models" / "osediff-unet.safetensors")
    assert stored.negative is not None
    assert len(stored.positive) == len(stored.negative) == 2 * relative_files.TOKENS
    assert run(pack, **inputs).args[0].unet.spec.title == "OSEDiff"


def test_a_file_of_another_name_needs_to_be_told_whose_it_is(pack: Pack, models: Path) -> None:
    (models / "gendr" / "osediff.safetensors").rename(models / "gendr" / "model_1.safetensors")
    with pytest.raises(ValueError, match=r"model_1\.safetensors: expected .* one of osediff, pisa-sr.* in 'restorer'"):
        run(pack, file="model_1.safetensors")
    with pytest.raises(ValueError, match="expected the file of PiSA-SR, got that of OSEDiff"):
        run(pack, file="model_1.safetensors", relative="pisa-sr")
    assert written(models) == []
    assert run(pack, file="model_1.safetensors", relative="osediff").args[2].startswith("model_1-unet.safetensors")


def test_cancelled_between_two_tensors_or_files_only_what_was_there_is_left(pack: Pack, models: Path) -> None:
    run(pack, name="mine")
    before = {name: (models / folder / name).read_bytes() for folder, name in OURS}
    tensors = sum(len(load_file(models / folder / name)) for folder, name in OURS)
    num_checks = pack.record.checks
    assert num_checks >= tensors
    for check in (1, 2, num_checks // 2, num_checks - 1, num_checks):
        pack.record.checks, pack.record.cancel_at_check = 0, check
        with pytest.raises(InterruptedByUserError):
            run(pack, name="mine", positive=conditioning("negative"), overwrite=True)
        assert written(models) == sorted(before)
    assert before == {name: (models / folder / name).read_bytes() for folder, name in OURS}


def test_a_disk_that_refuses_leaves_nothing_and_says_what_to_do(
    pack: Pack, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversion = sys.modules[pack.nodes["GenDR_Convert"].__module__.replace(".convert", ".conversion")]
    real = conversion.shutil.move

    def refuse(source: Path, target: Path) -> None:
        if "vae" in target.name:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(conversion.shutil, "move", refuse)
    with pytest.raises(ValueError, match=r"cannot be written to diffusion_models: No space left on device\. Make room"):
        run(pack)
    assert written(models) == []


def test_the_stamp_changes_with_each_file_that_is_read(pack: Pack, models: Path) -> None:
    inputs = {"file": "osediff.safetensors", "unet": "base.safetensors", "vae_file": "base-vae.safetensors"}
    stamp = pack.nodes["GenDR_Convert"].fingerprint_inputs
    seen = {stamp(**inputs, name="")}
    for name in ("gendr/osediff.safetensors", "diffusion_models/base.safetensors", "vae/base-vae.safetensors"):
        (models / name).write_bytes(b"other")
        seen.add(stamp(**inputs, name=""))
    assert len(seen) == 4
    with pytest.raises(ValueError, match=r"expected a file 'x\.pkl' in models/gendr or models/loras, found none"):
        stamp(**{**inputs, "file": "x.pkl"})
