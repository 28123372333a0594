"""One supervisor and the stub trainer: how every kind of attempt ends, and that nothing is left."""

from __future__ import annotations

import errno
import signal
from dataclasses import replace

import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from control_plane import jobs, leases, pauses, removals
from control_plane.database import Database
from control_plane.settings import LONGEST_LEASE
from control_plane.storage import DirectoryStorage, file_key
from control_plane.tables import Event, Worker
from dpo_core.run_directory import RunDirectory
from migrations.run import upgrade
from tests.conftest import Servers
from tests.stub_trainer import chain
from tests.worker.stubs import World, eventually, stub_programs, supervisor
from worker import fitness, housekeeping, leftovers, publish, taking, work
from worker import supervisor as supervisor_module
from worker.folders import LOCK, RunFolders
from worker.sweep import Sweep


def test_a_job_goes_from_its_file_to_published_weights(world: World) -> None:
    with supervisor(world.settings, stub_programs(["--steps=7"])):
        job_id = world.job()
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert world.state(job_id) == "succeeded", world.row(job_id).error
    assert world.final_weights(job_id) == chain(7, job_id)
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "succeeded")]
    checkpoints = world.checkpoints(job_id)
    assert [checkpoint.step for checkpoint in checkpoints] == [2, 4, 6, 7]
    assert not any(checkpoint.state_kept for checkpoint in checkpoints)
    removals.carry_out(world.database, world.storage)  # what the worker's next reconciliation does
    assert [key for key in world.storage.keys(f"private/{job_id}") if "/state/" in key] == []
    assert world.measured(job_id) == list(range(7))
    assert "stub_started" in world.codes(job_id)
    with world.storage.open(file_key(world.row(job_id).result_file_id or "")) as file:
        table = file.read().decode().splitlines()
    assert (len(table), table[1].partition(",")[0], table[7].partition(",")[0]) == (8, "0", "6"), "a row for each step"
    assert world.storage.exists(f"private/{job_id}/2/log.txt")


def test_a_checkpoint_is_published_after_what_was_measured_on_the_way_there(world: World) -> None:
    """A worker that dies right then leaves no gap: the next attempt begins behind the checkpoint."""
    settings = world.settings.model_copy(update={"heartbeat_seconds": 9.0})
    with supervisor(settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job()
        eventually(lambda: bool(world.checkpoints(job_id)), "a checkpoint is published")
        assert world.measured(job_id)[:2] == [0, 1]
        world.go.touch()
        world.reaches(job_id, "succeeded", "failed")


def test_a_database_that_is_not_migrated_yet_is_waited_for(
    servers: Servers, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    servers.execute("CREATE DATABASE bare")
    bare = Database(servers.url_of("bare"))
    settings = world.settings.model_copy(update={"database_url": SecretStr(servers.url_of("bare"))})
    left_by_a_dead_worker(world)
    with supervisor(settings, stub_programs()):
        eventually(lambda: "run `dpo migrate`" in caplog.text, "the worker says what is missing")
        assert "the lease of attempt 1 is left to run out" in caplog.text
        assert not world.run_directories(), "what a dead one left goes all the same"
        upgrade(servers.url_of("bare"))
        eventually(lambda: registered(bare), "it begins by itself")
    bare.dispose()


def left_by_a_dead_worker(world: World, row_id: str = "ftjob-old", fence: int = 1) -> None:
    folders = RunFolders(world.runs)
    folders.leave(folders.make(row_id, fence))


def registered(database: Database) -> bool:
    with database.transaction() as session:
        return session.query(Worker).count() == 1


def test_bad_data_fails_the_job_at_once_with_its_line(world: World) -> None:
    with supervisor(world.settings, stub_programs()):
        job_id = world.job(text="\n")
        world.reaches(job_id, "failed")
        world.nothing_left()
    error = world.row(job_id).error
    assert error is not None
    assert (error["kind"], error["code"], error["line"]) == ("user", "invalid_training_file", 1)
    assert world.outcomes(job_id) == [("validate", "failed")]


@pytest.mark.parametrize("kind", ["user", "resource", "divergence"])
def test_a_trainers_own_failure_is_the_jobs(world: World, kind: str) -> None:
    with supervisor(world.settings, stub_programs(["--fail-at=3", f"--failure={kind}"])):
        job_id = world.job()
        world.reaches(job_id, "failed")
        world.nothing_left()
    error = world.row(job_id).error
    assert error is not None
    assert (error["kind"], error["message"]) == (kind, "as ordered")
    assert [checkpoint.step for checkpoint in world.checkpoints(job_id)] == [2], "the last good checkpoint stays"


def test_infrastructure_failures_end_after_max_attempts_without_progress(world: World) -> None:
    settings = world.settings.model_copy(update={"max_attempts": 2})
    with supervisor(settings, stub_programs(["--fail-at=1", "--failure=infrastructure"])):
        job_id = world.job()
        world.reaches(job_id, "failed")
        world.nothing_left()
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "failed"), ("train", "failed")]


def test_a_trainer_that_dies_in_silence_leaves_its_last_words(world: World) -> None:
    settings = world.settings.model_copy(update={"max_attempts": 1})
    with supervisor(settings, stub_programs(["--no-such-option"])):
        job_id = world.job()
        world.reaches(job_id, "failed")
    error = world.row(job_id).error
    assert error is not None
    assert "exit code 2" in error["message"]
    assert "unrecognized arguments: --no-such-option" in error["log"]


@pytest.mark.parametrize("victim", ["rank", "launch"])
def test_kill_9_goes_on_from_the_last_checkpoint(world: World, victim: str) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job()
        world.held(job_id, step=2)
        rank = world.rank()
        (rank if victim == "rank" else rank.parent() or rank).send_signal(signal.SIGKILL)
        eventually(lambda: len(world.outcomes(job_id)) == 3, "a second attempt began")
        world.go.touch()
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "failed"), ("train", "succeeded")]
    assert world.final_weights(job_id) == chain(6, job_id)
    assert world.codes(job_id).count("checkpoint_created") == 3, "steps 2, 4 and 6: the resumed run began at 2"


def test_cancel_kills_the_run_and_publishes_nothing_more(world: World) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job()
        world.held(job_id, step=2)
        with world.database.transaction() as session:
            jobs.cancel(session, world.project_id, job_id)
        world.nothing_left()
        other = world.job()
        world.go.touch()
        world.reaches(other, "succeeded", "failed")
    assert world.state(job_id) == "cancelled"
    assert [checkpoint.step for checkpoint in world.checkpoints(job_id)] == [2]
    assert world.state(other) == "succeeded", "the slots came back"


def test_a_paused_run_frees_its_slots_and_goes_on_from_its_checkpoint(world: World) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job(resources={"gpus": 2})
        world.held(job_id, step=2)
        with world.database.transaction() as session:
            assert pauses.pause(session, world.project_id, job_id).state == "pausing"
        world.reaches(job_id, "paused")
        world.nothing_left()
        assert [checkpoint.step for checkpoint in world.checkpoints(job_id)] == [2, 3], "it made one more"
        world.go.touch()
        other = world.job(resources={"gpus": 2})
        world.reaches(other, "succeeded", "failed")
        assert (world.state(other), world.state(job_id)) == ("succeeded", "paused"), "the slots were free"
        with world.database.transaction() as session:
            pauses.resume(session, world.project_id, job_id)
        world.reaches(job_id, "succeeded", "failed")
    assert world.final_weights(job_id) == chain(6, job_id)
    assert world.outcomes(job_id)[1:] == [("train", "stopped"), ("train", "succeeded")]
    assert world.measured(job_id) == list(range(6))


def test_slots_are_never_overcommitted(world: World) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        wide = [world.job(resources={"gpus": 2}) for _ in range(2)]
        eventually(lambda: sorted(map(world.state, wide)) == ["queued", "running"], "one of them waits")
        eventually(lambda: len(world.checkpoints(wide[0]) + world.checkpoints(wide[1])) == 1, "the other one works")
        assert sorted(map(world.state, wide)) == ["queued", "running"]
        world.go.touch()
        for job_id in wide:
            world.reaches(job_id, "succeeded", "failed")
    assert {world.state(job_id) for job_id in wide} == {"succeeded"}


def test_a_worker_whose_program_is_not_there_says_so_and_fails_nothing(world: World) -> None:
    settings = world.settings.model_copy(update={"max_attempts": 1})
    with supervisor(settings, replace(stub_programs(), train=("/no/such/program",))):
        job_id, other = world.job(), world.job()
        for each in (job_id, other):
            eventually(lambda each=each: "not_begun" in world.codes(each), "it is told")  # type: ignore[misc]
        world.nothing_left()
    assert world.state(job_id) == "queued"
    assert world.row(job_id).fruitless_attempts == 0
    with world.database.transaction() as session:
        told = session.scalars(select(Event.message).where(Event.job_id == job_id, Event.code == "not_begun")).all()
    assert "/no/such/program" in told[0]


def test_storage_that_is_away_fails_no_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that wait, though it lasts for more tries than a job has attempts, nor one that trains."""
    monkeypatch.setattr(fitness, "LONGEST_REST", 0.05)
    monkeypatch.setattr(publish, "TOLD_AFTER", -1.0)
    settings = world.settings.model_copy(update={"max_attempts": 2, "retry_seconds": 0.05})

    def away(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with supervisor(settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        runs = world.job()
        world.held(runs, step=2)
        waits = world.job()
        for access in ("fetch", "put_file"):
            monkeypatch.setattr(DirectoryStorage, access, away)
        eventually(lambda: world.codes(waits).count("not_begun") > 3, "it is tried again and again")
        world.go.touch()
        eventually(lambda: world.row(runs).progress["step"] == 6, "the other one trains to its end")
        eventually(lambda: "storage_away" in world.codes(runs), "its owner hears of it")
        monkeypatch.undo()
        for job_id in (runs, waits):
            world.reaches(job_id, "succeeded", "failed")
    assert {world.state(runs), world.state(waits)} == {"succeeded"}
    assert world.final_weights(runs) == chain(6, runs)


def test_what_can_not_be_killed_is_left_to_its_lease(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its job nor the next worker waits for it; its slots do."""
    monkeypatch.setattr(work, "UNKILLABLE_SECONDS", 0.2)
    monkeypatch.setattr(Sweep, "kill", lambda *_: False)
    settings = world.settings.model_copy(update={"lease_seconds": 2.0, "retry_seconds": 0.0})
    with supervisor(settings, stub_programs()):
        job_id = world.job()
        eventually(lambda: "worker_lost" in world.codes(job_id), "its lease runs out")
        monkeypatch.undo()
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert world.state(job_id) == "succeeded"


class Unkillable(Sweep):
    def kill(self, launched: int | None) -> bool:
        return False


def test_a_worker_starts_though_a_leftover_can_not_be_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "PATIENCE_AT_START", 0.2)
    monkeypatch.setattr(leftovers, "Sweep", Unkillable)
    lost = claimed_by_a_dead_worker(world)
    with supervisor(world.settings, stub_programs()):
        job_id = world.job()
        world.reaches(job_id, "succeeded", "failed")
    assert world.run_directories() == [f"{lost}/1/"], "it is the next one's"
    assert world.outcomes(lost) == [("validate", None)], "a process of it runs: the lease does, too"


def claimed_by_a_dead_worker(world: World) -> str:
    """The job, which it had begun to validate, under a lease as long as leases are."""
    job_id = world.job()
    with world.database.transaction() as session:
        taken = leases.claim(session, worker_id="w1", free=1, total=1, lease_seconds=LONGEST_LEASE)
    assert taken is not None and taken.job_id == job_id
    left_by_a_dead_worker(world, job_id)
    return job_id


class ThereAtTheSecondLook(Sweep):
    """The first look missed a process."""

    looks = 0

    def kill(self, launched: int | None) -> bool:
        type(self).looks += 1
        return type(self).looks != 2


def test_a_dead_workers_attempt_ends_when_two_looks_found_nothing_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "Sweep", ThereAtTheSecondLook)
    lost = claimed_by_a_dead_worker(world)
    with supervisor(world.settings, stub_programs()):
        world.reaches(lost, "succeeded", "failed")
    assert ThereAtTheSecondLook.looks == 4
    assert world.outcomes(lost) == [("validate", "lost"), ("validate", "succeeded"), ("train", "succeeded")]


def test_what_may_run_on_where_a_worker_does_not_see_it_is_left_to_its_lease(world: World) -> None:
    """Of another container, or another host, with which this one shares the folder of runs."""
    lost = claimed_by_a_dead_worker(world)
    (world.runs / lost / "1" / LOCK).write_text("boot of another host\n")
    with supervisor(world.settings, stub_programs()):
        world.reaches(world.job(), "succeeded", "failed")
        world.nothing_left()
    assert world.outcomes(lost) == [("validate", None)]


def test_what_nothing_was_seen_of_when_patience_ends_is_looked_at_once_more(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leftovers, "PATIENCE_AT_START", 0.0)
    lost = claimed_by_a_dead_worker(world)
    with supervisor(world.settings, stub_programs()):
        world.reaches(lost, "succeeded", "failed")
    assert "lives on" not in caplog.text
    assert world.outcomes(lost)[0] == ("validate", "lost")


class Forbidden(Sweep):
    def kill(self, launched: int | None) -> bool:
        if self._run.path.name == "2":
            raise psutil.AccessDenied(4711)
        return super().kill(launched)


def test_a_worker_starts_though_leftovers_can_not_be_cleared_away(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for fence in ("1", "2", "3"):
        (world.runs / "ftjob-old" / fence).mkdir(parents=True)
    (world.runs / "ftjob-old" / "3" / "processes").mkdir()
    (world.runs / "ftjob-old" / "3" / "processes" / "0.json").write_text("torn")
    remove = RunFolders.remove

    def removes(folders: RunFolders, run: RunDirectory) -> None:
        if run.path.name == "1":
            raise PermissionError(errno.EACCES, "Permission denied")
        remove(folders, run)

    monkeypatch.setattr(RunFolders, "remove", removes)
    monkeypatch.setattr(leftovers, "Sweep", Forbidden)
    with supervisor(world.settings, stub_programs()):
        world.reaches(world.job(), "succeeded", "failed")
    assert "ftjob-old/1, which nobody holds, can't be cleared away" in caplog.text
    assert "what runs of " in caplog.text and "ftjob-old/2, which nobody holds, can't be told" in caplog.text
    assert sorted(path.name for path in (world.runs / "ftjob-old").iterdir()) == ["1", "2"]


def read_only(_folders: RunFolders, _run: RunDirectory) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_run_directories_that_can_t_be_removed_hold_no_work_up_and_are_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "LEFTOVERS_SECONDS", 0.5)
    monkeypatch.setattr(supervisor_module, "RECONCILE_SECONDS", 0.1)
    with supervisor(world.settings, stub_programs()):
        with monkeypatch.context() as mounted:
            mounted.setattr(RunFolders, "remove", read_only)
            jobs_done = [world.job() for _ in range(taking.VALIDATIONS_AT_ONCE + 1)]
            for job_id in jobs_done:
                world.reaches(job_id, "succeeded", "failed")
            eventually(lambda: len(world.run_directories()) == 2 * len(jobs_done), "they all stay")
        world.nothing_left()
    assert {world.state(job_id) for job_id in jobs_done} == {"succeeded"}


def test_a_stopping_worker_leaves_what_can_t_be_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolders, "remove", read_only)
    with supervisor(world.settings, stub_programs()):
        world.reaches(world.job(), "succeeded", "failed")
    assert len(world.run_directories()) == 2


def test_a_stop_is_heard_while_leftovers_are_cleared_away(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leftovers, "Sweep", Unkillable)
    left = world.runs / "ftjob-old" / "1"
    left.mkdir(parents=True)
    with supervisor(world.settings, stub_programs()):
        pass
    assert left.exists() and "lives on" not in caplog.text


def test_whatever_happens_beside_them_runs_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job()
        world.held(job_id, step=2)
        monkeypatch.setattr(leases, "reconcile", "not a function")
        eventually(lambda: "looking after the queue failed" in caplog.text, "it is logged")
        world.go.touch()
        for each in (job_id, world.job()):
            world.reaches(each, "succeeded", "failed")
            assert world.outcomes(each) == [("validate", "succeeded"), ("train", "succeeded")]


@pytest.mark.parametrize("then", ["dies", "hangs"])
def test_what_succeeded_has_succeeded_however_its_process_ends(world: World, then: str) -> None:
    settings = world.settings.model_copy(update={"max_attempts": 1, "hang_seconds": 2.0})
    with supervisor(settings, stub_programs([f"--then={then}"])):
        job_id = world.job()
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert world.state(job_id) == "succeeded", world.row(job_id).error
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "succeeded")]


def test_a_base_model_that_is_not_on_this_host_fails_no_job(world: World) -> None:
    """Its mount is missing, after a reboot perhaps."""
    folder = world.storage.folder.parent / "tiny"
    folder.rename(away := folder.with_name("not mounted"))
    settings = world.settings.model_copy(update={"max_attempts": 1, "retry_seconds": 0.1})
    with supervisor(settings, stub_programs()):
        job_id = world.job()
        eventually(lambda: world.codes(job_id).count("not_begun") > 1, "it is tried again")
        away.rename(folder)
        world.reaches(job_id, "succeeded", "failed")
    assert world.state(job_id) == "succeeded"


def test_a_job_whose_file_is_gone_keeps_no_other_waiting(world: World) -> None:
    settings = world.settings.model_copy(update={"cpu_slots": 1, "retry_seconds": 0.1})
    lost = world.file("{}")
    (world.storage.folder / file_key(lost)).unlink()
    with supervisor(settings, stub_programs()):
        without = world.job_on(lost)
        eventually(lambda: world.codes(without).count("not_begun") > 1, "it is tried again")
        others = [world.job() for _ in range(2)]
        for job_id in others:
            world.reaches(job_id, "succeeded", "failed")
    assert [world.state(job_id) for job_id in (without, *others)] == ["validating", "succeeded", "succeeded"]
