"""Checks by real workers with the real program: answered, lost and answered by another, removed while they run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from control_plane import checks, files
from control_plane.ids import new_id
from control_plane.questions import about_file
from control_plane.settings import LONGEST_LEASE
from control_plane.storage import file_key
from control_plane.tables import Check
from dpo_core.run_directory import RunDirectory
from tests.worker.stubs import DEADLINE_SECONDS, World, eventually, stub_programs, supervisor, worker_process

ROWS = '{"prompt": "What is 1+1?", "chosen": "two", "rejected": "3"}\n{"prompt": "x"}\n'


def uploaded(world: World, text: str | None = ROWS) -> tuple[str, str]:
    """A file and its check; without a text the file is a pipe, so that reading it lasts."""
    file_id = new_id("file")
    with world.storage.writer(file_key(file_id)) as sink:
        sink.write((text or "").encode())
    if text is None:
        stored(world, file_id).unlink()
        os.mkfifo(stored(world, file_id))
    with world.database.transaction() as session:
        file = files.add(
            session,
            world.project_id,
            filename="pairs.jsonl",
            purpose="fine-tune",
            bytes=len(text or ""),
            sha256=file_id,
            storage_key=file_key(file_id),
            file_id=file_id,
        )
        return file_id, checks.ask(session, world.project_id, about_file(file)).id


def stored(world: World, file_id: str) -> Path:
    return world.storage.folder / file_key(file_id)


def row(world: World, check_id: str) -> Check:
    with world.database.transaction() as session:
        return session.get_one(Check, check_id)


def runs_its_program(world: World) -> bool:
    """Its process is there, and waits for the pipe's other end."""
    statuses = [RunDirectory(path.parent).status() for path in world.runs.glob("check-*/*/status.json")]
    return any(status is not None and status.state == "running" for status in statuses)


def reaches(world: World, check_id: str, state: str) -> None:
    eventually(lambda: row(world, check_id).state == state, f"{check_id} is {state}")


def test_a_check_is_answered_beside_a_job_that_has_every_slot(world: World) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job(resources={"gpus": 2})
        world.held(job_id, step=2)
        _, check_id = uploaded(world)
        reaches(world, check_id, "done")
        world.go.touch()
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    result = row(world, check_id).result
    assert result is not None
    assert (result["rows"], result["pairs"], result["problems"][0]["lines"]) == (2, 1, [2])


def test_a_file_that_is_not_in_storage_fails_its_check_after_some_tries(world: World) -> None:
    file_id, check_id = uploaded(world)
    stored(world, file_id).unlink()
    with supervisor(world.settings.model_copy(update={"max_attempts": 2}), stub_programs()):
        reaches(world, check_id, "failed")
        world.nothing_left()
    error, fence = row(world, check_id).error, row(world, check_id).fence
    assert error is not None
    assert (error["code"], fence) == ("worker_error", 2)


@pytest.mark.parametrize(
    ("lease_seconds", "runs_dir"), [(3.0, "elsewhere"), (LONGEST_LEASE, None)], ids=["another host", "this host"]
)
def test_kill_9_of_the_worker_and_another_one_answers(world: World, lease_seconds: float, runs_dir: str | None) -> None:
    settings = world.settings.model_copy(update={"lease_seconds": lease_seconds})
    with worker_process(settings) as worker:
        file_id, check_id = uploaded(world, text=None)
        eventually(lambda: runs_its_program(world), "the check reads the file")
        worker.kill()
        worker.wait()
        eventually(lambda: not world.processes(), "the kernel killed its program")
    stored(world, file_id).unlink()
    stored(world, file_id).write_text(ROWS)
    there = {} if runs_dir is None else {"runs_dir": world.runs.parent / runs_dir}
    with worker_process(settings.model_copy(update=there)):
        reaches(world, check_id, "done")
        if runs_dir is None:
            world.nothing_left()
    assert row(world, check_id).fence == 2


def test_sigterm_hands_a_check_back(world: World) -> None:
    with worker_process(world.settings) as worker:
        _, check_id = uploaded(world, text=None)
        eventually(lambda: runs_its_program(world), "the check reads the file")
        worker.terminate()
        assert worker.wait(timeout=DEADLINE_SECONDS) == 0
    assert (row(world, check_id).state, row(world, check_id).fruitless_attempts) == ("waiting", 0)
    world.nothing_left()


def test_a_file_that_is_deleted_takes_its_running_check_with_it(world: World) -> None:
    with supervisor(world.settings, stub_programs()):
        file_id, check_id = uploaded(world, text=None)
        eventually(lambda: runs_its_program(world), "the check reads the file")
        with world.database.transaction() as session:
            files.delete(session, world.project_id, file_id)
        world.nothing_left()
    with world.database.transaction() as session:
        assert checks.read(session, check_id) is None
