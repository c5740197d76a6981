"""A line of three stages: while one group of jobs is worked on, the next is read ahead, the last written behind.

Role: the mechanics under ``restore``, which says what the stages are; knows neither files nor images.
"""

import traceback
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from logging import getLogger
from typing import Generic, TypeVar

Job = TypeVar("Job")
Input = TypeVar("Input")
Output = TypeVar("Output")

_log = getLogger(__name__)


@dataclass(frozen=True, kw_only=True)  # No slots: with them Stages[...](...) fails on Python 3.11.
class Stages(Generic[Job, Input, Output]):
    """What happens to every job. Each ends with ``write`` or with ``fail``, group by group in order, one at a time."""

    read: Callable[[Job], Input]
    """Runs in the reader's thread where ``reads_ahead`` said so, else in the caller's."""
    alike: Callable[[Input], Hashable]
    """What inputs of a group must have in common to be worked on together."""
    work: Callable[[Sequence[Job], Sequence[Input]], Sequence[Output]]
    """Runs in the caller's thread, on jobs of a group whose inputs are alike. Where that fails for several, each of
    them is worked on alone."""
    write: Callable[[Job, Output], None]
    """Runs in the writer's thread where ``writes_behind`` said so, else in the caller's."""
    fail: Callable[[Job, Exception], None]
    """Takes what a stage raised, in the thread where the jobs before have ended. What it raises stops the line."""
    failures: tuple[type[Exception], ...]
    """What ``fail`` takes; anything else stops the line."""
    reads_ahead: Callable[[Sequence[Job]], bool]
    """Whether a group may be read while another is worked on; asked in the reader's thread."""
    writes_behind: Callable[[Sequence[Output]], bool]
    """Whether the results of a group may be written while another is worked on."""


def run_line(groups: Sequence[Sequence[Job]], stages: Stages[Job, Input, Output]) -> None:
    """Take every job through the stages.

    At most three groups are in hand at any time: one read ahead, one worked on or just finished, one being written. A
    thread starts when it is first needed, so for a single group there is none. However the line ends, both threads
    have: they finish what they were at, at most one group each, and begin no other. What stops it, from whichever stage
    or thread, comes out of here.
    """
    with (
        ThreadPoolExecutor(1, thread_name_prefix="gendr-reader") as reader,
        ThreadPoolExecutor(1, thread_name_prefix="gendr-writer") as writer,
    ):
        _Line(stages, reader, writer).run(groups)


@dataclass
class _Group(Generic[Job, Input, Output]):
    """Jobs in hand and what has become of them, by their places: each has one of the three, until it has ended."""

    jobs: Sequence[Job]
    inputs: dict[int, Input] = field(default_factory=dict[int, Input])
    outputs: dict[int, Output] = field(default_factory=dict[int, Output])
    errors: dict[int, Exception] = field(default_factory=dict[int, Exception])


class _Line(Generic[Job, Input, Output]):
    """The stages at work, and what the two threads have in hand."""

    def __init__(
        self, stages: Stages[Job, Input, Output], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor
    ) -> None:
        self._stages, self._reader, self._writer = stages, reader, writer
        self._ahead: Future[_Group[Job, Input, Output] | None] | None = None
        self._behind: Future[None] | None = None

    def run(self, groups: Sequence[Sequence[Job]]) -> None:
        for index, jobs in enumerate(groups):
            following = groups[index + 1 : index + 2]
            group = self._take(jobs)
            for next_jobs in following:
                self._ahead = self._reader.submit(self._read_ahead, next_jobs)
            self._work_through(group)
            self._settle()
            # With a failure it ends here, so that a fault stops the line before more is worked on.
            if following and not group.errors and self._stages.writes_behind(list(group.outputs.values())):
                self._behind = self._writer.submit(self._end, group)
            else:
                self._end(group)
            del group  # Or it would stay until the next one is there.

    def _take(self, jobs: Sequence[Job]) -> _Group[Job, Input, Output]:
        ahead, self._ahead = self._ahead, None
        group = None if ahead is None else ahead.result()
        return self._read(jobs) if group is None else group

    def _read_ahead(self, jobs: Sequence[Job]) -> _Group[Job, Input, Output] | None:
        """Return the group with what was read; None where it is to be read in its place."""
        return self._read(jobs) if self._stages.reads_ahead(jobs) else None

    def _read(self, jobs: Sequence[Job]) -> _Group[Job, Input, Output]:
        group: _Group[Job, Input, Output] = _Group(jobs)
        for place, job in enumerate(jobs):
            try:
                group.inputs[place] = self._stages.read(job)
            except self._stages.failures as error:
                group.errors[place] = error
        return group

    def _work_through(self, group: _Group[Job, Input, Output]) -> None:
        """Turn the inputs of a group into outputs and errors."""
        alike: dict[Hashable, list[int]] = {}
        for place, read in group.inputs.items():
            alike.setdefault(self._stages.alike(read), []).append(place)
        for places in alike.values():
            self._work(group, places)
        group.inputs.clear()

    def _work(self, group: _Group[Job, Input, Output], places: Sequence[int]) -> None:
        """Work on alike inputs together, or on each alone where that fails."""
        try:
            outputs = self._stages.work([group.jobs[p] for p in places], [group.inputs[p] for p in places])
        except self._stages.failures as error:
            _forget_locals(error)
            if len(places) == 1:
                group.errors[places[0]] = error
                return
            _log.warning("%d together failed, going on one by one: %s", len(places), error)
        else:
            group.outputs.update(zip(places, outputs, strict=True))
            return
        # Not inside the handler: what is raised here would carry the first error along.
        for place in places:
            self._work(group, [place])

    def _end(self, group: _Group[Job, Input, Output]) -> None:
        """Write what there is and tell the errors, in order; what has ended is dropped."""
        for place, job in enumerate(group.jobs):
            try:
                if place in group.outputs:
                    self._stages.write(job, group.outputs.pop(place))
            except self._stages.failures as error:
                self._stages.fail(job, error)
            if place in group.errors:
                self._stages.fail(job, group.errors.pop(place))

    def _settle(self) -> None:
        """Wait until the group before has ended; raise what stopped it."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.result()


def _forget_locals(error: BaseException) -> None:
    """Free what the stage had in hand when it failed: the error is kept while others of its group are worked on."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
