"""The harness itself: it sees what is broken, goes on where it stopped, and says what it found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.tables import Attempt, Checkpoint, Event, Job, Model
from tests.faults import fault, table
from tests.faults.invariants import Record, measured_once, one_owner, published_once, right_end, two_at_once
from tests.faults.journal import Journal, Line, rows
from tests.faults.scene import MISSES, Missed, Scene

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def attempt(fence: int, begin: float, end: float | None) -> Attempt:
    return Attempt(
        fence=fence,
        kind="train",
        started_at=NOON + timedelta(seconds=begin),
        ended_at=None if end is None else NOON + timedelta(seconds=end),
        outcome=None if end is None else "lost",
    )


def event(code: str, **data: object) -> Event:
    return Event(code=code, level="info", data=data)


def test_two_owners_at_once_are_seen() -> None:
    started = [event("job_started"), event("job_started")]
    job = Job(state="succeeded", lease_until=None)
    assert not list(one_owner(Record(job, [attempt(1, 0, 5), attempt(2, 5, 9)], started), times=True))
    overlap = Record(job, [attempt(1, 0, 5), attempt(2, 4, 9)], started)
    assert list(one_owner(overlap, times=True)) == ["attempt 2 began before attempt 1 ended"]
    assert not list(one_owner(overlap, times=False)), "a clock that was set says nothing"
    endless = Record(job, [attempt(1, 0, 5), attempt(2, 5, None)], started)
    assert list(one_owner(endless, times=True)) == ["attempt 2 is over and has no end"]
    assert list(one_owner(Record(job, [attempt(1, 0, 5)], started), times=True)) == [
        "2 events tell of a start, for 1 attempts to train"
    ]


def test_a_wrong_end_is_seen() -> None:
    ends = [event("job_succeeded")]
    assert not list(right_end(Record(Job(state="succeeded"), events=ends), succeeds=True))
    assert list(right_end(Record(Job(state="failed", error={"code": "x"}), events=ends), succeeds=True)) == [
        "it is failed instead of succeeded: {'code': 'x'}"
    ]
    (twice,) = right_end(Record(Job(state="succeeded"), events=ends * 2), succeeds=True)
    assert "2 ends" in twice


def test_a_missing_measurement_and_a_result_published_twice_are_seen() -> None:
    checkpoint = Checkpoint(step=4, storage_prefix="checkpoints/j/2/step-4")
    result = Model(storage_prefix=checkpoint.storage_prefix)
    final = event("checkpoint_created", step=4, final=True)
    whole = Record(Job(), events=[final], steps=[0, 1, 2, 3], checkpoints=[checkpoint], result=result)
    assert not [*measured_once(whole, 4), *published_once(whole)]
    assert list(measured_once(whole, 5)) == ["it measured steps [0, 1, 2, 3] of 5"]
    whole.events.append(final)
    assert list(published_once(whole)) == ["its result was published 2 times"]
    whole.events, whole.result = [final], Model(storage_prefix="checkpoints/j/1/step-4")
    assert list(published_once(whole)) == ["its result is not its last checkpoint"]


def test_ranks_that_train_at_the_same_time_are_seen(tmp_path: Path) -> None:
    account = tmp_path / "account.txt"
    account.write_text("j 1 0 10.0\nj 1 1 11.0\nj 2 1 12.0\nk 1 0 10.5\n")
    assert not list(two_at_once(account))
    account.write_text("j 1 0 10.0\nj 2 0 10.5\nj 1 1 11.0\n")
    assert list(two_at_once(account)) == ["j: attempt 2 trained before the one before it had stopped"]
    account.write_text("j 1 0 10.0\nj 1 2 11.0\n")
    assert list(two_at_once(account)) == ["j: attempt 1 left a step out, or did one twice"]


def short_jobs(monkeypatch: pytest.MonkeyPatch, *lasting: int) -> Any:
    """A deployment whose first job is over after so many strikes, its second one after so many, and so on."""
    left = {f"job-{number}": strikes for number, strikes in enumerate(lasting)}

    class ShortScene(Scene):
        def wait(self, behind: int) -> None:
            del behind
            if not left[self.job_id]:
                raise Missed
            left[self.job_id] -= 1

        def await_recovery(self, *, another_attempt: bool) -> None:
            del another_attempt
            self.recovery = 0.5

    monkeypatch.setattr(fault, "Scene", ShortScene)
    size, names = SimpleNamespace(steps=60, pace=0.0), iter(left)
    return SimpleNamespace(
        size=size, start_job=lambda: next(names), look_after_workers=lambda: None, reached=lambda _: (1, 0)
    )


def test_strikes_that_a_short_job_leaves_over_are_another_s(monkeypatch: pytest.MonkeyPatch) -> None:
    play = fault.struck(lambda _: None, another_attempt=False)
    played = play(short_jobs(monkeypatch, 0, 3, 0, 5), Random(1), 5)
    assert (len(played.recoveries), len(played.moments)) == (5, 5)
    assert played.jobs == ["job-0", "job-1", "job-2", "job-3"], "those that were missed must end well too"
    whole = fault.struck(lambda _: None, another_attempt=True, one_job=True)
    assert whole(short_jobs(monkeypatch, 4, 5), Random(1), 5).jobs == ["job-1"]
    with pytest.raises(Missed, match="too busy"):
        play(short_jobs(monkeypatch, *[0] * MISSES), Random(1), 5)


def test_what_the_service_said_while_it_was_lost_is_kept(tmp_path: Path) -> None:
    (logs := tmp_path / "logs").mkdir()
    (logs / "worker.log").write_text("what happened")
    kept = Journal(7, tmp_path).keep_logs(Line("kill -9 of `dpo up`", "stub", 1, "lost"), logs)
    assert kept == tmp_path / "7" / "kill-9-of-dpo-up-stub-2"
    assert (kept / "worker.log").read_text() == "what happened"


def test_a_journal_goes_on_where_it_stopped_and_plays_a_loss_again(tmp_path: Path) -> None:
    journal = Journal(7, tmp_path)
    assert journal.played() == set()
    journal.add(Line("a", "stub", 0, "survived", strikes=1, recoveries=[2.0]))
    journal.add(Line("a", "stub", 1, "lost", strikes=1, why=["gone"]))
    journal.add(Line("b", "stub", 0, "skipped", why=["no root"]))
    assert Journal(7, tmp_path).played() == {("a", "stub", 0), ("b", "stub", 0)}
    assert Journal(8, tmp_path).played() == set()
    journal.add(Line("a", "stub", 1, "survived", strikes=1, recoveries=[4.0]))
    assert [line.why for line in journal.lost_before()] == [["gone"]], "it is not forgotten for that"
    first, second = rows(journal.lines(), [])
    assert (first.strikes, first.survived, first.lost, first.median, first.worst) == (2, 2, 0, 3.0, 4.0)
    assert second.note == "skipped: no root"


def test_the_table_replaces_the_one_on_the_page(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text(f"# Title\n\n{table.BEGIN}\nold\n{table.END}\n\nThe end.\n")
    journal = Journal(7, tmp_path)
    journal.add(Line("a", "real", 0, "survived", strikes=5, recoveries=[2.0, 4.0, 9.5]))
    measured = rows(journal.lines(), [])
    table.write_into(page, table.markdown(measured, {"a": "nothing is lost"}))
    assert "| a | nothing is lost | real | 5 | 5 | 0 | 4.0 | 9.5 |" in page.read_text().splitlines()
    assert "old" not in page.read_text()
    assert page.read_text().endswith(f"{table.END}\n\nThe end.\n")
    assert table.printed(measured).splitlines()[1].split() == ["a", "real", "5", "5", "0", "4.0", "9.5"]
