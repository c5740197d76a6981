"""A line of three stages: while one job is worked on, the next is read ahead and the one before is written behind.

Role: the mechanics under ``restore``, which says what the stages are; knows neither files nor images.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True, kw_only=True)  # No slots: with them Stages[...](...) fails on Python 3.11.
class Stages(Generic[Job, Input, Output]):
    """What happens to every job. Each ends with ``write`` or with ``fail``, in the order of the jobs, one at a time."""

    read: Callable[[Job], Input]
    """Runs in the reader's thread where ``reads_ahead`` said so, else in the caller's."""
    work: Callable[[Job, Input], Output]
    """Runs in the caller's thread."""
    write: Callable[[Job, Output], None]
    """Runs in the writer's thread where ``writes_behind`` said so, else in the caller's."""
    fail: Callable[[Job, Exception], None]
    """Takes what a stage raised, in the thread where the jobs before have ended. What it raises stops the line."""
    failures: tuple[type[Exception], ...]
    """What ``fail`` takes; anything else stops the line."""
    reads_ahead: Callable[[Job], bool]
    """Whether a job may be read while another is worked on; asked in the reader's thread."""
    writes_behind: Callable[[Output], bool]
    """Whether a result may be written while another job is worked on."""


def run_line(jobs: Sequence[Job], stages: Stages[Job, Input, Output]) -> None:
    """Take every job through the stages.

    At most three jobs are in hand at any time: one read ahead, one worked on or just finished, one being written. A
    thread starts when it is first needed, so for a single job there is none. However the line ends, both threads have:
    they finish what they were at, at most one job each, and begin no other. What stops it, from whichever stage or
    thread, comes out of here.
    """
    with (
        ThreadPoolExecutor(1, thread_name_prefix="gendr-reader") as reader,
        ThreadPoolExecutor(1, thread_name_prefix="gendr-writer") as writer,
    ):
        _Line(stages, reader, writer).run(jobs)


class _Line(Generic[Job, Input, Output]):
    """The stages at work, and what the two threads have in hand."""

    def __init__(
        self, stages: Stages[Job, Input, Output], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor
    ) -> None:
        self._stages, self._reader, self._writer = stages, reader, writer
        self._ahead: Future[tuple[Input, ...]] | None = None
        self._behind: Future[None] | None = None

    def run(self, jobs: Sequence[Job]) -> None:
        for index, job in enumerate(jobs):
            following = jobs[index + 1 : index + 2]
            try:
                output = self._work(job, following)
            except self._stages.failures as error:
                self._settle()
                self._stages.fail(job, error)
                continue
            self._settle()
            if following and self._stages.writes_behind(output):
                self._behind = self._writer.submit(self._write, job, output)
            else:
                self._write(job, output)
            del output  # Or it would stay until the next one is there.

    def _work(self, job: Job, following: Sequence[Job]) -> Output:
        ahead, self._ahead = self._ahead, None
        found = () if ahead is None else ahead.result()
        read = found[0] if found else self._stages.read(job)
        for next_job in following:
            self._ahead = self._reader.submit(self._read_ahead, next_job)
        return self._stages.work(job, read)

    def _read_ahead(self, job: Job) -> tuple[Input, ...]:
        """Return what was read, alone in a tuple; an empty one where the job is to be read in its place."""
        return (self._stages.read(job),) if self._stages.reads_ahead(job) else ()

    def _write(self, job: Job, output: Output) -> None:
        try:
            self._stages.write(job, output)
        except self._stages.failures as error:
            self._stages.fail(job, error)

    def _settle(self) -> None:
        """Wait until the job before has ended; raise what stopped it."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.result()
