import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gendr_core.cli.overlap import Stages, run_line

PATIENCE_S = 10.0


class Broken(Exception):
    """What a stage may raise."""


class Fault(Exception):
    """What no stage should raise."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job and what becomes of it."""

    number: int = 0
    slow_in: str | None = None
    breaks_in: str | None = None
    error: type[BaseException] = Broken
    ahead: bool = True
    behind: bool = True

    def enter(self, stage: str) -> None:
        """Wait and raise as this job does in ``stage``."""
        if self.slow_in == stage:
            time.sleep(0.001)
        if self.breaks_in == stage:
            raise self.error(stage)


@dataclass
class Record:
    """What happened, in order, and which thread did it."""

    events: list[tuple[str, int]] = field(default_factory=list)
    threads: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, event: str, job: Job) -> None:
        """Add an event of this thread."""
        with self.lock:
            self.events.append((event, job.number))
            self.threads.append((event, threading.current_thread().name))

    def of(self, *events: str) -> list[tuple[str, int]]:
        """Return those of some kinds, with the numbers of their jobs."""
        return [(event, number) for event, number in self.events if event in events]

    def stages(self) -> Stages[Job, Job, Job]:
        """Return stages that note what they do and raise what the jobs say."""

        def read(job: Job) -> Job:
            self.note("read", job)
            job.enter("read")
            return job

        def work(job: Job, made: Job) -> Job:
            assert made is job
            self.note("work", job)
            job.enter("work")
            return job

        def write(job: Job, made: Job) -> None:
            assert made is job
            self.note("write", job)
            job.enter("write")
            self.note("written", job)

        def fail(job: Job, error: Exception) -> None:
            self.note("failed", job)
            assert str(error) == job.breaks_in

        return Stages(
            read=read,
            work=work,
            write=write,
            fail=fail,
            failures=(Broken,),
            reads_ahead=lambda job: job.ahead,
            writes_behind=lambda made: made.behind,
        )


stages_or_none = st.sampled_from([None, None, "read", "work", "write"])
tries = st.builds(Job, slow_in=stages_or_none, breaks_in=stages_or_none, ahead=st.booleans(), behind=st.booleans())


def numbered(jobs: list[Job]) -> list[Job]:
    return [replace(job, number=n) for n, job in enumerate(jobs)]


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@given(st.lists(tries, max_size=12))
def test_every_job_ends_once_in_order_and_as_its_stages_say(jobs: list[Job]) -> None:
    jobs, record = numbered(jobs), Record()
    with no_thread_left():
        run_line(jobs, record.stages())
    assert record.of("written", "failed") == [("failed" if job.breaks_in else "written", job.number) for job in jobs]
    assert record.of("work") == [("work", job.number) for job in jobs if job.breaks_in != "read"]
    assert record.of("read") == [("read", job.number) for job in jobs]


@given(st.lists(tries, max_size=12))
def test_at_most_one_is_read_ahead_and_one_written_behind(jobs: list[Job]) -> None:
    jobs, record = numbered(jobs), Record()
    run_line(jobs, record.stages())
    ended, writing = -1, 0
    for event, number in record.events:
        if event == "read":
            assert number - ended <= 3  # This one, the one worked on and the one being written.
        elif event == "work":
            assert ended >= number - 2
        elif event == "write":
            writing += 1
            assert writing == 1
        else:
            ended = number
            writing = 0


@given(st.lists(tries, max_size=6))
def test_jobs_that_must_not_overlap_are_done_by_the_caller_one_by_one(jobs: list[Job]) -> None:
    alone = [replace(job, ahead=False, behind=False) for job in numbered(jobs)]
    record = Record()
    run_line(alone, record.stages())
    assert {name for _, name in record.threads} <= {threading.current_thread().name}
    assert [number for _, number in record.events] == sorted(number for _, number in record.events)


def test_a_single_job_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    record = Record()
    monkeypatch.setattr(threading.Thread, "start", refused)
    run_line([Job()], record.stages())
    run_line([], record.stages())
    assert record.of("written") == [("written", 0)]


def test_work_meets_the_next_read_and_the_last_write() -> None:
    """Each of the three waits until the other two have begun: without overlap none would go on."""
    meeting = threading.Barrier(3, timeout=PATIENCE_S)
    threads: dict[str, str] = {}

    def meet(stage: str) -> None:
        threads[stage] = threading.current_thread().name
        meeting.wait()

    def read(job: int) -> int:
        if job == 2:
            meet("read")
        return job

    def work(job: int, read: int) -> int:
        if job == 1:
            meet("work")
        return read

    def write(job: int, made: int) -> None:
        assert made == job
        if job == 0:
            meet("write")

    run_line(
        [0, 1, 2],
        Stages(
            read=read,
            work=work,
            write=write,
            fail=lambda job, error: pytest.fail(f"{job}: {error}"),
            failures=(Broken,),
            reads_ahead=lambda _: True,
            writes_behind=lambda _: True,
        ),
    )
    assert threads["work"] == threading.current_thread().name
    assert len(set(threads.values())) == 3


@pytest.mark.parametrize("overlaps", [False, True])
def test_nothing_stays_in_hand_that_is_done_with(overlaps: bool) -> None:
    class Thing:
        pass

    inputs: list[weakref.ref[Thing]] = []
    outputs: list[weakref.ref[Thing]] = []

    def new(made: list[weakref.ref[Thing]]) -> Thing:
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    def work(job: int, read: Thing) -> Thing:
        del read
        gc.collect()
        assert all(reference() is None for reference in inputs[:job])
        assert all(reference() is None for reference in outputs[: max(0, job - overlaps)])  # One may be being written.
        return new(outputs)

    run_line(
        range(6),
        Stages(
            read=lambda _: new(inputs),
            work=work,
            write=lambda _job, _made: None,
            fail=lambda job, error: pytest.fail(f"{job}: {error}"),
            failures=(Broken,),
            reads_ahead=lambda _: overlaps,
            writes_behind=lambda _: overlaps,
        ),
    )
    assert len(outputs) == 6
    assert all(reference() is None for reference in inputs + outputs)


@given(st.integers(0, 8), st.sampled_from(["read", "work", "write"]), st.booleans())
def test_what_is_no_failure_stops_the_line(stops_at: int, stage: str, overlaps: bool) -> None:
    jobs = [
        Job(number=n, breaks_in=stage if n == stops_at else None, error=Fault, ahead=overlaps, behind=overlaps)
        for n in range(9)
    ]
    record = Record()
    with no_thread_left(), pytest.raises(Fault, match=stage):
        run_line(jobs, record.stages())
    assert record.of("written") == [("written", number) for number in range(stops_at)]
    # A write that stops is found when the next job has been worked on, and the one after that is read by then.
    assert max(number for _, number in record.of("read")) <= stops_at + 2


def test_an_interrupt_waits_for_the_write_under_way_and_begins_nothing_more() -> None:
    record = Record()
    stages = record.stages()
    begun, interrupted = threading.Event(), threading.Event()

    def work(job: Job, made: Job) -> Job:
        if job.number == 3:
            assert begun.wait(PATIENCE_S)
            interrupted.set()
            raise KeyboardInterrupt
        return stages.work(job, made)

    def write(job: Job, made: Job) -> None:
        if job.number == 2:
            begun.set()
            assert interrupted.wait(PATIENCE_S)
        stages.write(job, made)

    jobs = [Job(number=n) for n in range(100)]
    with no_thread_left(), pytest.raises(KeyboardInterrupt):
        run_line(
            jobs,
            replace(stages, work=work, write=write),
        )
    assert record.of("written") == [("written", 0), ("written", 1), ("written", 2)]
    assert record.of("read")[-1][1] <= 4


@pytest.mark.parametrize("stage", ["read", "work", "write"])
@pytest.mark.parametrize("overlaps", [False, True])
def test_what_fail_raises_stops_the_line(stage: str, overlaps: bool) -> None:
    record = Record()
    stages = record.stages()

    def fail(job: Job, error: Exception) -> None:
        raise Fault(f"{job.number}") from error

    jobs = [Job(number=n, breaks_in=stage if n == 1 else None, ahead=overlaps, behind=overlaps) for n in range(5)]
    with no_thread_left(), pytest.raises(Fault, match=r"^1$"):
        run_line(
            jobs,
            replace(stages, fail=fail),
        )
    assert record.of("written") == [("written", 0)]
