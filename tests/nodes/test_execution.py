from types import SimpleNamespace
from typing import Any

import comfy_stub
import pytest
import torch
from pack import Pack
from weights import LATENT, PIXEL


def image_of(height: int, width: int, channels: int = 3, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(5))


def run(pack: Pack, node_id: str, **inputs: Any) -> tuple[Any, ...]:
    with torch.inference_mode():
        return pack.nodes[node_id].execute(**inputs).args


PLAIN = {"detail": 1.0, "feather": 8, "guidance": 0.0}
SIZE = {"size": "by factor", "factor": 2.0, "edge": 1}
TILES = {"memory": "tiles", "tile": 64, "overlap": 0, "tile_batch": 2}


@pytest.fixture
def model(pack: Pack) -> Any:
    return run(pack, "GenDR_LoadUNet", unet=PIXEL)[0]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_restore_gives_the_size_and_layout_it_promises(pack: Pack, model: Any, channels: int) -> None:
    image = image_of(7, 13, channels, batch=2)
    (restored,) = run(pack, "GenDR_Restore", image=image, model=model, color="wavelet", **PLAIN, **SIZE)
    assert (restored.shape, restored.dtype, restored.device.type) == ((2, 14, 26, channels), torch.float32, "cpu")
    assert pack.record.loaded == ["UNet", "UNet"]
    assert pack.record.progress[-1] == (1000, 1000)


@pytest.mark.parametrize("memory", [{}, TILES], ids=["whole", "tiles"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_parts_in_a_row_equal_the_whole(pack: Pack, model: Any, channels: int, memory: dict[str, Any]) -> None:
    image = image_of(49, 35, channels, batch=3)
    latent, reference = run(pack, "GenDR_Encode", image=image, model=model, **SIZE)
    (latent,) = run(pack, "GenDR_OneStep", latent=latent, model=model, guidance=0.0, **memory)
    (parts,) = run(pack, "GenDR_Decode", latent=latent, model=model)
    (whole,) = run(pack, "GenDR_Restore", image=image, model=model, color="none", **PLAIN, **SIZE, **memory)
    assert torch.equal(parts, whole)
    assert reference.shape == (3, 98, 70, 3)


def test_tiles_look_different_from_the_whole(pack: Pack, model: Any) -> None:
    inputs = {"image": image_of(49, 35), "model": model, "color": "none", **PLAIN, **SIZE}
    (whole,), (tiled,) = run(pack, "GenDR_Restore", **inputs), run(pack, "GenDR_Restore", **inputs, **TILES)
    assert not torch.equal(whole, tiled)


@pytest.mark.parametrize("node_id", ["GenDR_Restore", "GenDR_Plan", "GenDR_Encode"])
def test_a_budget_that_nothing_fits_in_is_named(pack: Pack, model: Any, node_id: str) -> None:
    rest = {} if node_id == "GenDR_Encode" else {"color": "none", **PLAIN}
    with pytest.raises(MemoryError, match=r"expected room for at least .* beside .* of weights, got 0 B"):
        run(pack, node_id, image=image_of(8, 8), model=model, budget_gib=0.0001, **SIZE, **rest)


def test_the_plan_says_what_restore_would_do(pack: Pack, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    inputs = {"image": image_of(49, 35, batch=2), "model": model, "color": "none", **PLAIN, **SIZE, **TILES}
    text, peak_gib, tflop, mode = run(pack, "GenDR_Plan", **inputs)
    assert pack.record.loaded == pack.record.progress == []
    assert mode == "tiles"
    assert 0.0 < tflop < 1.0
    weights = sum(parameter.nbytes for parameter in model.unet.network.parameters())
    assert weights < peak_gib * 2**30 < weights + 2**30
    caplog.set_level("INFO")
    run(pack, "GenDR_Restore", **inputs)
    assert text.splitlines()[0] in caplog.messages
    stages = [line.split(":")[0] for line in text.splitlines()[2:-1]]
    assert stages == ["prepare", "encode", "step", "decode", "color"]


def test_the_plan_is_shown_and_needs_no_other_node(pack: Pack, model: Any) -> None:
    node = pack.nodes["GenDR_Plan"]
    shown = node.execute(image_of(8, 8), model, color="none", **PLAIN, **SIZE)
    assert shown.ui.value == shown.args[0]
    assert node.define_schema().is_output_node


def test_work_that_is_done_twice_is_asked_of_the_hosts_layers(pack: Pack, model: Any) -> None:
    # A band of one row: every layer then needs its weights by themselves.
    latent, band = torch.rand(1, 192, 8, 8), pack.host.replace(pack.host.band_sizes("cpu")[0], band_bytes=1)
    frame = pack.host.BandedFrame(band, model.unet.network.operations)
    with torch.inference_mode():
        banded = model.unet.network(latent, 354, model.unet.positive[None], run=frame)
        assert pack.record.weights_asked > 0
        torch.testing.assert_close(
            banded, model.unet.network(latent, 354, model.unet.positive[None]), rtol=0, atol=1e-4
        )


def test_a_latent_from_elsewhere_is_decoded_whole(pack: Pack, model: Any) -> None:
    (image,) = run(pack, "GenDR_Decode", latent={"samples": torch.zeros(1, 192, 2, 3)}, model=model)
    assert image.shape == (1, 16, 24, 3)


def test_a_resized_latent_and_a_picked_alpha_are_refused(pack: Pack, model: Any) -> None:
    latent, _ = run(pack, "GenDR_Encode", image=image_of(8, 8, 4, batch=2), model=model, **SIZE)
    with pytest.raises(ValueError, match="resize the image, not the latent"):
        run(pack, "GenDR_Decode", latent={**latent, "samples": torch.zeros(2, 192, 16, 16)}, model=model)
    with pytest.raises(ValueError, match="expected 2 latents"):
        run(pack, "GenDR_Decode", latent={**latent, "samples": latent["samples"][:1]}, model=model)


def test_one_reference_serves_a_batch_and_is_resized(pack: Pack) -> None:
    image, reference = image_of(12, 16, batch=2), torch.full((1, 3, 4, 3), 0.25)
    (matched,) = run(pack, "GenDR_MatchColor", image=image, reference=reference, color="adain")
    assert matched.shape == image.shape
    assert torch.allclose(matched.mean(dim=(1, 2)), torch.full((2, 3), 0.25), atol=0.01)


def test_a_batch_of_references_has_the_length_of_the_images(pack: Pack) -> None:
    images, references = image_of(6, 8, batch=3), image_of(3, 4, 4, batch=3)
    (matched,) = run(pack, "GenDR_MatchColor", image=images, reference=references, color="wavelet")
    for index in range(3):
        one = {"image": images[index][None], "reference": references[index][None]}
        assert torch.equal(run(pack, "GenDR_MatchColor", color="wavelet", **one)[0][0], matched[index])
    with pytest.raises(ValueError, match="expected 1 reference, or one for each of 3 images, got 2"):
        run(pack, "GenDR_MatchColor", image=images, reference=references[:2], color="wavelet")


def test_alpha_stays_where_colours_are_matched(pack: Pack) -> None:
    image, reference = image_of(6, 8, 4), image_of(6, 8)
    (matched,) = run(pack, "GenDR_MatchColor", image=image, reference=reference, color="adain")
    assert matched.shape == image.shape
    assert torch.equal(matched[..., 3], image[..., 3])


def test_restore_takes_a_mask_a_colour_reference_and_a_strength_of_detail(pack: Pack, model: Any) -> None:
    image = image_of(16, 24, batch=2)
    inputs = {"image": image, "model": model, "color": "wavelet", **PLAIN, **SIZE}
    (plain,) = run(pack, "GenDR_Restore", **inputs)
    (full,) = run(pack, "GenDR_Restore", mask=torch.ones(1, 64, 64), color_reference=image, **inputs)
    assert torch.equal(full, plain)
    (empty,) = run(pack, "GenDR_Restore", mask=torch.zeros(1, 64, 64), **inputs)
    assert torch.equal(empty, run(pack, "GenDR_Encode", image=image, model=model, **SIZE)[1])
    half = torch.zeros(2, 32, 48)
    half[:, :, :24] = 1.0
    (mixed,) = run(pack, "GenDR_Restore", mask=half, **inputs | {"feather": 4})
    assert torch.equal(mixed[:, :, :20], plain[:, :, :20])
    assert torch.equal(mixed[:, :, 28:], empty[:, :, 28:])
    (soft,) = run(pack, "GenDR_Restore", **inputs | {"detail": 0.0})
    assert not torch.equal(soft, plain)
    with pytest.raises(ValueError, match="expected 1 mask, or one for each of 2 images, got 3"):
        run(pack, "GenDR_Restore", mask=torch.ones(3, 8, 8), **inputs)


@pytest.mark.parametrize("shape", [(16, 24), (1, 1, 16, 24)])
def test_masks_are_read_as_the_hosts_nodes_read_them(pack: Pack, model: Any, shape: tuple[int, ...]) -> None:
    mask = image_of(16, 24, 1)[..., 0]
    inputs = {"image": image_of(8, 12), "model": model, "color": "wavelet", **PLAIN, **SIZE}
    (expected,) = run(pack, "GenDR_Restore", mask=mask, **inputs)
    assert torch.equal(run(pack, "GenDR_Restore", mask=mask.reshape(shape), **inputs)[0], expected)


def test_halves_are_taken_where_the_host_keeps_images_and_latents_so(pack: Pack, model: Any) -> None:
    image, mask, colors = image_of(9, 14), image_of(9, 14, 1, batch=1)[..., 0], image_of(5, 6)
    inputs = {"model": model, "color": "wavelet", **PLAIN, **SIZE}
    given = {"image": image, "mask": mask, "color_reference": colors}
    (expected,) = run(pack, "GenDR_Restore", **inputs, **given)
    halves = {name: tensor.half() for name, tensor in given.items()}
    (restored,) = run(pack, "GenDR_Restore", **inputs, **halves)
    assert restored.dtype == torch.float32
    torch.testing.assert_close(restored, expected, rtol=0, atol=5e-3)
    latent, reference = run(pack, "GenDR_Encode", image=image.half(), model=model, **SIZE)
    assert (latent["samples"].dtype, reference.dtype) == (torch.float32, torch.float32)
    samples = {**latent, "samples": latent["samples"].half()}
    (stepped,) = run(pack, "GenDR_OneStep", latent=samples, model=model, guidance=0.0)
    (decoded,) = run(pack, "GenDR_Decode", latent={**stepped, "samples": stepped["samples"].half()}, model=model)
    (matched,) = run(pack, "GenDR_MatchColor", image=decoded.half(), reference=reference.half(), color="wavelet")
    assert matched.dtype == torch.float32


@pytest.mark.parametrize("node_id", ["GenDR_Restore", "GenDR_Plan", "GenDR_Encode", "GenDR_MatchColor"])
def test_a_video_is_refused_where_a_batch_of_images_goes(pack: Pack, model: Any, node_id: str) -> None:
    video = image_of(4, 4, batch=2)[None]
    inputs: dict[str, Any] = {"model": model, **SIZE}
    if node_id == "GenDR_MatchColor":
        inputs = {"reference": image_of(4, 4), "color": "adain"}
    elif node_id != "GenDR_Encode":
        inputs |= {"color": "wavelet", **PLAIN}
    with pytest.raises(ValueError, match=r"got 5 with shape .*: give the frames of a video as one batch"):
        run(pack, node_id, image=video, **inputs)


@pytest.mark.parametrize("node_id", ["GenDR_OneStep", "GenDR_Decode"])
def test_the_latent_of_a_video_is_refused(pack: Pack, model: Any, node_id: str) -> None:
    inputs = {"guidance": 0.0} if node_id == "GenDR_OneStep" else {}
    with pytest.raises(ValueError, match=r"got 5 with shape .*: take single frames"):
        run(pack, node_id, latent={"samples": torch.zeros(1, 192, 3, 2, 2)}, model=model, **inputs)


def test_missing_and_foreign_vaes_are_named(pack: Pack) -> None:
    (model,) = run(pack, "GenDR_LoadUNet", unet=LATENT)
    inputs = {"image": image_of(8, 8), "model": model, "color": "none", **PLAIN, **SIZE}
    with pytest.raises(ValueError, match="expected a VAE, got none"):
        run(pack, "GenDR_Restore", **inputs)
    foreign = SimpleNamespace(latent_channels=4, patcher=None)
    with pytest.raises(ValueError, match="Load GenDR VAE16, got another one"):
        run(pack, "GenDR_Restore", vae=foreign, **inputs)


def test_cancel_passes_through(pack: Pack, model: Any) -> None:
    pack.record.cancel_at_check = 5
    with pytest.raises(comfy_stub.InterruptedByUserError):
        run(pack, "GenDR_Restore", image=image_of(8, 8), model=model, color="none", **PLAIN, **SIZE)
    assert 0 < pack.record.progress[-1][0] < 1000


def test_a_replaced_file_changes_the_stamp_and_a_missing_one_is_named(pack: Pack) -> None:
    loader = pack.nodes["GenDR_LoadUNet"]
    assert loader.fingerprint_inputs(PIXEL) == loader.fingerprint_inputs(PIXEL) != loader.fingerprint_inputs(LATENT)
    with pytest.raises(ValueError, match=r"'gone\.safetensors' in models/diffusion_models"):
        loader.execute("gone.safetensors")
