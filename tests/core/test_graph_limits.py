import pytest
import torch
from recorder import Passes, Recorder, noise
from torch import Tensor

from gendr_core.geometry import Extent, Span
from gendr_core.graphs import PENALTY, GraphCache, Pass
from gendr_core.host import Meter
from gendr_core.plan import DEFAULT_PLAN


def test_beyond_their_number_the_one_not_used_for_longest_goes(recorder: Recorder) -> None:
    passes = Passes(GraphCache(recorder, most_graphs=2))
    for size in (3, 3, 4, 4, 3, 5, 5):
        passes.run(size)
    assert (len(passes.cache), recorder.captures) == (2, 3)
    replays = recorder.replays
    passes.run(3)
    passes.run(5)
    assert recorder.replays == replays + 2
    passes.run(4)
    assert (recorder.replays, recorder.captures) == (replays + 2, 3)


def test_beyond_their_bytes_all_go_and_the_newest_gets_the_room() -> None:
    recorder = Recorder((60, 60, 60))
    passes = Passes(GraphCache(recorder, most_bytes=100))
    for _ in range(2):
        passes.run(3)
    assert passes.cache.num_bytes == 60
    for _ in range(2):
        passes.run(4)
    assert (len(passes.cache), passes.cache.num_bytes, recorder.resets) == (0, 0, 1)
    passes.run(4)
    assert (len(passes.cache), passes.cache.num_bytes) == (1, 60)


def test_sizes_that_push_each_other_out_stay_eager_for_a_while() -> None:
    recorder = Recorder((60,) * 99)
    passes = Passes(GraphCache(recorder, most_bytes=100))
    for _ in range(3 * PENALTY):
        passes.run(3)
        passes.run(4)
        assert passes.cache.num_bytes <= 100
    assert recorder.captures <= 3 * 3
    assert recorder.replays >= 2 * PENALTY


def test_one_that_never_fits_is_tried_once() -> None:
    recorder = Recorder((200, 200))
    passes = Passes(GraphCache(recorder, most_bytes=100))
    for _ in range(40):
        passes.run()
    assert (recorder.captures, recorder.resets, len(passes.cache)) == (1, 1, 0)


def test_a_failed_recording_is_not_tried_again_but_others_are(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(errors=(RuntimeError("operation not permitted when stream is capturing"),))
    passes = Passes(GraphCache(recorder))
    for _ in range(40):
        passes.run(3)
    assert (recorder.captures, recorder.replays) == (1, 0)
    assert "not permitted" in caplog.text
    for _ in range(3):
        passes.run(4)
    assert (recorder.captures, recorder.replays) == (2, 2)


@pytest.mark.parametrize("error", [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory"), None])
def test_memory_that_runs_out_in_a_recording_drops_all_graphs(error: Exception | None) -> None:
    recorder = Recorder()
    passes = Passes(GraphCache(recorder))
    for _ in range(2):
        passes.run(3)
    recorder._errors = [error or RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
    for _ in range(2):
        passes.run(4)
    assert (len(passes.cache), passes.cache.num_bytes, recorder.resets) == (0, 0, 1)
    for _ in range(PENALTY + 1):
        passes.run(4)
    assert recorder.captures == 2
    passes.run(4)
    assert (recorder.captures, len(passes.cache)) == (3, 1)


def test_memory_that_runs_out_beside_graphs_gets_theirs(passes: Passes) -> None:
    for _ in range(2):
        passes.run(3)
    failures = [torch.cuda.OutOfMemoryError("CUDA out of memory")] * 2
    flops = passes.meter.flops

    def compute(meter: Meter, inputs: tuple[Tensor, ...]) -> Tensor:
        meter.advance(10, Span(0, 1), 1)
        if failures:
            raise failures.pop()
        return inputs[0]

    size = Extent(1000, 1000)
    each = Pass(network=passes.network, plan=DEFAULT_PLAN, meter=passes.meter, cells=size, constants=())
    failures.pop()
    assert passes.cache.run(each, compute, (noise(1),)).shape == (1,)
    assert (len(passes.cache), passes.meter.flops) == (0, flops + 10)
    failures.append(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        passes.cache.run(each, compute, (noise(1),))


def test_cancel_comes_before_a_recording_and_before_a_replay_never_within(passes: Passes, recorder: Recorder) -> None:
    passes.run()
    passes.stop.now = True
    with pytest.raises(InterruptedError):
        passes.run()
    assert recorder.captures == 0
    passes.stop.now = False
    before = passes.stop.checks
    passes.run()
    # Before recording, before replaying, with the work done; none of the recorder's two passes asked.
    assert passes.stop.checks == before + 3
    passes.stop.now = True
    with pytest.raises(InterruptedError):
        passes.run()
    assert (recorder.captures, recorder.replays) == (1, 1)
    passes.stop.now = False
    passes.run()
    assert (recorder.captures, recorder.replays) == (1, 2)
