"""A disk that is full, for real: a small file system of the test's own. Skipped where none can be mounted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.database import Database
from control_plane.settings import Settings
from tests.stub_trainer import chain
from tests.worker.stubs import World, eventually, make_world, stub_programs, supervisor
from tests.worker.test_hangs import event
from worker.room import LEAST, NoRoom, Room, more_than

SIZE = 24 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of SIZE bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "dpo-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small(settings: Settings, database: Database, disk: Path, tmp_path: Path) -> World:
    """A world whose storage and run directories are on it."""
    (disk / "storage").mkdir()
    quick = {"heartbeat_seconds": 0.2, "poll_seconds": 0.2, "lease_seconds": 20.0, "stop_seconds": 60.0}
    here = settings.model_copy(update={**quick, "storage_url": (disk / "storage").as_uri()})
    return make_world(here, database, tmp_path)


def fill(disk: Path, *, but: int = 0) -> Path:
    """Takes all the room, or all but so many bytes."""
    ballast = disk / "ballast"
    with open(ballast, "ab", buffering=0) as file:
        while (room := Room(disk).free - but) > 0:
            try:
                file.write(bytes(min(2**20, room)))
            except OSError:
                break
    return ballast


def test_a_run_that_finds_the_disk_full_waits_for_room_and_goes_on(small: World, disk: Path) -> None:
    with supervisor(small.settings, stub_programs(["--hold-at=3", f"--until={small.go}"])):
        job_id = small.job()
        small.held(job_id, step=2)
        ballast = fill(disk)
        small.go.touch()
        small.reaches(job_id, "queued", "failed", "succeeded")
        small.nothing_left()
        assert small.state(job_id) == "queued", small.row(job_id).error
        assert small.row(job_id).fruitless_attempts == 0
        told = event(small, job_id, "disk_full")
        assert told.level == "warn"
        assert "The job waits until a worker has " in told.message and told.message.endswith("goes on by itself.")
        assert told.data["needs_bytes"] > LEAST
        ballast.unlink()
        small.reaches(job_id, "succeeded", "failed")
        small.nothing_left()
    assert small.outcomes(job_id) == [("validate", "succeeded"), ("train", "stopped"), ("train", "succeeded")]
    assert small.final_weights(job_id) == chain(6, job_id)
    assert small.measured(job_id) == list(range(6))
    assert "room_again" in small.codes(job_id)
    assert not list((small.storage.folder / ".unfinished").iterdir())


def test_room_that_was_made_at_once_is_not_asked_for_again(
    small: World, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever makes it may be quicker than the attempt's report; what was free then was enough."""
    with supervisor(small.settings, stub_programs(["--hold-at=3", f"--until={small.go}"])):
        job_id = small.job()
        small.held(job_id, step=2)
        ballast = disk / "ballast"
        eventually(lambda: fill(disk) and "error while renewing the lease" in caplog.text, "the worker met it")
        ballast.unlink()
        small.go.touch()
        small.reaches(job_id, "succeeded", "failed")
    assert event(small, job_id, "disk_full").data["needs_bytes"] < SIZE / 2
    assert small.outcomes(job_id) == [("validate", "succeeded"), ("train", "stopped"), ("train", "succeeded")]


def test_a_full_disk_takes_no_work_until_there_is_room(
    small: World, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = small.job()
    ballast = fill(disk)
    with supervisor(small.settings, stub_programs()):
        eventually(lambda: "no work is taken until there is room" in caplog.text, "the worker says so")
        assert small.outcomes(job_id) == []
        ballast.unlink()
        small.reaches(job_id, "succeeded", "failed")
    assert small.outcomes(job_id) == [("validate", "succeeded"), ("train", "succeeded")]


def test_a_job_that_would_write_more_than_there_is_room_for_is_not_begun(small: World, disk: Path) -> None:
    """By the estimate that was made of it; more room, and it goes on by itself."""
    with supervisor(small.settings, stub_programs([], validate=[f"--writes={2 * SIZE}"])):
        job_id = small.job()
        eventually(lambda: "disk_full" in small.codes(job_id), "it is known")
        told = event(small, job_id, "disk_full")
        assert told.message.startswith("The job will write about 48 MiB, and its worker's disk has ")
        assert "waits until a worker has 48 MiB of room" in told.message
        assert small.state(job_id) == "queued"
        remount = ["mount", "-o", f"remount,size={3 * SIZE}", str(disk)]
        subprocess.run(remount, check=True)
        small.reaches(job_id, "succeeded", "failed")
    assert small.outcomes(job_id) == [("validate", "succeeded"), ("train", "stopped"), ("train", "succeeded")]
    assert small.row(job_id).needs_bytes is None


def test_what_was_not_enough_is_not_enough_the_next_time(tmp_path: Path) -> None:
    room, run = Room(tmp_path), tmp_path / "run"
    run.mkdir()
    (run / "own").write_bytes(bytes(2**20))
    free = room.free
    assert more_than(free, run, 0) > free + 2**20, "else it would be begun and fail again and again"
    assert more_than(free, run, 2**60) == 2**60
    with pytest.raises(NoRoom, match=r"will write about 1\.07e"):
        room.require(2**60)
    room.require(0)
