from collections.abc import Callable
from pathlib import Path

import ldm
import pytest
import torch
from relative_files import (
    FILES,
    UNET_ARCH,
    VAE_ARCH,
    base_unet,
    base_vae,
    noise,
    prompts,
    write_bases,
    write_published,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stopping import Stopping
from weightfiles import assert_same

from gendr_core import convert as module
from gendr_core.checkpoint import read_unet, read_vae
from gendr_core.convert import Conversion, Sources, convert, find_weights, published_file, read_prompts
from gendr_core.errors import CheckpointError, GenDRError, OptionError
from gendr_core.host import NEVER, Interrupt
from gendr_core.pickled_child import read
from gendr_core.relatives import find_relative
from gendr_core.spec import alpha_bar, one_step_coefficients

Convert = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as a diffusers folder and a prompt file; for reading only."""
    return write_bases(tmp_path_factory.mktemp("base"))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What OSEDiff publishes, as safetensors."""
    write_published(tmp_path / "osediff.safetensors", "osediff")
    return tmp_path


@pytest.fixture
def run(base: Path, folder: Path) -> Convert:
    """Convert a file of ``folder``, by default OSEDiff's with the diffusers folder; the result goes to "out"."""
    (folder / "out").mkdir()

    def call(
        key: str = "osediff",
        adapter: str = "osediff.safetensors",
        *,
        interrupt: Interrupt = NEVER,
        **options: object,
    ) -> list[Path]:
        unet, vae = (Path(str(options.pop(kind, base))) for kind in ("unet", "vae"))
        given = read_prompts(Path(str(options.pop("prompt", base / "prompts.safetensors"))))
        sources = Sources(adapter=folder / adapter, unet=unet, vae=vae)
        conversion = Conversion(relative=find_relative(key), sources=sources, **options)  # type: ignore[arg-type]
        return convert(conversion, given, folder / "out", interrupt)

    return call


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a file and keep its metadata."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, path, metadata)


def test_a_pickled_file_gives_the_files_of_its_relative(run: Convert, folder: Path) -> None:
    write_published(folder / "osediff.pkl", "osediff")
    files = run(adapter="osediff.pkl")
    assert [path.name for path in files] == ["osediff-unet.safetensors", "osediff-vae.safetensors"]
    unet, vae = read_unet(files[0]), read_vae(files[1])
    assert unet.spec.arch == UNET_ARCH
    assert vae.spec.arch == VAE_ARCH
    assert (unet.spec.timestep, unet.spec.prediction, unet.spec.guidance, unet.spec.scale) == (999, "epsilon", 1.0, 4.0)
    assert (unet.spec.c_skip, unet.spec.c_out) == one_step_coefficients("epsilon", alpha_bar(999))
    assert unet.spec.latent_scaling == vae.spec.latent_scaling == 0.18215
    assert unet.positive.equal(prompts()["prompt.positive"])
    assert unet.state["conv_in.weight"].dtype == torch.float16
    assert unet.spec.title == "OSEDiff"
    # Which files it was made of, by name: folders may tell more than the user wants to show.
    assert unet.spec.source.startswith("https://github.com/cswry/OSEDiff (osediff.pkl), merged into ")
    assert str(folder) not in unet.spec.source


@pytest.mark.parametrize("key", FILES)
def test_every_pickled_file_holds_what_its_safetensors_hold(tmp_path: Path, key: str) -> None:
    tensors, values = read(write_published(tmp_path / "published.pkl", key))
    again = tmp_path / "published.safetensors"
    assert_same(tensors, load_file(write_published(again, key)))
    with published_file(again) as published:
        assert published.values == values


def test_pisa_sr_keeps_its_two_strengths_as_two_unets_and_leaves_the_vae(run: Convert, folder: Path) -> None:
    write_published(folder / "pisa.safetensors", "pisa-sr")
    both, pixel, vae = run("pisa-sr", "pisa.safetensors", dtype=torch.float32)
    assert (both.name, pixel.name) == ("pisa-sr-unet.safetensors", "pisa-sr-pixel-unet.safetensors")
    assert read_unet(pixel).spec.title == "PiSA-SR (pixel only)"
    assert not torch.equal(read_unet(both).state["conv_in.weight"], read_unet(pixel).state["conv_in.weight"])
    assert_same(read_vae(vae).state, base_vae())


def test_every_layout_of_the_base_gives_the_same(run: Convert, base: Path, folder: Path) -> None:
    expected = read_unet(run(dtype=torch.float32)[0]).state
    unet = {f"model.diffusion_model.{name}": one for name, one in ldm.unet_to_ldm(base_unet(), UNET_ARCH).items()}
    vae = {f"first_stage_model.{name}": one for name, one in ldm.vae_to_ldm(base_vae(), 4).items()}
    save_file({**unet, **vae}, folder / "checkpoint.safetensors")
    save_file(ldm.unet_to_ldm(base_unet(), UNET_ARCH), folder / "comfyui-unet.safetensors")
    save_file(ldm.vae_to_ldm(base_vae(), 4), folder / "comfyui-vae.safetensors")
    for unet_path, vae_path in (
        (folder / "checkpoint.safetensors", folder / "checkpoint.safetensors"),
        (folder / "comfyui-unet.safetensors", folder / "comfyui-vae.safetensors"),
        (base / "unet", base / "vae"),
    ):
        for path in (folder / "out").iterdir():
            path.unlink()
        assert_same(read_unet(run(unet=unet_path, vae=vae_path, dtype=torch.float32)[0]).state, expected)


def test_the_exact_file_of_a_folder_goes_before_the_halved_one(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    exact, halved = (tmp_path / "unet" / f"diffusion_pytorch_model{kind}.safetensors" for kind in ("", ".fp16"))
    exact.touch()
    halved.touch()
    assert find_weights(tmp_path, "unet") == exact
    exact.unlink()
    assert find_weights(tmp_path / "unet", "unet").samefile(halved)


def test_a_folder_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"expected vae/diffusion_pytorch_model\.safetensors in the folder out"):
        find_weights(tmp_path / "out", "vae")


def test_a_layer_without_its_adapter_is_named(run: Convert, folder: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for half in "AB":
            del tensors[f"state_dict_unet/mid_block.resnets.0.conv1.lora_{half}.default_others.weight"]

    rewrite(folder / "osediff.safetensors", drop)
    with pytest.raises(CheckpointError, match=r"osediff\.safetensors: .* 1 missing: mid_block\.resnets\.0\.conv1"):
        run()


def test_a_layer_that_no_list_has_is_named(run: Convert, folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["state_dict_unet/new.lora_A.default_others.weight"] = torch.zeros(4, 8)
        tensors["state_dict_unet/new.lora_B.default_others.weight"] = torch.zeros(8, 4)

    rewrite(folder / "osediff.safetensors", add)
    with pytest.raises(CheckpointError, match="1 unknown: new"):
        run()


def test_a_base_of_other_widths_is_refused_by_the_first_tensor_that_differs(run: Convert, folder: Path) -> None:
    other = {name: torch.cat([one, one]) if name == "conv_in.weight" else one for name, one in base_unet().items()}
    save_file(other, folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"conv_in\.weight is \[128, 4, 3, 3\] instead of"):
        run(unet=folder / "other.safetensors")


def test_a_model_that_is_converted_already_is_no_base(run: Convert, folder: Path) -> None:
    unet, vae = run()
    vae.unlink()
    unet.rename(folder / "converted.safetensors")
    with pytest.raises(CheckpointError, match=r"converted\.safetensors: .*GenDR's already"):
        run(unet=folder / "converted.safetensors")


def test_a_missing_or_wrong_prompt_is_refused(run: Convert, folder: Path) -> None:
    save_file({"other": torch.zeros(2)}, folder / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"none\.safetensors: expected a tensor prompt\.positive .*found other"):
        run(prompt=folder / "none.safetensors")
    save_file({"prompt.positive": torch.zeros(77, 768)}, folder / "wide.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a positive prompt of shape \[tokens, 32\], got \[77, 768\]"):
        run(prompt=folder / "wide.safetensors")


def test_s3diff_needs_a_degradation_and_a_negative_prompt(run: Convert, folder: Path) -> None:
    write_published(folder / "s3diff.safetensors", "s3diff")
    with pytest.raises(OptionError, match="estimates in each image, and a file holds one state"):
        run("s3diff", "s3diff.safetensors")
    with pytest.raises(OptionError, match=r"from 0 to 1, got 0\.5 and 1\.5"):
        run("s3diff", "s3diff.safetensors", degradation=(0.5, 1.5))
    save_file({"prompt.positive": prompts()["prompt.positive"]}, folder / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"guidance 1\.07 needs a negative prompt"):
        run("s3diff", "s3diff.safetensors", degradation=(0.5, 0.5), prompt=folder / "one.safetensors")
    mild = run("s3diff", "s3diff.safetensors", degradation=(0.1, 0.1))
    first = read_unet(mild[0])
    assert first.spec.title == "S3Diff at blur 0.1, noise 0.1"
    for path in mild:
        path.unlink()
    strong = read_unet(run("s3diff", "s3diff.safetensors", degradation=(0.9, 0.2))[0])
    assert not torch.equal(first.state["conv_out.weight"], strong.state["conv_out.weight"])


def test_a_degradation_is_refused_where_it_means_nothing(run: Convert) -> None:
    with pytest.raises(OptionError, match="expected no --degradation"):
        run(degradation=(0.5, 0.5))


def test_files_in_the_way_stay(run: Convert, folder: Path) -> None:
    (folder / "out" / "osediff-vae.safetensors").write_bytes(b"mine")
    with pytest.raises(OptionError, match=r"osediff-vae\.safetensors exist already"):
        run()
    assert [path.read_bytes() for path in (folder / "out").iterdir()] == [b"mine"]


def test_a_failure_after_the_first_file_leaves_none(
    run: Convert, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(module, "write_vae", fail)
    with pytest.raises(CheckpointError, match="the disk is full"):
        run()
    assert list((folder / "out").iterdir()) == []


def test_stopped_between_two_tensors_nothing_is_left(run: Convert, folder: Path) -> None:
    counting = Stopping()
    files = run(interrupt=counting)
    num_tensors = len(read_unet(files[0]).state) + len(read_vae(files[1]).state)
    assert counting.asked > num_tensors
    for path in files:
        path.unlink()
    # The last ones with the UNet's file in place.
    for at in (1, 2, 3, 4, 5, counting.asked // 2, counting.asked - 1, counting.asked):
        stopping = Stopping(at)
        with pytest.raises(InterruptedError):
            run(interrupt=stopping)
        assert stopping.asked == at
        assert list((folder / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("transformer.transformer_blocks.3.attn.to_q.lora_A.weight", "TSD-SR"),
        ("transformer_blocks.0.attn.to_q.lora_A.default.weight", "TSD-SR"),
        ("input_blocks.3.1.blocks.0.attn.relative_position_bias_table", "SinSR"),
        ("state_dict/middle_block.1.blocks.0.attn.relative_position_bias_table", "SinSR"),
        ("encoder.down_blocks.0.resnets.0.time_emb_proj.weight", "InvSR"),
        ("module.body.1.conv_in.weight", "AdcSR"),
        ("params_ema/map_layer0.weight", "CTMSR"),
    ],
)
def test_the_file_of_one_that_cannot_be_had_is_recognised(run: Convert, folder: Path, name: str, title: str) -> None:
    save_file({name: noise(name, (4, 4))}, folder / "other.safetensors")
    with pytest.raises(GenDRError, match=rf"expected the file of HYPIR-SD2, got that of {title}: "):
        run("hypir-sd2", "other.safetensors")


def test_the_file_of_another_relative_is_told_apart(run: Convert, folder: Path) -> None:
    write_published(folder / "pisa.safetensors", "pisa-sr")
    for key in ("osediff", "hypir-sd2", "s3diff"):
        with pytest.raises(CheckpointError, match="got that of PiSA-SR: run gendr convert pisa-sr"):
            run(key, "pisa.safetensors", degradation=(0.5, 0.5) if key == "s3diff" else None)
    write_published(folder / "hypir.safetensors", "hypir-sd2")
    with pytest.raises(CheckpointError, match="expected the file of OSEDiff, which has unet_lora_encoder_modules"):
        run("osediff", "hypir.safetensors")


def test_a_file_that_is_no_relative_at_all_is_refused(run: Convert, folder: Path) -> None:
    save_file({"weight": torch.zeros(2)}, folder / "other.safetensors")
    with pytest.raises(CheckpointError, match="expected adapters only, got 1 other tensors"):
        run("hypir-sd2", "other.safetensors")
