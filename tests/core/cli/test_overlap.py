import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
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


class Thing:
    """Something that can be seen to be gone."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job and what becomes of it."""

    number: int = 0
    kind: int = 0
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

        def work(jobs: Sequence[Job], made: Sequence[Job]) -> Sequence[Job]:
            assert list(made) == list(jobs)
            assert len({job.kind for job in jobs}) == 1
            for job in jobs:
                self.note("work", job)
            for job in jobs:
                job.enter("work")
            return jobs

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
            alike=lambda made: made.kind,
            work=work,
            write=write,
            fail=fail,
            failures=(Broken,),
            reads_ahead=lambda jobs: all(job.ahead for job in jobs),
            writes_behind=lambda made: all(job.behind for job in made),
        )


stages_or_none = st.sampled_from([None, None, "read", "work", "write"])
tries = st.builds(
    Job,
    kind=st.integers(0, 1),
    slow_in=stages_or_none,
    breaks_in=stages_or_none,
    ahead=st.booleans(),
    behind=st.booleans(),
)
lines = st.lists(st.lists(tries, min_size=1, max_size=4), max_size=8)


def numbered(groups: list[list[Job]]) -> list[list[Job]]:
    count = itertools.count()
    return [[replace(job, number=next(count)) for job in group] for group in groups]


def alone(jobs: Iterable[Job]) -> list[list[Job]]:
    return [[job] for job in jobs]


def worked(group: list[Job]) -> list[int]:
    """Return the numbers of the jobs that are worked on, in order and as often as they are."""
    found: list[int] = []
    read = [job for job in group if job.breaks_in != "read"]
    for kind in dict.fromkeys(job.kind for job in read):
        alike = [job for job in read if job.kind == kind]
        again = len(alike) > 1 and any(job.breaks_in == "work" for job in alike)
        found += [job.number for job in alike] * (2 if again else 1)
    return found


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@given(lines)
def test_every_job_ends_once_in_order_and_as_its_stages_say(groups: list[list[Job]]) -> None:
    groups, record = numbered(groups), Record()
    with no_thread_left():
        run_line(groups, record.stages())
    jobs = list(itertools.chain.from_iterable(groups))
    assert record.of("written", "failed") == [("failed" if job.breaks_in else "written", job.number) for job in jobs]
    assert record.of("work") == [("work", number) for group in groups for number in worked(group)]
    assert record.of("read") == [("read", job.number) for job in jobs]


@given(lines)
def test_at_most_one_group_is_read_ahead_and_one_written_behind(groups: list[list[Job]]) -> None:
    groups, record = numbered(groups), Record()
    run_line(groups, record.stages())
    group_of = {job.number: index for index, group in enumerate(groups) for job in group}
    unfinished = [len(group) for group in groups]
    writing = 0
    for event, number in record.events:
        index, ended = group_of[number], sum(1 for _ in itertools.takewhile(lambda left: left == 0, unfinished))
        if event == "read":
            assert index - ended <= 2  # This one stands behind the one worked on and the one being written.
        elif event == "work":
            assert index - ended <= 1
        elif event == "write":
            writing += 1
            assert writing == 1
        else:
            unfinished[index] -= 1
            writing = 0


@given(lines)
def test_jobs_that_must_not_overlap_are_done_by_the_caller_group_by_group(groups: list[list[Job]]) -> None:
    kept = [[replace(job, ahead=False, behind=False) for job in group] for group in numbered(groups)]
    record = Record()
    run_line(kept, record.stages())
    assert {name for _, name in record.threads} <= {threading.current_thread().name}
    group_of = {job.number: index for index, group in enumerate(kept) for job in group}
    order = [group_of[number] for _, number in record.events]
    assert order == sorted(order)


def test_a_single_job_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    record = Record()
    monkeypatch.setattr(threading.Thread, "start", refused)
    run_line([[Job()]], record.stages())
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

    def work(jobs: Sequence[int], read: Sequence[int]) -> Sequence[int]:
        if 1 in jobs:
            meet("work")
        return read

    def write(job: int, made: int) -> None:
        assert made == job
        if job == 0:
            meet("write")

    run_line(
        [[0], [1], [2]],
        Stages(
            read=read,
            alike=lambda _: None,
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


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("overlaps", [False, True])
def test_nothing_stays_in_hand_that_is_done_with(overlaps: bool, size: int) -> None:
    inputs: list[weakref.ref[Thing]] = []
    outputs: list[weakref.ref[Thing]] = []

    def new(made: list[weakref.ref[Thing]]) -> Thing:
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    def work(jobs: Sequence[int], read: Sequence[Thing]) -> list[Thing]:
        del read
        gc.collect()
        assert all(reference() is None for reference in inputs[: jobs[0]])
        being_written = overlaps * size
        assert all(reference() is None for reference in outputs[: max(0, jobs[0] - being_written)])
        return [new(outputs) for _ in jobs]

    run_line(
        [range(start, start + size) for start in range(0, 6, size)],
        Stages(
            read=lambda _: new(inputs),
            alike=lambda _: None,
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


def test_a_failure_that_waits_to_be_told_holds_nothing() -> None:
    """Each job of a group fails alone, too; what it had in hand then is gone before the next one begins."""
    held: list[weakref.ref[Thing]] = []
    told: list[str] = []

    def deeper() -> None:
        thing = Thing()
        held.append(weakref.ref(thing))
        raise Broken("deep")

    def work(jobs: Sequence[int], read: Sequence[int]) -> Sequence[int]:
        assert all(reference() is None for reference in held)
        try:
            deeper()
        except Broken as error:
            raise Broken(f"{list(jobs)}") from error
        return read

    gc.disable()
    try:
        run_line(
            [[0, 1, 2]],
            Stages(
                read=lambda job: job,
                alike=lambda _: None,
                work=work,
                write=lambda job, _: pytest.fail(f"{job} was written"),
                fail=lambda job, error: told.append(f"{job}: {error}"),
                failures=(Broken,),
                reads_ahead=lambda _: True,
                writes_behind=lambda _: True,
            ),
        )
    finally:
        gc.enable()
    assert told == ["0: [0]", "1: [1]", "2: [2]"]
    assert len(held) == 4


def test_what_failed_together_and_works_alone_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    record = Record()

    def work(jobs: Sequence[Job], made: Sequence[Job]) -> Sequence[Job]:
        if len(jobs) > 1:
            raise Broken("too many")
        return made

    run_line(numbered([[Job(), Job(), Job()]]), replace(record.stages(), work=work))
    assert record.of("written", "failed") == [("written", 0), ("written", 1), ("written", 2)]
    assert caplog.messages == ["3 together failed, going on one by one: too many"]


@given(st.integers(0, 8), st.sampled_from(["read", "work", "write"]), st.booleans())
def test_what_is_no_failure_stops_the_line(stops_at: int, stage: str, overlaps: bool) -> None:
    jobs = [
        Job(number=n, breaks_in=stage if n == stops_at else None, error=Fault, ahead=overlaps, behind=overlaps)
        for n in range(9)
    ]
    record = Record()
    with no_thread_left(), pytest.raises(Fault, match=stage):
        run_line(alone(jobs), record.stages())
    assert record.of("written") == [("written", number) for number in range(stops_at)]
    # A write that stops is found when the next job has been worked on, and the one after that is read by then.
    assert max(number for _, number in record.of("read")) <= stops_at + 2


def test_an_interrupt_waits_for_the_write_under_way_and_begins_nothing_more() -> None:
    record = Record()
    stages = record.stages()
    begun, interrupted = threading.Event(), threading.Event()

    def work(jobs: Sequence[Job], made: Sequence[Job]) -> Sequence[Job]:
        if jobs[0].number == 3:
            assert begun.wait(PATIENCE_S)
            interrupted.set()
            raise KeyboardInterrupt
        return stages.work(jobs, made)

    def write(job: Job, made: Job) -> None:
        if job.number == 2:
            begun.set()
            assert interrupted.wait(PATIENCE_S)
        stages.write(job, made)

    jobs = [Job(number=n) for n in range(100)]
    with no_thread_left(), pytest.raises(KeyboardInterrupt):
        run_line(
            alone(jobs),
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
            alone(jobs),
            replace(stages, fail=fail),
        )
    assert record.of("written") == [("written", 0)]
