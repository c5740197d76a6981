"""Frames of a batch that go through the networks together, and ends that run on the networks' device."""

import pytest
import torch
from allocations import allocated_peak
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tiny_unet, tiny_vae

from gendr_core.config import COLOR_METHODS, ColorMethod, MemoryOptions, RestoreOptions
from gendr_core.errors import OptionError
from gendr_core.finish import Guides, finish
from gendr_core.geometry import Extent
from gendr_core.host import Host
from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.pipeline import restore
from gendr_core.plan import Plan
from gendr_core.planner import Planner, Task
from gendr_core.prepare import prepare
from gendr_core.staging import Downloads, upload

MIB, GIB = 2**20, 2**30
PROCESSOR = torch.device("cpu")


def models(kind: str) -> tuple[GenDRUNet, GenDRVAE | None]:
    if kind == "pixel":
        return tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8", c_skip=1.0, c_out=0.1), None
    return tiny_unet(negative=True), tiny_vae()


def batches_of(size: int) -> RestoreOptions:
    return RestoreOptions(scale=2.0, memory=MemoryOptions(frame_batch=size))


@pytest.mark.parametrize("kind", ["pixel", "pair"])
@given(
    num_frames=st.integers(2, 5), size=st.integers(2, 5), channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 9)
)
@settings(max_examples=8, deadline=None)
def test_frames_together_are_what_they_are_apart(
    kind: str, num_frames: int, size: int, channels: int, seed: int
) -> None:
    unet, vae = models(kind)
    noise = torch.Generator().manual_seed(seed)
    image = torch.rand(num_frames, 20, 37, channels, generator=noise)
    mask = torch.rand(num_frames, 9, 9, generator=noise)
    # One of them restores nothing.
    mask[seed % num_frames] = 0.0
    guides = Guides(mask=mask, color_reference=torch.rand(num_frames, 30, 8, 3, generator=noise))
    together = restore(image, unet, vae, batches_of(size), guides=guides)
    apart = restore(image, unet, vae, batches_of(1), guides=guides)
    torch.testing.assert_close(together, apart, rtol=0, atol=2e-5)


def test_the_bar_gets_to_its_end_in_groups_of_any_size() -> None:
    class Recorder:
        def update(self, done: int, total: int) -> None:
            assert total == 1000
            self.done = done

    unet, vae = models("pair")
    for size in (1, 2, 3, 9):
        recorder = Recorder()
        restore(torch.rand(3, 16, 16, 3), unet, vae, batches_of(size), host=Host(progress=recorder))
        assert recorder.done == 1000


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other convolutions have other scratch memory")
@pytest.mark.parametrize("kind", ["pixel", "pair"])
@pytest.mark.parametrize(("num_frames", "size", "channels"), [(3, 3, 3), (5, 2, 4), (4, 4, 1)])
def test_estimate_covers_groups_closely(kind: str, num_frames: int, size: int, channels: int) -> None:
    unet, vae = models(kind)
    image = torch.rand(num_frames, 60, 90, channels)
    task = Task(source=Extent(60, 90), channels=channels, frames=num_frames)
    plan = Planner(unet, vae, task, batches_of(size)).plan()
    estimate = plan.peak_bytes - max(plan.weight_bytes.values())
    measured = allocated_peak(lambda: restore(image, unet, vae, batches_of(size)))
    assert measured <= estimate <= 1.25 * measured


def test_a_group_that_does_not_fit_is_taken_apart() -> None:
    unet, vae = models("pair")
    task, large = Task(source=Extent(64, 64), frames=4), batches_of(4)
    whole = Planner(unet, vae, task, large)
    assert [getattr(whole, stage).plan.batch for stage in ("encode", "step", "decode")] == [4, 4, 4]
    less = RestoreOptions(scale=2.0, memory=MemoryOptions(frame_batch=4, budget_bytes=whole.plan().peak_bytes - 1))
    planner = Planner(unet, vae, task, less)
    assert planner.plan().peak_bytes < whole.plan().peak_bytes
    assert 1 in [getattr(planner, stage).plan.batch for stage in ("encode", "step", "decode")]
    image = torch.rand(4, 64, 64, 3)
    torch.testing.assert_close(restore(image, unet, vae, less), restore(image, unet, vae, large), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("device_type", "edge", "num_frames", "together"),
    [("cuda", 512, 100, 4), ("cuda", 512, 3, 3), ("cuda", 256, 100, 16), ("cuda", 2048, 100, 1), ("cpu", 256, 100, 1)],
)
def test_how_many_frames_go_together(device_type: str, edge: int, num_frames: int, together: int) -> None:
    unet, vae = models("pair")
    options = RestoreOptions(scale=1.0, memory=MemoryOptions(budget_bytes=60 * GIB))
    task = Task(source=Extent(edge, edge), frames=num_frames)
    planner = Planner(unet, vae, task, options, device_type=device_type)
    assert planner.together == together
    assert ("at a time" in planner.plan().describe()) == (together > 1)


@pytest.mark.parametrize(
    ("device_type", "budget_bytes", "there"),
    [("cuda", 60 * GIB, True), ("cuda", 100 * MIB, False), ("mps", 60 * GIB, False), ("cpu", 60 * GIB, True)],
)
def test_where_frames_are_prepared_and_finished(device_type: str, budget_bytes: int, there: bool) -> None:
    unet, _ = models("pixel")
    options = RestoreOptions(scale=1.0, memory=MemoryOptions(budget_bytes=budget_bytes))
    task = Task(source=Extent(1024, 1024), channels=4)
    plan = Planner(unet, None, task, options, device_type=device_type).plan()
    assert plan.ends_on_device == there
    # Both ends count for the peak only where they are on the device.
    everything = max(stage.activation_bytes for stage in plan.stages.values()) + max(plan.weight_bytes.values())
    assert (plan.peak_bytes == everything) == there


@pytest.mark.parametrize("color", COLOR_METHODS)
def test_both_ends_take_at_most_a_quarter_of_a_devices_room(color: ColorMethod) -> None:
    unet, _ = models("pixel")

    def plan(budget_bytes: int) -> Plan:
        options = RestoreOptions(scale=1.0, color=color, memory=MemoryOptions(budget_bytes=budget_bytes))
        return Planner(unet, None, Task(source=Extent(1500, 1500)), options, device_type="cuda").plan()

    largest = plan(60 * GIB)
    needed = max(largest.stages[stage].activation_bytes for stage in ("prepare", "color"))
    weights = max(largest.weight_bytes.values())
    assert plan(weights + 4 * needed).ends_on_device
    assert not plan(weights + int(3.9 * needed)).ends_on_device


@pytest.mark.parametrize("color", COLOR_METHODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_both_ends_stay_on_the_device_of_the_image(color: ColorMethod, channels: int) -> None:
    # Tensors of two devices do not mix, so whatever is made on the processor in between raises.
    image = torch.rand(2, 20, 30, channels, device="meta")
    prepared = prepare(image, Extent(50, 75))
    guides = Guides(color_reference=torch.rand(1, 9, 9, 3, device="meta"))
    options = RestoreOptions(color=color, detail=0.5)
    result = finish(prepared.reference, prepared, options, guides)
    assert result.is_meta
    assert result.shape == (2, 50, 75, channels)


def test_what_moves_arrives() -> None:
    image, out, downloads = torch.rand(2, 3), torch.zeros(2, 3), Downloads()
    assert upload(image, PROCESSOR) is image
    assert upload(image, torch.device("meta")).is_meta
    downloads.add(image, out)
    downloads.settle()
    assert torch.equal(out, image)


@pytest.mark.gpu
def test_groups_on_a_device_are_what_they_are_on_the_processor() -> None:
    unet, vae = models("pair")
    image = torch.rand(7, 40, 24, 4)
    expected = restore(image, unet, vae, RestoreOptions(scale=2.0))
    assert vae is not None
    unet.network.cuda()
    vae.network.cuda()
    result = restore(image, unet, vae, RestoreOptions(scale=2.0, memory=MemoryOptions(frame_batch=3)))
    assert result.device == PROCESSOR
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_no_frames_at_a_time_are_refused() -> None:
    with pytest.raises(OptionError, match="at least 1 frame at a time, got 0"):
        MemoryOptions(frame_batch=0)
