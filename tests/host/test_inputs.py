"""What people connect: models of others, images of every kind, lists and long batches."""

from typing import Any

import numpy as np
import pytest
from comfy_server import Graph, Server, node
from PIL import Image
from placeholders import write_kl_vae
from weights import LATENT, PIXEL

pytestmark = pytest.mark.host

WIDGETS: dict[str, Any] = {"size": "by factor", "factor": 2.0, "edge": 64, "color": "wavelet"}
WIDGETS |= {"detail": 1.0, "feather": 8, "guidance": 0.0}


def restoring(unet: str = PIXEL, **sources: Any) -> Graph:
    return {
        "unet": node("GenDR_LoadUNet", unet=unet),
        "restore": node("GenDR_Restore", model=["unet", 0], **WIDGETS, **sources),
        "save": node("ProbeSave", image=["restore", 0], name="restored"),
    }


def saved(server: Server, name: str, pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    Image.fromarray(pixels).save(server.base / "input" / f"{name}.png")
    return node("LoadImage", image=f"{name}.png")


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("latent_channels", [4, 16], ids=["SD1.5", "Flux"])
def test_a_vae_of_another_model_is_named_with_what_to_connect(server: Server, latent_channels: int) -> None:
    name = f"other{latent_channels}.safetensors"
    write_kl_vae(server.base / "models" / "vae" / name, latent_channels)
    graph = restoring(LATENT, image=["image", 0], vae=["vae", 0])
    graph |= {"image": saved(server, "tiny", noise(8, 8, 3)), "vae": node("VAELoader", vae_name=name)}
    words = rf"GenDR_Restore: .*got another one \({latent_channels} latent channels\): connect Load GenDR VAE16"
    with pytest.raises(RuntimeError, match=words):
        server.run(graph)


def test_the_vae_file_of_another_model_is_named(server: Server) -> None:
    write_kl_vae(server.base / "models" / "vae" / "flux.safetensors", 16)
    write_kl_vae(server.base / "models" / "vae" / "sd15.safetensors", 4)
    graph = restoring(LATENT, image=["image", 0], vae=["vae", 0])
    graph |= {
        "image": saved(server, "tiny", noise(8, 8, 3)),
        "vae": node("GenDR_LoadVAE16", vae_file="flux.safetensors"),
    }
    with pytest.raises(RuntimeError, match=r"GenDR_LoadVAE16: flux\.safetensors: .*got the VAE of SD3 or FLUX"):
        server.run(graph)
    graph["vae"] = node("GenDR_LoadVAE16", vae_file="sd15.safetensors")
    with pytest.raises(RuntimeError, match=r"GenDR_Restore: .*expected a VAE with 16 latent channels, got 4"):
        server.run(graph)


def test_a_latent_of_another_vae_is_named(server: Server) -> None:
    graph = {
        "unet": node("GenDR_LoadUNet", unet=LATENT),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "step": node("GenDR_OneStep", latent=["empty", 0], model=["unet", 0], guidance=0.0),
        "decode": node("GenDR_Decode", latent=["step", 0], model=["unet", 0]),
        "save": node("ProbeSave", image=["decode", 0], name="never"),
    }
    with pytest.raises(RuntimeError, match=r"GenDR_OneStep: .*expected a latent of 16 channels.*got 4"):
        server.run(graph)


def test_a_list_of_images_of_different_sizes_is_restored_one_by_one(server: Server) -> None:
    graph = restoring(image=["images", 0])
    graph["images"] = node("ProbeImages", sizes="9x5 16x16 3x20")
    graph["save"] = node("SaveImage", images=["restore", 0], filename_prefix="listed")
    names = [image["filename"] for image in server.run(graph)["save"]["images"]]
    sizes = []
    for name in names:
        with Image.open(server.base / "output" / name) as image:
            sizes.append(image.size)
    assert sizes == [(18, 10), (32, 32), (6, 40)]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16"])
def test_files_of_every_kind_are_restored(server: Server, mode: str) -> None:
    # Later hosts cannot read gray files that are much smaller than 32 pixels.
    pixels = noise(24, 40, 4) if mode == "RGBA" else noise(24, 40)
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(server.base / "input" / "kind.png")
    graph = restoring(image=["image", 0])
    graph["image"] = node("LoadImage", image="kind.png")
    server.run(graph)
    assert server.floats("restored").shape == (1, 48, 80, 3)


def test_alpha_that_is_joined_again_goes_through(server: Server) -> None:
    graph = restoring(image=["join", 0])
    graph["image"] = saved(server, "clear", noise(12, 10, 4))
    graph["join"] = node("JoinImageWithAlpha", image=["image", 0], alpha=["image", 1])
    server.run(graph)
    restored = server.floats("restored")
    assert restored.shape == (1, 24, 20, 4)
    assert restored[..., 3].std() > 0.05


def test_a_painted_mask_of_another_size_restricts_the_restoration(server: Server) -> None:
    graph = restoring(image=["image", 0], mask=["mask", 0])
    graph["image"] = saved(server, "wide", noise(20, 40, 3))
    graph["mask"] = node("SolidMask", value=0.0, width=7, height=3)
    server.run(graph)
    kept = server.floats("restored")
    graph["encode"] = node("GenDR_Encode", image=["image", 0], model=["unet", 0], **dict(list(WIDGETS.items())[:3]))
    graph["resized"] = node("ProbeSave", image=["encode", 1], name="resized")
    server.run(graph)
    np.testing.assert_array_equal(kept, server.floats("resized"))


def test_every_frame_of_a_long_batch_is_as_if_it_were_alone(server: Server) -> None:
    graph = restoring(image=["batch", 0])
    graph["image"] = saved(server, "frame", noise(16, 16, 3))
    graph["batch"] = node("RepeatImageBatch", image=["image", 0], amount=200)
    server.run(graph)
    frames = server.floats("restored")
    assert frames.shape == (200, 32, 32, 3)
    graph["restore"]["inputs"]["image"] = ["image", 0]
    server.run(graph)
    np.testing.assert_array_equal(frames, np.repeat(server.floats("restored"), 200, axis=0))
