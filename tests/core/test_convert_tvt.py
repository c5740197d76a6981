"""TVT's conversion: a base of its own, pickled in part, and latent cells of 4 pixels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from relative_files import (
    TVT_UNET_ARCH,
    TVT_VAE_ARCH,
    tvt,
    tvt_unet,
    tvt_vae,
    write_bases,
    write_published,
    write_tvt_bases,
)
from safetensors.torch import load_file, save_file
from weightfiles import assert_same

from gendr_core.checkpoint import inspect, read_unet, read_vae
from gendr_core.convert import Conversion, Sources, convert, read_prompts
from gendr_core.errors import CheckpointError
from gendr_core.model import load_unet, load_vae
from gendr_core.pipeline import restore
from gendr_core.relatives import find_relative

Run = Callable[..., list[Path]]
WHOLE = "up_blocks.3.upsamplers.0.conv.weight"
"""A tensor that its file has whole."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Convert TVT's files, or others in their place; the result goes to "out"."""
    write_tvt_bases(tmp_path)
    write_published(tmp_path / "tvt.safetensors", "tvt")
    (tmp_path / "out").mkdir()

    def call(
        key: str = "tvt", adapter: str = "tvt.safetensors", *, unet: str = "TVTUNet", vae: str = "vae.ckpt"
    ) -> list[Path]:
        sources = Sources(adapter=tmp_path / adapter, unet=tmp_path / unet, vae=tmp_path / vae)
        conversion = Conversion(relative=find_relative(key), sources=sources, dtype=torch.float32)
        return convert(conversion, read_prompts(tmp_path / "prompts.safetensors"), tmp_path / "out")

    return call


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of TVT's own file, as it is pickled."""
    file = tvt()
    tensors = file["state_dict_unet"]
    assert isinstance(tensors, dict)
    change(tensors)
    torch.save(file, folder / "changed.pkl")


def test_its_files_are_those_of_a_model_with_cells_of_4_pixels(run: Run, tmp_path: Path) -> None:
    write_published(tmp_path / "model_TVT.pkl", "tvt")
    files = run(adapter="model_TVT.pkl")
    assert [path.name for path in files] == ["tvt-unet.safetensors", "tvt-vae.safetensors"]
    unet, vae = read_unet(files[0]), read_vae(files[1])
    assert (unet.spec.arch, vae.spec.arch) == (TVT_UNET_ARCH, TVT_VAE_ARCH)
    assert unet.spec.cell_px == vae.spec.arch.spatial_factor == 4
    assert unet.spec.latent_scaling == vae.spec.latent_scaling == 0.18215
    assert_same(vae.state, tvt_vae())
    # Trained without an adapter: as its file has it. With one: that and the change.
    published = load_file(tmp_path / "tvt.safetensors")
    name = "up_blocks.4.resnets.0.norm1.weight"
    assert torch.equal(unet.state[name], published[f"state_dict_unet/{name}"])
    whole = published[f"state_dict_unet/{WHOLE.replace('.weight', '.base_layer.weight')}"]
    up, down = (
        published[f"state_dict_unet/{WHOLE.replace('.weight', '')}.lora_{half}.default_decoder.weight"] for half in "BA"
    )
    change = (up.flatten(1) @ down.flatten(1)).reshape(whole.shape)
    torch.testing.assert_close(unet.state[WHOLE], whole + 8.0 / 4.0 * change)
    for path in files:
        assert inspect(path).problem is None


def test_what_was_converted_restores_any_size(run: Run) -> None:
    unet, vae = run()
    restored = restore(torch.rand(1, 9, 14, 3), load_unet(unet), load_vae(vae))
    assert restored.shape == (1, 36, 56, 3)
    assert restored.isfinite().all()


def test_its_vae_may_come_as_safetensors_with_or_without_its_prefix(run: Run, tmp_path: Path) -> None:
    save_file(tvt_vae(), tmp_path / "plain.safetensors")
    save_file({f"vaeDe4.{name}": tensor for name, tensor in tvt_vae().items()}, tmp_path / "prefixed.safetensors")
    for name in ("plain.safetensors", "prefixed.safetensors"):
        files = run(vae=name)
        assert_same(read_vae(files[1]).state, tvt_vae())
        for path in files:
            path.unlink()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (
            f"{WHOLE.removesuffix('.weight')}.base_layer.weight",
            r"changed\.pkl: .*missing are up_blocks\.3\.upsamplers\.0\.conv\.weight, unknown none",
        ),
        ("conv_in.lora_A.default_encoder.weight", r"one half of the adapter is missing in conv_in"),
        (
            "up_blocks.4.resnets.0.norm1.weight",
            r"expected the file of TVT, which has .*up_blocks\.4\.resnets\.0",
        ),
    ],
)
def test_what_its_file_lacks_is_named(run: Run, tmp_path: Path, gone: str, message: str) -> None:
    rewrite(tmp_path, lambda tensors: tensors.__delitem__(gone))
    with pytest.raises(CheckpointError, match=message):
        run(adapter="changed.pkl")
    assert not list((tmp_path / "out").iterdir())


def test_a_tensor_that_is_not_trained_whole_is_named(run: Run, tmp_path: Path) -> None:
    name = "mid_block.resnets.0.norm1.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({name: tvt_unet()[name]}))
    with pytest.raises(CheckpointError, match=r"missing are none, unknown mid_block\.resnets\.0\.norm1\.weight"):
        run(adapter="changed.pkl")


def test_other_bases_are_refused(run: Run, tmp_path: Path) -> None:
    write_bases(tmp_path / "sd21")
    with pytest.raises(CheckpointError, match=r"sd21: .*TVT's own .* with 4 pixels per latent cell, got 8"):
        run(vae="sd21")
    with pytest.raises(CheckpointError, match=r"tvt\.safetensors: .*made for another"):
        run(unet="sd21")
    write_published(tmp_path / "osediff.safetensors", "osediff")
    save_file(tvt_vae(), tmp_path / "tvt-vae.safetensors")
    with pytest.raises(CheckpointError, match="with 8 pixels per latent cell, got 4"):
        run("osediff", "osediff.safetensors", unet="sd21", vae="tvt-vae.safetensors")
    with pytest.raises(CheckpointError, match=r"vae\.ckpt: expected a safetensors file"):
        run("osediff", "osediff.safetensors", unet="sd21", vae="vae.ckpt")


def test_a_vae_file_that_names_code_or_holds_no_vae_is_refused(run: Run, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": {Path: 1}}, tmp_path / "hostile.ckpt")
    with pytest.raises(CheckpointError, match=r"hostile\.ckpt: .*it names pathlib\.Path"):
        run(vae="hostile.ckpt")
    torch.save({"state_dict": {"vaeDe8.encoder.conv_in.weight": torch.zeros(2, 2)}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt: .*expected a VAE"):
        run(vae="other.ckpt")


def test_its_file_is_told_from_those_of_others(run: Run, tmp_path: Path) -> None:
    write_bases(tmp_path / "sd21")
    with pytest.raises(CheckpointError, match="expected the file of OSEDiff, got that of TVT: run gendr convert tvt"):
        run("osediff", unet="sd21", vae="sd21")
    write_published(tmp_path / "osediff.safetensors", "osediff")
    with pytest.raises(CheckpointError, match="expected the file of TVT, got that of OSEDiff"):
        run(adapter="osediff.safetensors")
