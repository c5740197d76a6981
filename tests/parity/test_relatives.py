"""Converted relatives against what their own public code made of the same weights: parity/relatives/README.md."""

from pathlib import Path

import pytest
import torch
from relative_files import DEGRADATION, FILES, picture, write_bases, write_published, write_tvt_bases
from safetensors.torch import load_file
from torch import Tensor

from gendr_core.convert import Conversion, Sources, convert, read_prompts
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.model import load_unet, load_vae
from gendr_core.relatives import find_relative
from gendr_core.step import one_step

RECORDS = Path(__file__).parent / "relatives"
TOLERANCE = 1e-4
"""Bound on max |difference| / max |reference| in fp32."""
STRENGTHS = (0.8, 1.4)
"""Of pixels and semantics, in the record ``adjusted_latent``."""


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Return max |difference| / max |reference|."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bases and prompts."""
    write_bases(tmp_path)
    write_tvt_bases(tmp_path)
    return tmp_path


def restored(folder: Path, key: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Convert; return the latents of every UNet, the latent they began with, and the picture of the first."""
    unet, vae = (folder / "TVTUNet", folder / "vae.ckpt") if key == "tvt" else (folder, folder)
    conversion = Conversion(
        relative=find_relative(key),
        sources=Sources(adapter=write_published(folder / "published.safetensors", key), unet=unet, vae=vae),
        degradation=DEGRADATION if key == "s3diff" else None,
        dtype=torch.float32,
    )
    files = convert(conversion, read_prompts(folder / "prompts.safetensors"), folder)
    vae = load_vae(files[-1])
    with torch.inference_mode():
        latent = encode(picture(), "vae16", vae)
        latents = [one_step(latent, load_unet(file)) for file in files[:-1]]
        return latents, latent, decode(latents[0], "vae16", vae)


@pytest.mark.parametrize("key", FILES)
def test_a_converted_relative_gives_what_its_own_code_gave(folder: Path, key: str) -> None:
    record = load_file(RECORDS / f"{key}.safetensors")
    latents, _, pixels = restored(folder, key)
    assert relative_error(latents[0], record["latent"]) <= TOLERANCE
    assert relative_error(pixels, record["image"]) <= TOLERANCE


def test_the_two_unets_of_pisa_sr_give_what_its_strengths_gave(folder: Path) -> None:
    record = load_file(RECORDS / "pisa-sr.safetensors")
    (both, pixel), start, _ = restored(folder, "pisa-sr")
    of_pixels, of_semantics = STRENGTHS
    adjusted = start + of_pixels * (pixel - start) + of_semantics * (both - pixel)
    assert relative_error(pixel, record["pixel_latent"]) <= TOLERANCE
    assert relative_error(adjusted, record["adjusted_latent"]) <= TOLERANCE


@pytest.mark.parametrize("key", FILES)
def test_the_records_would_show_an_adapter_that_was_left_out(
    folder: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = load_file(RECORDS / f"{key}.safetensors")
    for module in ("osediff", "pisasr", "hypir", "s3diff", "tvt"):
        monkeypatch.setattr(f"gendr_core.relatives.{module}.merge", lambda base, *_: dict(base))
    latents, _, _ = restored(folder, key)
    assert relative_error(latents[0], record["latent"]) > 100 * TOLERANCE
