"""Memory that runs out anywhere: the right image or a typed error, never another image."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from faults import ScarceMemory
from networks import seeded, tiny_unet, tiny_vae

from gendr_core.backoff import Ladder, run_end, run_stage, run_twice
from gendr_core.config import MemoryOptions, RestoreOptions
from gendr_core.errors import OutOfMemoryError
from gendr_core.host import Meter
from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.nets import UNet
from gendr_core.pipeline import restore
from gendr_core.plan import Bands, StagePlan

IMAGE = torch.rand(1, 12, 10, 3, generator=torch.Generator().manual_seed(7))


def pixel_unet() -> GenDRUNet:
    return tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8")


def models(kind: str) -> tuple[GenDRUNet, GenDRVAE | None]:
    return (pixel_unet(), None) if kind == "pixel" else (tiny_unet(), tiny_vae())


def way(num_bytes: int) -> StagePlan:
    return StagePlan(bands=Bands(band_bytes=num_bytes), activation_bytes=num_bytes)


def ladder(*sizes: int, room_bytes: int = 10**9) -> Ladder:
    ways: Iterator[StagePlan] = iter([way(size) for size in sizes])
    return Ladder("step", ways, device_type="cpu", room_bytes=room_bytes, resident_bytes=7)


@pytest.mark.parametrize("kind", ["pixel", "pair"])
def test_one_refused_allocation_anywhere_changes_nothing(kind: str) -> None:
    unet, vae = models(kind)
    expected = restore(IMAGE, unet, vae)
    with ScarceMemory() as memory:
        restore(IMAGE, unet, vae)
    assert memory.count > 50
    for number in range(memory.count):
        with ScarceMemory(refused=range(number, number + 1)) as scarce:
            result = restore(IMAGE, unet, vae)
        assert scarce.count > number
        assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["pixel", "pair"])
def test_memory_that_never_comes_back_is_a_typed_error(kind: str) -> None:
    unet, vae = models(kind)
    # Once before, so that the sketches of the planner are remembered and every run allocates the same.
    restore(IMAGE, unet, vae)
    with ScarceMemory() as memory:
        restore(IMAGE, unet, vae)
    for number in range(0, memory.count, 7):
        with pytest.raises(OutOfMemoryError, match="smaller output"), ScarceMemory(refused=range(number, 10**9)):
            restore(IMAGE, unet, vae)


def test_a_frame_that_does_not_fit_whole_goes_on_in_tiles() -> None:
    # Wider than pixels are: an activation is larger than the frame.
    arch = replace(pixel_unet().spec.arch, block_out_channels=(256, 8), attention_levels=(False, False))
    small = pixel_unet()
    unet = replace(small, spec=replace(small.spec, arch=arch), network=seeded(UNet(arch), 9))
    image = torch.rand(1, 200, 150, 3, generator=torch.Generator().manual_seed(8))
    options = RestoreOptions(scale=4.0, memory=MemoryOptions(tile_px=256))
    tiled = RestoreOptions(scale=4.0, memory=MemoryOptions(mode="tiles", tile_px=256))
    expected = restore(image, unet, options=tiled)
    frame_bytes = 3 * 4 * 832 * 640
    with ScarceMemory(most_bytes=frame_bytes) as memory:
        result = restore(image, unet, options=options)
    assert memory.count > 0
    assert torch.allclose(result, expected, atol=1e-5)


def test_ladder_takes_the_first_that_fits_and_climbs_down() -> None:
    steps = ladder(100, 60, 80, 30, room_bytes=90)
    assert steps.plan.activation_bytes == 60
    assert steps.climb_down()
    assert steps.plan.activation_bytes == 30
    assert not steps.climb_down()
    assert steps.plan.activation_bytes == 30


def test_nothing_that_fits_says_how_much_is_needed() -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"at least 2\.00 KiB of activations in step beside 7 B of weights, got 5 B"
    ):
        ladder(4096, 2048, room_bytes=5)


def test_a_stage_is_done_again_with_less_until_it_succeeds() -> None:
    seen: list[int] = []
    meter = Meter()

    def compute(x: torch.Tensor, plan: StagePlan) -> torch.Tensor:
        seen.append(plan.activation_bytes)
        meter.flops += 10
        if plan.activation_bytes > 40:
            raise torch.OutOfMemoryError("no")
        return x + 1

    steps, frame = ladder(100, 60, 30), torch.zeros(1, 2)
    assert torch.equal(run_stage(steps, meter, frame, compute), frame + 1)
    assert seen == [100, 60, 30]
    assert meter.flops == 10
    assert torch.equal(run_stage(steps, meter, frame, compute), frame + 1)
    assert seen[3:] == [30]


def test_frames_go_through_as_many_at_a_time_as_the_plan_says() -> None:
    seen: list[int] = []

    def compute(x: torch.Tensor, plan: StagePlan) -> torch.Tensor:
        seen.append(len(x))
        if plan.batch > 2:
            raise torch.OutOfMemoryError("no")
        return 2 * x

    ways = (StagePlan(batch=batch, activation_bytes=batch) for batch in (4, 2))
    steps = Ladder("step", ways, device_type="cpu", room_bytes=10, resident_bytes=0)
    frames = torch.arange(10.0).view(5, 2)
    assert torch.equal(run_stage(steps, Meter(), frames, compute), 2 * frames)
    assert seen == [4, 2, 2, 1]


def test_the_ends_go_on_with_the_processor_where_a_device_has_no_room(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def compute(device: torch.device) -> str:
        seen.append(device.type)
        if device.type == "meta":
            raise torch.OutOfMemoryError("no")
        return "done"

    assert run_end("prepare", torch.device("meta"), compute) == "done"
    assert seen == ["meta", "cpu"]
    assert "prepare ran out of memory on meta" in caplog.text


def test_the_last_way_is_tried_twice() -> None:
    seen: list[int] = []

    def compute(_: torch.Tensor, plan: StagePlan) -> torch.Tensor:
        seen.append(plan.activation_bytes)
        raise torch.OutOfMemoryError("no")

    with pytest.raises(OutOfMemoryError, match="at least 60 B"):
        run_stage(ladder(100, 60), Meter(), torch.zeros(1), compute)
    assert seen == [100, 60, 60]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), InterruptedError("stop")])
def test_other_errors_pass_at_once(error: Exception) -> None:
    calls: list[int] = []

    def compute(*_: Any) -> torch.Tensor:
        calls.append(1)
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_stage(ladder(2, 1), Meter(), torch.zeros(1), compute)
    with pytest.raises(type(error), match=str(error)):
        run_twice("color", compute)
    assert len(calls) == 2


def test_what_does_not_fit_is_said_once() -> None:
    with pytest.raises(OutOfMemoryError, match=r"^expected room for at least \S+ KiB of activations in encode"):
        restore(IMAGE, pixel_unet(), options=RestoreOptions(memory=MemoryOptions(budget_bytes=400_000)))
