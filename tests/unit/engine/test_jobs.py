"""Jobs are done a part at a time, tell how far they are, and answer at their end whoever waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engine.answers import JobReport
from engine.events import CommandDone, Continue, Effect, Warn
from engine.jobs import Job, Jobs, Step

COUNT = 3


def counting(parts: int = COUNT) -> Callable[[Job], Step]:
    """A job's part that is the last one after so many."""

    def part(job: Job) -> Step:
        job.done += 1
        job.count(10)
        return "ended" if job.done == parts else "more"

    return part


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


def test_a_job_is_done_in_parts_and_asks_for_the_next_one(jobs: Jobs) -> None:
    job = jobs.start("clear", 5.0, COUNT, counting())
    assert job.report(5.0) == JobReport(1, "clear", "running", 0, COUNT, 0, 0, False, 0.0)
    assert jobs.proceed(5.0) == [Continue()]
    assert jobs.continued(6.0) == [Continue()]
    assert job.report(6.5) == JobReport(1, "clear", "running", 2, COUNT, 2, 20, False, 1.5)
    assert jobs.continued(7.0) == []
    assert job.report(7.0) == JobReport(1, "clear", "done", COUNT, COUNT, 3, 30, False, 2.0)


def test_all_that_run_get_their_part_and_one_request_to_continue_is_enough(jobs: Jobs) -> None:
    running = [jobs.start("clear", 0.0, COUNT, counting()) for _ in range(2)]
    assert jobs.proceed(0.0) == [Continue()]
    assert jobs.proceed(0.0) == [], "what was asked for has not come yet"
    assert [job.done for job in running] == [2, 2]
    assert jobs.continued(0.0) == []
    assert [job.ended for job in running] == [True, True]


def test_one_that_waits_for_something_else_does_not_ask_to_continue(jobs: Jobs) -> None:
    steps: Iterator[Step] = iter(["wait", "more", "ended"])
    job = jobs.start("shrink", 0.0, 1, lambda job: next(steps))
    assert jobs.proceed(0.0) == []
    assert jobs.proceed(0.0) == [Continue()]
    assert jobs.continued(0.0) == []
    assert job.ended


def test_what_a_part_wants_done_is_passed_on_once(jobs: Jobs) -> None:
    def part(job: Job) -> Step:
        job.effects += [Warn("careful")] if not job.done else []
        return counting()(job)

    jobs.start("shrink", 0.0, COUNT, part)
    assert jobs.proceed(0.0) == [Warn("careful"), Continue()]
    assert jobs.continued(0.0) == [Continue()]


def test_whoever_waits_is_answered_at_the_end_and_once(jobs: Jobs) -> None:
    job = jobs.start("clear", 0.0, 2, counting(2))
    job.waiting += [7, 8]
    assert jobs.proceed(0.0) == [Continue()]
    report = JobReport(1, "clear", "done", 2, 2, 2, 20, False, 3.0)
    expected: list[Effect] = [CommandDone(7, report), CommandDone(8, report)]
    assert jobs.continued(3.0) == expected
    assert jobs.proceed(4.0) == []


def test_one_can_be_ended_from_outside(jobs: Jobs) -> None:
    job = jobs.start("shrink", 0.0, 2, counting())
    job.waiting.append(7)
    assert jobs.running("shrink") is job
    assert jobs.running("clear") is None
    [answer] = jobs.end(job, 1.0)
    assert isinstance(answer, CommandDone)
    assert jobs.running("shrink") is None
    assert jobs.proceed(1.0) == []
    assert (job.done, job.ended, jobs.find(job.id)) == (0, True, job)


def test_they_are_listed_with_the_newest_first_the_running_ones_before_the_ended(jobs: Jobs) -> None:
    waiting = jobs.start("shrink", 0.0, 1, lambda job: "wait")
    ended = [jobs.start("clear", 0.0, 1, counting(1)) for _ in range(2)]
    jobs.proceed(0.0)
    late = jobs.start("clear", 0.0, 1, counting())
    assert list(jobs) == [late, waiting, *reversed(ended)]
    assert [jobs.find(job.id) for job in jobs] == list(jobs)
    assert jobs.find(99) is None


def test_of_those_that_ended_the_last_hundred_are_remembered(jobs: Jobs) -> None:
    waiting = jobs.start("shrink", 0.0, 1, lambda job: "wait")
    for _ in range(150):
        jobs.start("clear", 0.0, 1, counting(1))
        jobs.proceed(0.0)
    assert [job.id for job in jobs] == [waiting.id, *range(151, 51, -1)]
    assert jobs.find(51) is None
    assert jobs.find(52) is not None
