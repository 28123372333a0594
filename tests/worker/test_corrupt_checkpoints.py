"""A published checkpoint is damaged in storage: the attempt that is to go on from it says so, the next takes the one
before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from sqlalchemy import select

from control_plane import pauses
from control_plane.storage import DirectoryStorage, state_prefix
from control_plane.tables import Event
from tests.stub_trainer import chain
from tests.worker.stubs import World, eventually, stub_programs, supervisor
from tests.worker.test_hangs import event


def files_of(world: World, job_id: str) -> dict[str, Path]:
    """All files of the job's newest checkpoint, as storage has them."""
    newest = world.checkpoints(job_id)[-1]
    folder = world.storage.folder
    model, state = folder / newest.storage_prefix, folder / state_prefix(job_id, newest.fence, newest.step)
    found = {path.relative_to(root).as_posix(): path for root in (model, state) for path in root.rglob("*.*")}
    found["state/link"] = state / "state" / "link"
    found.pop("model/SHA256SUMS", None)
    return {name: path for name, path in found.items() if path.is_file()}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    replace(path, bytes(content))


def cut(path: Path) -> None:
    replace(path, path.read_bytes()[:-1])


def replace(path: Path, content: bytes) -> None:
    """A file of its own: the damage is storage's, not that of a copy that shares its bytes."""
    path.unlink()
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def paused_at_3(world: World) -> str:
    """A job with published checkpoints at steps 2 and 3."""
    world.go.unlink(missing_ok=True)
    job_id = world.job()
    world.held(job_id, step=2)
    world.rank()
    with world.database.transaction() as session:
        pauses.pause(session, world.project_id, job_id)
    world.reaches(job_id, "paused")
    assert [checkpoint.step for checkpoint in world.checkpoints(job_id)] == [2, 3]
    return job_id


def goes_on(world: World, job_id: str) -> None:
    world.go.touch()
    with world.database.transaction() as session:
        pauses.resume(session, world.project_id, job_id)
    world.reaches(job_id, "succeeded", "failed")
    world.nothing_left()
    assert world.state(job_id) == "succeeded", world.row(job_id).error
    assert world.final_weights(job_id) == chain(6, job_id)
    assert world.measured(job_id) == list(range(6))


@pytest.mark.long
def test_a_flipped_byte_in_any_file_is_found_and_the_checkpoint_before_is_used(world: World) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = paused_at_3(world)
        names = sorted(files_of(world, job_id))
        assert {"model/model.safetensors", "model/config.json", "model/README.md", "state/link"} <= set(names)
        for name in names:
            if name != names[0]:
                job_id = paused_at_3(world)
            flip(files_of(world, job_id)[name])
            goes_on(world, job_id)
            told = event(world, job_id, "checkpoint_corrupt")
            assert name in told.message and "the job goes on from step 2, " in told.message
            assert world.outcomes(job_id)[2:] == [("train", "failed"), ("train", "succeeded")]


@pytest.mark.parametrize("damage", [cut, remove])
def test_a_file_that_is_cut_or_gone_is_found_too(world: World, damage: object) -> None:
    assert callable(damage)
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = paused_at_3(world)
        damage(files_of(world, job_id)["state/link"])
        goes_on(world, job_id)
        assert "the job goes on from step 2, " in event(world, job_id, "checkpoint_corrupt").message


def test_both_are_damaged_and_the_job_begins_again(world: World) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = paused_at_3(world)
        for path in (world.storage.folder / "private" / job_id).rglob("link"):
            flip(path)
        goes_on(world, job_id)
    assert world.codes(job_id).count("checkpoint_corrupt") == 2
    assert world.outcomes(job_id)[2:] == [("train", "failed"), ("train", "failed"), ("train", "succeeded")]


def test_a_state_that_the_worker_cannot_read_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where run directories can't link to storage the worker reads it: a network's disk that is late is no damage."""
    fetch, late = DirectoryStorage.fetch, True

    def late_for_states(storage: DirectoryStorage, key: str, path: Path) -> None:
        if late and "/state/" in key:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fetch(storage, key, path)

    monkeypatch.setattr(DirectoryStorage, "fetch", late_for_states)
    settings = world.settings.model_copy(update={"max_attempts": 1, "retry_seconds": 0.1})
    with supervisor(settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = paused_at_3(world)
        world.go.touch()
        with world.database.transaction() as session:
            pauses.resume(session, world.project_id, job_id)
        eventually(lambda: world.codes(job_id).count("not_begun") > 1, "it is tried again")
        with world.database.transaction() as session:
            told = session.scalars(select(Event.message).where(Event.job_id == job_id, Event.code == "not_begun")).all()
        assert all("can't be read, to resume from it" in message for message in told)
        late = False
        world.reaches(job_id, "succeeded", "failed")
    assert world.state(job_id) == "succeeded" and world.row(job_id).fruitless_attempts == 0
    assert world.measured(job_id) == list(range(6)), "it went on from the newest state"
