"""What wakes the supervisor's loop while it has work: the ends of processes and of the pool's tasks, not a clock."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dpo_core.run_directory import RunDirectory
from tests.stub_trainer import chain
from tests.worker.stubs import World, eventually, running, stub_programs
from worker import supervisor as supervisor_module
from worker.supervisor import Supervisor

NEVER = 3600.0


@pytest.fixture
def nobody_polls(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("WORK_POLL_SECONDS", "RECONCILE_SECONDS"):
        monkeypatch.setattr(supervisor_module, name, NEVER)
    never = {"heartbeat_seconds": NEVER, "poll_seconds": NEVER, "lease_seconds": 3 * NEVER}
    world.settings = world.settings.model_copy(update=never)
    return world


@contextmanager
def called(world: World, *options: str) -> Iterator[Supervisor]:
    """A supervisor to which this process hands on that a child ended, as worker/main.py does."""
    boss = Supervisor(world.settings, stub_programs(options))
    before = signal.signal(signal.SIGCHLD, lambda _number, _frame: boss.nudge())
    try:
        yield boss
    finally:
        signal.signal(signal.SIGCHLD, before)


def steps(world: World) -> list[int]:
    """How far the runs say they are; nobody relays it."""
    found = [RunDirectory(world.runs / folder).status() for folder in world.run_directories()]
    return [status.step for status in found if status is not None]


def test_a_job_goes_from_its_claim_to_its_end(nobody_polls: World) -> None:
    job_id = nobody_polls.job()
    with called(nobody_polls) as boss, running(boss):
        nobody_polls.reaches(job_id, "succeeded", "failed")
    assert nobody_polls.final_weights(job_id) == chain(6, job_id)
    assert nobody_polls.outcomes(job_id) == [("validate", "succeeded"), ("train", "succeeded")]


def test_the_next_job_begins_where_a_slot_comes_free(nobody_polls: World) -> None:
    nobody_polls.settings = nobody_polls.settings.model_copy(update={"cpu_slots": 1})
    jobs = [nobody_polls.job(), nobody_polls.job()]
    with called(nobody_polls) as boss, running(boss):
        for job_id in jobs:
            nobody_polls.reaches(job_id, "succeeded", "failed")
    assert [nobody_polls.state(job_id) for job_id in jobs] == ["succeeded", "succeeded"]


def test_a_stopping_worker_leaves_with_its_last_work(nobody_polls: World) -> None:
    job_id = nobody_polls.job()
    with called(nobody_polls, "--hold-at=3", f"--until={nobody_polls.go}") as boss, running(boss):
        eventually(lambda: 3 in steps(nobody_polls), "its rank is held")
    assert nobody_polls.state(job_id) == "queued"
    assert nobody_polls.outcomes(job_id) == [("validate", "succeeded"), ("train", "stopped")]
