import gc
import weakref
from dataclasses import replace

import pytest
import torch
from networks import seeded
from recorder import Forgetful, Passes, Recorder, noise
from torch import Tensor, nn

from gendr_core.geometry import Extent
from gendr_core.graphs import MOST_CELLS, GraphCache, Pass
from gendr_core.host import Meter
from gendr_core.plan import DEFAULT_PLAN, StagePlan, Tiles, band_sizes

WINDOWLESS = replace(DEFAULT_PLAN, windows=None)


def test_the_second_pass_of_a_size_is_recorded_and_the_next_are_replayed(passes: Passes, recorder: Recorder) -> None:
    counts = [(passes.run(), recorder.captures, recorder.replays)[1:] for _ in range(4)]
    assert counts == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_a_size_that_comes_once_is_never_recorded(passes: Passes, recorder: Recorder) -> None:
    for size in range(1, 9):
        passes.run(size)
    assert (recorder.captures, len(passes.cache)) == (0, 0)


def test_results_are_not_overwritten_by_later_ones(passes: Passes) -> None:
    results = [passes.run() for _ in range(4)]
    copies = [result.clone() for result in results]
    passes.run()
    assert all(map(torch.equal, results, copies))


@pytest.mark.parametrize("change", [{"size": 5}, {"factor": 2.0}, {"batch": 2}])
def test_another_shape_or_constant_is_another_graph(passes: Passes, recorder: Recorder, change: dict[str, int]) -> None:
    for _ in range(3):
        passes.run()
        passes.run(**change)  # pyright: ignore[reportArgumentType] - whatever it changes
    assert (recorder.captures, len(passes.cache)) == (2, 2)


def test_another_dtype_or_order_in_memory_is_another_graph(recorder: Recorder) -> None:
    cache, network = GraphCache(recorder), nn.Identity()
    each = Pass(network=network, plan=DEFAULT_PLAN, meter=Meter(), cells=Extent(4, 4), constants=())
    x = noise(1, 2, 4, 4)
    with torch.inference_mode():
        for kind in (x, x.double(), x.to(memory_format=torch.channels_last)):
            for _ in range(2):
                assert torch.equal(cache.run(each, lambda _, inputs: inputs[0] + 1, (kind,)), kind + 1)
    assert (recorder.captures, len(cache)) == (3, 3)


def test_work_and_progress_are_those_of_an_eager_pass(passes: Passes) -> None:
    done: list[int] = []
    for _ in range(4):
        passes.run(7)
        done.append(passes.meter.flops)
    assert done == [700, 1400, 2100, 2800]


def test_weights_that_move_drop_the_graph_and_start_anew(passes: Passes, recorder: Recorder) -> None:
    for _ in range(2):
        passes.run()
    weight = passes.network.get_parameter("weight")
    weight.data = weight.data.clone()
    passes.run()
    assert (len(passes.cache), recorder.captures) == (0, 1)
    passes.run()
    assert (len(passes.cache), recorder.captures) == (1, 2)


def test_a_replaced_weight_or_buffer_drops_the_graph(passes: Passes) -> None:
    passes.network.register_buffer("note", torch.zeros(3))
    for change in (
        lambda: setattr(passes.network, "weight", nn.Parameter(noise(2, 2, 3, 3, seed=9), requires_grad=False)),
        lambda: setattr(passes.network, "note", torch.ones(3)),
    ):
        for _ in range(2):
            passes.run()
        assert len(passes.cache) == 1
        change()
        passes.run()
        assert len(passes.cache) == 0


def test_weights_that_change_where_they_are_change_the_result(passes: Passes, recorder: Recorder) -> None:
    for _ in range(2):
        passes.run()
    with torch.no_grad():
        passes.network.get_parameter("weight").mul_(2.0)
    passes.run()  # Compares with the network itself.
    assert (recorder.captures, recorder.replays) == (1, 2)


def test_weights_that_are_elsewhere_in_part_run_eagerly(passes: Passes, recorder: Recorder) -> None:
    passes.network.register_buffer("elsewhere", torch.empty(1, device="meta"))
    for _ in range(3):
        passes.run()
    assert recorder.captures == 0


def test_a_host_that_moves_weights_before_every_pass_never_records(passes: Passes, recorder: Recorder) -> None:
    kept: list[Tensor] = []
    for _ in range(6):
        weight = passes.network.get_parameter("weight")
        kept.append(weight.data)
        weight.data = weight.data.clone()
        passes.run()
    assert recorder.captures == 0


def test_a_network_is_not_kept_alive_and_takes_its_graphs_along() -> None:
    recorder = Forgetful()
    cache = GraphCache(recorder)
    network = nn.Identity()
    each = Pass(network=network, plan=DEFAULT_PLAN, meter=Meter(), cells=Extent(1, 1), constants=())
    with torch.inference_mode():
        for _ in range(2):
            cache.run(each, lambda _, inputs: inputs[0] + 1, (noise(1, 1, 1, 1),))
    assert len(cache) == 1
    gone = weakref.ref(network)
    del network, each
    gc.collect()
    assert gone() is None
    assert (len(cache), cache.num_bytes, recorder.resets) == (0, 0, 1)


def test_what_dies_while_another_thread_records_is_dropped_with_the_next_pass() -> None:
    passes = Passes(GraphCache(Forgetful()))
    network = nn.Identity()
    each = Pass(network=network, plan=DEFAULT_PLAN, meter=Meter(), cells=Extent(1, 1), constants=())
    with torch.inference_mode():
        for _ in range(2):
            passes.cache.run(each, lambda _, inputs: inputs[0] + 1, (noise(1, 1, 1, 1),))
    with passes.cache._lock:
        del network, each
        gc.collect()
    assert len(passes.cache) == 1
    passes.run()
    assert len(passes.cache) == 0


def test_a_new_network_never_gets_the_graph_of_one_that_is_gone(recorder: Recorder) -> None:
    passes = Passes(GraphCache(recorder))
    for seed in range(8):
        passes.network = seeded(nn.Conv2d(2, 2, 3, padding=1), seed)
        for _ in range(3):
            passes.run()
    assert recorder.captures == 8


@pytest.mark.parametrize(
    "plan",
    [
        replace(DEFAULT_PLAN, tiles=Tiles(size=8, overlap=0)),
        replace(DEFAULT_PLAN, bands=band_sizes("cpu")[1]),
        replace(DEFAULT_PLAN, bands=replace(DEFAULT_PLAN.bands, parked=True)),
        replace(DEFAULT_PLAN, bands=replace(DEFAULT_PLAN.bands, recompute=True)),
    ],
    ids=["tiles", "small bands", "parked", "computed twice"],
)
def test_where_memory_is_short_nothing_is_recorded(plan: StagePlan, recorder: Recorder) -> None:
    passes = Passes(GraphCache(recorder), plan=plan)
    for _ in range(3):
        passes.run()
    assert recorder.captures == 0


@pytest.mark.parametrize(
    ("height", "width", "batch", "windows", "fit"),
    [
        (96, 96, 1, True, True),
        (96, 97, 1, True, False),
        (48, 192, 1, True, False),
        (48, 192, 1, False, True),
        (64, 64, 2, True, True),
        (64, 64, 3, True, False),
        (128, 128, 1, False, False),
    ],
)
def test_only_small_frames_in_one_window_are_launch_bound(
    height: int, width: int, batch: int, windows: bool, fit: bool
) -> None:
    plan = DEFAULT_PLAN if windows else WINDOWLESS
    each = Pass(network=nn.Identity(), plan=plan, meter=Meter(), cells=Extent(height, width), constants=())
    assert each.launch_bound("cpu", batch) == fit
    assert not each.launch_bound("cuda", batch)
    assert MOST_CELLS == 96 * 96


def test_what_uses_the_processor_or_gradients_is_not_recorded(passes: Passes, recorder: Recorder) -> None:
    for _ in range(3):
        passes.run(recordable=False)
    each = Pass(network=passes.network, plan=DEFAULT_PLAN, meter=Meter(), cells=Extent(4, 4), constants=())
    for _ in range(3):
        assert not passes.cache.run(each, lambda _, inputs: inputs[0] + 1, (noise(1, 2, 4, 4),)).is_inference()
    assert recorder.captures == 0
