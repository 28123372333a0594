"""Whole worker processes, stopped, frozen, killed and cut off from Redis."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from control_plane import leases
from control_plane.hints import Hints
from control_plane.settings import LONGEST_LEASE
from control_plane.storage import DirectoryStorage
from control_plane.tables import Worker
from tests.cli.running import alive
from tests.stub_trainer import chain
from tests.worker.stubs import DEADLINE_SECONDS, World, eventually, stub_programs, supervisor, worker_process
from worker import supervisor as worker_supervisor
from worker.app import Ear
from worker.supervisor import Supervisor


def hold(world: World) -> list[str]:
    """Options of a stub that waits at step 3, after its checkpoint at 2."""
    return ["--hold-at=3", f"--until={world.go}"]


def short_leases(world: World) -> World:
    world.settings = world.settings.model_copy(update={"lease_seconds": 3.0})
    return world


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a process that is stopped."""
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return bool(int(fields["ShdPnd"], 16) >> (number - 1) & 1)


def test_sigterm_hands_the_job_back_with_a_checkpoint_of_where_it_was(world: World) -> None:
    with worker_process(world.settings, *hold(world)) as worker:
        job_id = world.job()
        world.held(job_id, step=2)
        world.rank()
        worker.terminate()
        assert worker.wait(timeout=DEADLINE_SECONDS) == 0
    assert world.state(job_id) == "queued"
    assert world.outcomes(job_id)[-1] == ("train", "stopped")
    assert world.checkpoints(job_id)[-1].step == 3, "made on the way out"
    assert world.row(job_id).fruitless_attempts == 0
    world.nothing_left()
    with world.database.transaction() as session:
        assert session.query(Worker).filter(Worker.left_at.is_(None)).count() == 0
    with supervisor(world.settings, stub_programs()):
        world.reaches(job_id, "succeeded", "failed")
    assert world.final_weights(job_id) == chain(6, job_id)


def test_a_second_signal_does_not_wait_for_the_checkpoint(world: World) -> None:
    world.settings = world.settings.model_copy(update={"stop_seconds": 5 * DEADLINE_SECONDS})
    with worker_process(world.settings, *hold(world)) as worker:
        job_id = world.job()
        world.held(job_id, step=2)
        rank = world.rank()
        rank.suspend()  # can't make a checkpoint any more
        # Of two signals that wait for a process, it gets SIGTERM first.
        eventually(lambda: rank.status() == psutil.STATUS_STOPPED, "it stands still")
        worker.terminate()
        eventually(lambda: pending(rank.pid, signal.SIGTERM), "the first signal was obeyed")
        worker.terminate()
        assert worker.wait(timeout=DEADLINE_SECONDS) == 0
    assert world.state(job_id) == "queued"
    assert world.checkpoints(job_id)[-1].step == 2
    world.nothing_left()


def test_kill_9_of_the_worker_kills_its_ranks_and_the_next_worker_goes_on(world: World) -> None:
    short_leases(world)
    with worker_process(world.settings, *hold(world)) as worker:
        job_id = world.job()
        world.held(job_id, step=2)
        worker.kill()
        worker.wait()
        eventually(lambda: not world.processes(), "the kernel killed launch and rank")
    world.go.touch()
    with worker_process(world.settings, *hold(world)):
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "lost"), ("train", "succeeded")]
    assert world.final_weights(job_id) == chain(6, job_id)


def test_a_worker_that_is_started_again_waits_for_no_lease_of_the_dead_one(world: World) -> None:
    world.settings = world.settings.model_copy(update={"lease_seconds": LONGEST_LEASE})
    with worker_process(world.settings, *hold(world)) as worker:
        job_id = world.job()
        world.held(job_id, step=2)
        worker.kill()
        worker.wait()
    with worker_process(world.settings):
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "lost"), ("train", "succeeded")]
    assert world.final_weights(job_id) == chain(6, job_id)


def test_a_job_that_kills_its_worker_every_time_ends_failed_and_says_so(world: World) -> None:
    world.settings = world.settings.model_copy(
        update={"lease_seconds": 2.0, "max_attempts": 2, "retry_seconds": 0.5, "heartbeat_seconds": 0.2}
    )
    job_id = world.job(text='{"prompt": "poison"}\n')
    for _ in range(2):
        with worker_process(world.settings) as worker:
            assert worker.wait(timeout=DEADLINE_SECONDS) == -signal.SIGKILL
    with supervisor(world.settings, stub_programs()):
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "lost"), ("train", "lost")]
    error = world.row(job_id).error
    assert error is not None and (error["kind"], error["code"]) == ("infrastructure", "worker_lost")
    assert "2 attempts in a row ended without a new checkpoint (2 times worker_lost)" in error["message"]
    assert "It may be the job that ends its workers" in error["message"]


def test_a_frozen_worker_loses_the_job_and_changes_nothing_when_it_thaws(world: World) -> None:
    short_leases(world)
    with worker_process(world.settings, *hold(world)) as frozen:
        job_id = world.job()
        world.held(job_id, step=2)
        rank = world.rank()
        frozen.send_signal(signal.SIGSTOP)
        eventually(lambda: not alive(rank), "its rank stopped by itself")
        world.go.touch()
        with supervisor(world.settings.model_copy(update={"runs_dir": world.runs / "other"}), stub_programs()):
            world.reaches(job_id, "succeeded", "failed")
            before = (world.outcomes(job_id), world.codes(job_id), world.final_weights(job_id))
            frozen.send_signal(signal.SIGCONT)
            eventually(lambda: not list(world.runs.glob("ftjob-*/*")), "the thawed worker cleared away")
        assert (world.outcomes(job_id), world.codes(job_id), world.final_weights(job_id)) == before
    assert before[0] == [("validate", "succeeded"), ("train", "lost"), ("train", "succeeded")]
    assert before[2] == chain(6, job_id)


def test_without_redis_a_worker_still_finds_work(world: World) -> None:
    world.settings = world.settings.model_copy(
        update={"redis_url": SecretStr(f"redis+socket://{world.runs.parent}/no-such.socket")}
    )
    with worker_process(world.settings) as worker:
        job_id = world.job()
        world.reaches(job_id, "succeeded", "failed")
        worker.terminate()
        assert worker.wait(timeout=DEADLINE_SECONDS) == 0
    assert world.state(job_id) == "succeeded"


def test_a_hint_is_heard(redis_url: str) -> None:
    heard: list[float] = []
    of_its_own = f"{redis_url}?virtual_host=7"  # whoever else listens on the test session's Redis may take a hint
    ear = Ear(of_its_own, lambda: heard.append(time.monotonic()))
    ear.start()
    hints = Hints(of_its_own)
    try:
        hints.send()
        eventually(lambda: bool(heard), "the hint arrived")
    finally:
        hints.close()
        ear.stop()


def test_a_lapsed_lease_is_seen_by_any_worker(world: World) -> None:
    with world.database.transaction() as session:
        workers_claim = {"worker_id": "gone", "free": 2, "total": 2, "lease_seconds": 0.0}
        job_id = world.job()
        assert leases.claim(session, **workers_claim) is not None
    with supervisor(world.settings, stub_programs()):
        world.reaches(job_id, "succeeded", "failed")
    assert world.outcomes(job_id)[0] == ("validate", "lost")


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_that_stops_leaves_what_hangs_to_its_lease(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, signals: int
) -> None:
    """A storage that hangs keeps the checkpoint from being published, and the job from being handed back."""
    hangs, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        hangs.set()
        go_on.wait(DEADLINE_SECONDS)
        raise OSError("it hung")  # so that this thread asks nothing more of a database that is not used any more

    monkeypatch.setattr(worker_supervisor, "LEAVE_SECONDS", 0.5)
    monkeypatch.setattr(DirectoryStorage, "put_file", hang)
    seconds = 1.0 if signals == 1 else 10 * DEADLINE_SECONDS
    settings = world.settings.model_copy(update={"stop_seconds": seconds, "lease_seconds": 2.0})
    boss = Supervisor(settings, stub_programs())
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(boss.run()))
    thread.start()
    try:
        job_id = world.job()
        assert hangs.wait(DEADLINE_SECONDS)
        for _ in range(signals):
            boss.stop()
            eventually(lambda: boss._stops_obeyed == boss._stops_asked, "it is obeyed")
        thread.join(DEADLINE_SECONDS)
    finally:
        go_on.set()
    assert ended == [False]
    assert "the time to stop is over" in caplog.text
    assert world.state(job_id) in ("validating", "running"), "nothing was reported: the lease runs out"
    eventually(lambda: not world.processes(), "no process of a run is left")
